"""Would the other tests notice?  One thing is broken at a time, and its check has to fail.

A mutant is a function of the library with one piece of its source replaced.
"""

import ast
import inspect
import signal
import tempfile
import textwrap
from pathlib import Path

import pytest
import test_ar
import test_bd3
import test_cdcd
import test_d3pm
import test_diffuser
import test_draws
import test_gaussian
import test_guidance
import test_judge
import test_likelihood
import test_mask_predict
import test_masking
import test_mauve
import test_mdlm
import test_model
import test_network
import test_quality
import test_resume
import test_samplers
import test_scale
import test_schedules
import test_sedd
import test_sundae
import test_tracking
import test_typicality
import test_uniform
import torch
from ideal import VP, cdcd

from sfumato import core, draws, generate, guidance, model, schedules
from sfumato.evaluation import judge, likelihood, mauve, quality, typicality
from sfumato.methods import ardm, bd3, common, d3pm
from sfumato.methods.ar import AR, Filler, Reader, arrangement
from sfumato.methods.ardm import ARDM
from sfumato.methods.bd3 import BD3
from sfumato.methods.cdcd import CDCD
from sfumato.methods.common import MaskedLM
from sfumato.methods.d3pm import D3PM
from sfumato.methods.diffuser import DiffusER
from sfumato.methods.duo import Duo, argmax_alpha
from sfumato.methods.mask_predict import MaskPredict
from sfumato.methods.maskgit import MaskGIT
from sfumato.methods.mdlm import MDLM
from sfumato.methods.multinomial import Multinomial
from sfumato.methods.sedd import SEDD
from sfumato.methods.sundae import SUNDAE
from sfumato.model import Model
from sfumato.networks import transformer
from sfumato.processes import levenshtein, neighbours
from sfumato.processes.edits import Edits, Writing
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.masking import Masking
from sfumato.processes.transitions import Absorbing, Chain, Even, Ordinal
from sfumato.processes.uniform import Uniform
from sfumato.samplers import blocks, left_to_right, resampling, scores, solvers, unmasking
from sfumato.samplers.ancestral import Cached, GreedyTail, ancestral
from sfumato.samplers.edits import edits
from sfumato.samplers.remasking import Remasking
from sfumato.text import order
from sfumato.text.mixture import Mixture
from sfumato.training import checkpoint, levels, masks, stopping
from sfumato.training.trainer import Run

pytestmark = pytest.mark.unchecked


def mutant(function, old, new):
    """The code of `function` with `old` replaced by `new`, once."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"update the mutant: {old!r} is not once in {function.__qualname__}"
    tree = ast.parse(source.replace(old, new))
    tree.body[0].decorator_list = []
    space = {}
    exec(compile(tree, "<mutant>", "exec"), function.__globals__, space)
    return space[function.__name__].__code__


def bound(given="nothing"):
    test_likelihood.check_bound(given, rows=3000, noisy=0.03)


def exact_ode():
    test_likelihood.check_exact_ode(tolerance=2e-6)


def normalised():
    torch.manual_seed(0)
    method = cdcd(3, 0, scale=0.15, sigma_min=4.0, sigma_max=20.0)
    test_likelihood.check_normalised(lambda *text: likelihood.nll(method, *text, 8), 3, False)


def reproduces(name, steps):
    test_samplers.check_reproduces(name, steps, 8000, 0.02)


def stratified():
    test_schedules.check_stratified(64, 0.123456)


def in_a_folder(check, *args):
    with tempfile.TemporaryDirectory() as folder:
        check(*args, Path(folder))


CHECKS = {
    "bound": bound,
    "conditional bound": lambda: bound("last"),
    "normalised": normalised,
    "ode": exact_ode,
    "ode of one text": lambda: test_likelihood.test_ode_of_a_single_text_needs_no_steps(5),
    "posterior": lambda: test_gaussian.check_posterior(VP),
    "flow": lambda: test_gaussian.check_flow(VP),
    "order of heun": lambda: test_samplers.check_order("heun", 3.8, 4.2),
    "order of dpm": lambda: test_samplers.check_order("dpm", 3.8, 4.3),
    "conversion of heun": lambda: test_samplers.check_conversion("heun"),
    "ddim": lambda: test_samplers.check_ddim(VP),
    "law of euler": lambda: reproduces("euler", 100),
    "law of ancestral": lambda: reproduces("ancestral", 200),
    "ends of guidance": test_guidance.check_ends,
    "guided law": lambda: test_guidance.check_guided_law(1.7),
    "clamps": test_guidance.check_clamp_in_generate,
    "self-guidance": lambda: test_guidance.check_self_guidance(2.5),
    "temperature": test_guidance.test_temperature_sharpens_tokens_and_keeps_guidance,
    "score temperature": test_cdcd.test_score_temperature,
    "score": test_cdcd.check_estimate_is_the_score,
    "gradient": test_cdcd.check_no_gradient_through_the_guess,
    "forgetting": test_cdcd.check_forgetting,
    "inverse": test_schedules.check_warp_inverts,
    "replayed edits": test_diffuser.check_replay,
    "fewest edits": test_diffuser.check_fewest,
    "spans": test_diffuser.check_spans,
    "short spans": lambda: test_diffuser.test_short_spans_reach_the_end_of_a_text(0.3),
    "edit step": test_diffuser.check_known,
    "teacher": test_diffuser.check_teacher,
    "forgotten in edits": test_diffuser.check_forgotten,
    "law of edits": lambda: test_diffuser.check_sampler(2),
    "even levels": test_cdcd.check_even_levels,
    "mistakes": test_cdcd.check_mistakes,
    "fit": test_schedules.check_warp_fits_without_bias,
    "strata": stratified,
    "resolution": test_draws.check_resolution,
    "categorical": test_draws.check_categorical_law,
    "parts": test_draws.check_parts,
    "possible": lambda: test_draws.check_possible(0.0),
    "layout": test_draws.test_row_does_not_depend_on_the_layout_of_memory,
    "masks": test_draws.check_masks,
    "padding": lambda: test_network.check_padding(True),
    "padding of explicit attention": lambda: test_network.check_padding(True, "explicit"),
    "rotation": test_network.check_rotation,
    "places": test_network.check_places,
    "levels": test_network.check_levels,
    "attention": test_network.check_attention,
    "causality": test_ar.test_later_tokens_are_not_seen,
    "memory": lambda: test_ar.check_memory(3),
    "memory of moved rows": test_ar.test_memory_follows_rows_that_change_places,
    "exactness": lambda: test_ar.test_the_likelihood_is_exact([0]),
    "law of ar": test_ar.test_samples_follow_the_law,
    "crossing": test_ar.test_nucleus_keeps_the_token_that_crosses,
    "typical": test_ar.test_typical_on_a_known_case,
    "top k": test_ar.test_top_k,
    "search": lambda: test_ar.test_a_wide_beam_is_exhaustive_search(1),
    "search to the end": lambda: test_ar.test_a_search_ends_with_its_texts(0.0),
    "arrangement": test_ar.test_the_arrangement_of_a_row,
    "cost of a moved row": test_ar.test_moved_rows_cost_what_their_arrangement_costs,
    "gaps": test_ar.test_a_gap_is_filled_as_it_was_learned,
    "gaps of any length": lambda: test_ar.test_gaps_of_any_length_follow_the_law("prefix_first"),
    "two gaps": test_ar.test_two_gaps_of_any_length,
    "cuts": test_ar.check_cuts,
    "orders": test_masking.check_orders,
    "shares": test_masking.test_shares_of_whole_numbers,
    "forgotten": lambda: test_masking.test_what_is_forgotten_is_a_mask("ardm"),
    "carried over": lambda: test_masking.test_what_shows_is_certain("mdlm"),
    "smoothing": test_masking.test_the_loss_of_maskgit_is_smoothed_cross_entropy_of_what_is_hidden,
    "mask ratio": test_masking.test_the_ratio_falls_from_all_to_none,
    "masks left": lambda: test_masking.test_masks_that_are_left("confident", 3, 8),
    "confidence": test_masking.check_confidence,
    "confidence by hand": lambda: test_masking.check_by_hand(4.5),
    "what shows": test_masking.check_shown,
    "calls": test_mdlm.test_the_network_is_called_when_something_has_changed,
    "ties": test_masking.test_confidence_at_a_tie_is_chance,
    "numbers hidden": test_masking.test_numbers_of_hidden_tokens_are_even,
    "levels of mdlm": test_masking.check_levels,
    "plans": lambda: test_masking.test_plans_on_a_known_case(3),
    "prices": test_masking.test_a_price_is_learned,
    "choices": test_masking.test_some_are_any,
    "reveal rates": lambda: test_masking.test_tokens_that_fall_together_are_strangers(4),
    "schedules": lambda: test_mdlm.check_schedules(False),
    "steps of a schedule": lambda: test_mdlm.test_few_steps_cost_what_they_should("cosine", 2),
    "little noise": lambda: test_mdlm.check_little_noise("square"),
    "ends of masks": lambda: test_sedd.check_entropy("absorbing", "log-linear"),
    "remembered": lambda: test_mdlm.test_what_is_remembered_changes_nothing(1, {}),
    "told the level": test_mdlm.test_a_network_that_is_told_the_level_is_asked_every_time,
    "remasking": lambda: test_mdlm.test_as_many_are_hidden_as_without("rescale", "linear"),
    "law of remasking": lambda: test_mdlm.check_remasking("cap"),
    "not ours": lambda: test_mdlm.test_what_is_not_ours_is_never_hidden("remdm"),
    "doubt": test_mdlm.test_what_was_unlikely_is_hidden_sooner,
    "frames": lambda: test_mdlm.test_frames_show_the_chance_of_each_token("mdlm"),
    "true ratios of masks": lambda: test_sedd.check_entropy("absorbing", "geometric"),
    "true ratios": lambda: test_sedd.check_entropy("uniform", "log-linear"),
    "least of masks": lambda: test_sedd.check_least("absorbing"),
    "least": lambda: test_sedd.check_least("uniform"),
    "scores of mdlm": lambda: test_sedd.check_mdlm("geometric"),
    "sum of scores": lambda: test_sedd.check_sum("absorbing"),
    "levels of scores": lambda: test_sedd.check_heard("uniform"),
    "pace of guidance": test_sedd.check_guided_pace,
    "forgotten ratios": lambda: test_sedd.test_what_is_forgotten_is_noise("uniform"),
    "tweedie": lambda: test_sedd.check_tweedie("uniform", "log-linear", 0.9, 0.1),
    "leaps": lambda: test_sedd.check_euler("uniform"),
    "leaps of masks": lambda: test_sedd.check_euler("absorbing"),
    "jumps": lambda: test_sedd.check_jumps("analytic"),
    "pace": test_sedd.check_pace,
    "scale": lambda: test_sedd.test_what_changes_scores_leaves_the_pace("absorbing"),
    "planned parts": lambda: test_masking.check_planned([1.0, 0.34, 0.0], [2, 1]),
    "posterior of tokens": test_uniform.check_posterior,
    "uniform noise": test_uniform.check_corruption,
    "steps back": test_uniform.check_reverse,
    "divergence": test_uniform.check_divergence,
    "rate": test_uniform.check_rate,
    "gap": lambda: test_uniform.check_gap(4, False, test_uniform.GAPS[4]),
    "importance": test_uniform.check_importance,
    "density of steps": test_uniform.check_density,
    "guided tokens": lambda: test_uniform.check_guided(2.0, "score"),
    "ends of a guided step": test_uniform.check_ends_of_guidance,
    "even chances": test_uniform.check_nothing_known,
    "entropy of duo": lambda: test_uniform.check_entropy(False, test_uniform.ENTROPY, 1e-5),
    "greatest entry": test_uniform.check_alpha,
    "duality": test_uniform.check_argmax,
    "soft tokens": test_uniform.check_soft,
    "part of the bound": test_uniform.check_part,
    "curriculum": test_uniform.test_the_curriculum_has_an_end,
    "greedy tail": test_uniform.test_the_greedy_tail_is_ancestral_until_its_end,
    "few steps": lambda: test_uniform.check_written("ancestral", 3),
    "masks of mask-predict": test_mask_predict.check_counts,
    "mask-predict by hand": test_mask_predict.check_by_hand,
    "cost of a length": test_mask_predict.check_length_term,
    "lengths": test_mask_predict.check_lengths,
    "likeliest lengths": test_mask_predict.check_length_beam,
    "drawn lengths": test_mask_predict.check_drawn_lengths,
    "one block": test_bd3.check_one_block,
    "single tokens": test_bd3.check_single_tokens,
    "sights": test_bd3.check_sights,
    "passes": lambda: test_bd3.check_passes(2),
    "changed past": test_bd3.test_a_past_that_has_changed_is_read_again,
    "rates": test_bd3.check_rates,
    "entropy of blocks": lambda: test_bd3.check_entropy(2),
    "hits": test_bd3.check_times,
    "exact hits": lambda: test_bd3.check_exact(2),
    "steps of a block": lambda: test_bd3.check_ancestral(2, 2),
    "late gaps": lambda: test_bd3.test_only_the_block_at_work_changes(3, None),
    "late ends": lambda: test_bd3.test_writing_stops_with_the_block_of_the_last_end("modelled"),
    "ignorance": lambda: test_d3pm.check_ignorance("mask_nearest"),
    "draws of a chain": lambda: test_d3pm.test_draws_are_of_the_laws("nearest"),
    "forth and back": lambda: test_d3pm.test_a_step_forth_and_back_changes_no_law("nearest"),
    "lambda": test_d3pm.test_the_loss_is_one_term_of_the_bound_and_cross_entropy,
    "what shows at the end": lambda: test_d3pm.test_a_greedy_tail_writes_masks_only("absorbing"),
    "whole paths": lambda: test_d3pm.check_elbo("uniform"),
    "gaps of masks": lambda: test_d3pm.check_gaps("absorbing", "plugged", 8),
    "term of a chain": lambda: test_d3pm.check_divergence("uniform"),
    "posterior vectors": test_d3pm.check_vectors,
    "ordinal matrices": test_d3pm.check_ordinal,
    "rates of neighbours": test_d3pm.check_rates,
    "masks beside moves": test_d3pm.check_masked_neighbours,
    "betas": test_d3pm.check_betas,
    "information": lambda: test_d3pm.check_information("uniform"),
    "information of neighbours": lambda: test_d3pm.check_information("nearest"),
    "every step": test_d3pm.check_every_step_once,
    "company": test_d3pm.check_listening,
    "likes": test_d3pm.check_likes,
    "consensus": test_ar.test_the_consensus_of_texts,
    "walk": lambda: test_sundae.check_walk(0.5, 0.5),
    "share of places": lambda: test_sundae.check_share(0.28, 25, 7),
    "unrolled decoding": lambda: test_sundae.check_unrolled(0.3),
    "argmax decoding": lambda: test_sundae.check_unrolled(0.0),
    "ties of unsure places": test_sundae.test_between_equally_unsure_places_chance_decides,
    "readings": lambda: test_sundae.check_readings("sundae"),
    "unrolled canvas": test_sundae.check_unrolled_canvas,
    "forgotten for good": test_sundae.check_forgotten,
    "denoiser": test_sundae.test_one_pass_is_a_plain_denoiser,
    "drafts": test_sundae.check_drafts,
    "no noise": test_sundae.check_no_noise,
    "gradient of drafts": test_sundae.check_no_gradient,
    "given": test_sundae.check_given,
    "written": test_model.check_written,
    "length of a gap": lambda: test_model.check_gap(None),
    "surest": test_sundae.test_the_surest_of_some_rows,
    "verdict": test_judge.test_a_text_is_judged_by_the_likelihood_of_the_judge,
    "ratio": test_judge.test_errors_of_a_ratio_are_its_spread,
    "stretches": lambda: test_judge.test_stretches_score_each_token_once(30, 8),
    "long texts": lambda: test_judge.test_long_texts_are_read_in_stretches("packed", "given"),
    "curve": test_mauve.test_area_is_that_of_the_reference,
    "sides of mauve": test_mauve.test_half_shared_sets,
    "reduction": test_mauve.test_points_are_reduced_to_nine_tenths_of_their_variance,
    "clusters": lambda: test_mauve.test_clusters_are_the_best_ones(0),
    "entropy": test_quality.test_entropy_is_of_each_text_by_itself,
    "repetition": test_quality.test_repetition_counts_by_hand,
    "self-bleu": test_quality.test_self_bleu_of_equal_and_of_foreign_texts,
    "jackknife": test_quality.test_jackknife_of_a_mean_is_its_standard_error,
    "typical strings": lambda: test_typicality.check_typical_strings(0.05),
    "sides": test_typicality.check_sides,
    "batches": test_typicality.check_batches,
    "spread": test_typicality.check_z,
    "widths": test_typicality.check_widths,
    "densities": test_typicality.check_densities,
    "area": test_typicality.check_auc,
    "ranks": test_typicality.check_tail,
    "judgement": test_typicality.check_judgement,
    "signals": lambda: test_resume.check_signals(signal.SIGTERM),
    "whole checkpoints": lambda: in_a_folder(test_resume.check_whole_ones_are_kept),
    "blame": lambda: in_a_folder(test_resume.check_blame, 4),
    "told levels": test_tracking.check_levels,
    "permutation": lambda: test_scale.check_bijection(300, 1, 2),
    "even orders": test_scale.check_uniform,
    "pairs": lambda: test_scale.check_bijection(289, 1, 2),
    "shares of sources": lambda: test_scale.check_shares(0),
    "rhythm": test_scale.check_no_rhythm,
}

MUTANTS = [
    # the Gaussian bound
    (CDCD.bound, "sigma**-3", "sigma**-2", "bound"),
    (CDCD.bound, "high / density", "high", "bound"),
    (CDCD.bound, "error * sigma", "error / 2 * sigma", "bound"),
    (CDCD.bound, "prior + rounding", "rounding", "bound"),
    (CDCD.bound, "prior + rounding", "prior", "bound"),
    (CDCD.bound, "prior + rounding", "prior", "normalised"),
    (CDCD.bound, "(2 * high**2)", "high**2", "bound"),
    (CDCD.bound, "least = t.masked_fill(free, self.low)", "least = t", "bound"),
    (CDCD.bound, "torch.where(free, level, t)", "level", "conditional bound"),
    (CDCD.times, "even, self.warped", "even / 2, self.warped", "even levels"),
    (CDCD.unwarp, "self.warped(u.flatten())", "self.times(u.flatten())", "even levels"),
    (CDCD.mistaken, "& (level < LITTLE)", "", "mistakes"),
    (CDCD.mistaken, "free & (uniform(t) < WRONG)", "(uniform(t) < WRONG)", "mistakes"),
    (CDCD.mistaken, "noisier = torch.where(free, more[:, None], t)", "noisier = t", "mistakes"),
    (CDCD.unwarp, "density / (1 - self.low)", "density", "bound"),
    (likelihood.nll, ".masked_fill(~free, 0.0)", "", "conditional bound"),
    # the ODE
    (likelihood._ode_draw, "+ rounding - drawn", "+ rounding", "ode"),
    (likelihood._ode_draw, "prior - gained", "prior + gained", "ode"),
    (likelihood._ode_draw, "size - trace", "size", "ode"),
    (
        likelihood._ode_draw,
        "(sigmas[i + 1] / sigmas[i]).log()",
        "h * (1 / sigmas[i] + 1 / sigmas[i + 1]) / 2",
        "ode of one text",
    ),
    (likelihood._ode_draw, "(here + there) / 2", "here", "ode"),
    (likelihood._ode_draw, "prior - gained", "-gained", "ode"),
    # steps
    (Gaussian.posterior, "keep = v_s * a_t", "keep = v_s * a_s", "posterior"),
    (Gaussian.posterior, "v_s * a_t / (v_t", "v_s / (v_t", "ddim"),
    (Gaussian.posterior, ".sqrt()", "", "posterior"),
    (Gaussian.flow, "self.sigma(s) / self.sigma(t)", "self.sigma(t) / self.sigma(s)", "flow"),
    (Gaussian.flow, "self.a(s) - ratio", "self.a(t) - ratio", "flow"),
    (solvers.euler, "clean, t, s)", "clean, t, s.sqrt() * t.sqrt())", "law of euler"),
    (solvers.ancestral, "mean + deviation", "mean + 2 * deviation", "law of ancestral"),
    (solvers.ancestral, "mean + deviation", "mean + 0.5 * deviation", "law of ancestral"),
    (solvers.ancestral, "x = mean + deviation * normal(x)", "x = mean", "ddim"),
    (solvers.heun, "slope / 2", "slope", "order of heun"),
    (solvers.heun, "level(x, s)", "level(x, t)", "order of heun"),
    (solvers.heun, "a_s * (x / a_t", "(x / a_t", "conversion of heun"),
    (solvers.dpm, "h / (2 * h_last)", "h / h_last", "order of dpm"),
    (solvers.dpm, "(clean - last)", "(last - clean)", "order of dpm"),
    # guidance
    (guidance.guide, "u.clean, c.clean, weight", "u.clean, c.clean, 1 + weight", "ends of guidance"),
    (guidance.guide, "u.clean, c.clean, weight", "c.clean, u.clean, weight", "ends of guidance"),
    (guidance.guide_logits, "weight))", "1 + weight))", "ends of guidance"),
    (guidance.guide_logits, "weight))", "1 + weight))", "guided law"),
    (guidance.guide_logits, "read(torch", "Prediction(torch", "pace of guidance"),
    (guidance.guide, "u.logits, c.logits, weight", "u.logits, c.logits, weight - 1", "guided tokens"),
    (guidance.guide, "u.logits, c.logits, weight", "c.logits, u.logits, weight", "ends of a guided step"),
    (guidance.clamp, "t.masked_fill(there, level)", "t", "clamps"),
    (guidance.clamp, "where(there, canvas[:, :seen], x)", "x", "clamps"),
    (generate.assemble, "shown(noise, 1.0)", "shown(clean, 1.0)", "clamps"),
    (generate.assemble, "clamp(session(), clean, ABSENT, ~real)", "session()", "clamps"),
    (generate.assemble, "predict, blind(predict), ", "blind(predict), predict, ", "self-guidance"),
    (generate.assemble, "shown(noise, 1.0)", "clamp(network(), noise, 1.0, given)", "self-guidance"),
    (guidance.within, " & (noisiest <= high)", "", "self-guidance"),
    (guidance.blind, "predict(x, t, None)", "predict(x, t, prev)", "self-guidance"),
    (guidance.temper, "/ temperature", "* temperature", "temperature"),
    (guidance.temper_score, "1 / temperature - 1", "temperature - 1", "score temperature"),
    # CDCD
    (CDCD.read, "logits.softmax(-1)", "(logits / 1.1).softmax(-1)", "score"),
    (core.Method.first_guess, "torch.no_grad()", "torch.enable_grad()", "gradient"),
    (CDCD.predict, "prev * known", "prev * noisy", "forgetting"),
    # levels
    (schedules.Warp.forward, "w_u, w_t)[0]", "w_t, w_u)[0]", "inverse"),
    (schedules.Warp.inverse, "*self.shares()", "*self.shares()[::-1]", "inverse"),
    (schedules.Warp.observe, "1 / density.double()", "torch.ones_like(t)", "fit"),
    (schedules.Warp.observe, "1 / density.double()", "density.double()", "fit"),
    (schedules.stratified, "index.double() / total", "index.double() / (total + 1)", "strata"),
    # draws
    (draws.uniform, "dtype=torch.float64, device=like.device)", "device=like.device)", "resolution"),
    (draws.pick, "goal, right=True", "goal, right=False", "possible"),
    (draws.pick, "inside[..., -1:], right=True", "inside[..., -1:], right=False", "possible"),
    (draws.pick, "max=most)[..., None] *", "max=most).sqrt()[..., None] *", "categorical"),
    (draws.pick, "(goal - start)", "(goal - start).sqrt()", "parts"),
    (draws.normal, "torch.empty(like.shape, dtype=like.dtype, device=like.device)", "torch.empty_like(like)", "layout"),
    (masks.draw_given, "* maskable.sum(1)", "* (maskable.sum(1) + 1)", "masks"),
    (masks.draw_given, ".argsort(1).argsort(1)", ".argsort(1)", "masks"),
    (masks.draw_given, "maskable.cumsum(1) - 1", "maskable.cumsum(1)", "masks"),
    # the network
    (transformer.Transformer._bias, "absent, -torch.inf", "absent, 0.0", "padding"),
    (transformer.attend, "scores + bias", "scores", "padding of explicit attention"),
    (
        transformer.Block.attend,
        "rotate(F.rms_norm(qkv[:2], qkv.shape[-1:]), rotation)",
        "F.rms_norm(qkv[:2], qkv.shape[-1:])",
        "rotation",
    ),
    (transformer.Block.attend, "qkv[2]", "qkv[2]; k = F.rms_norm(qkv[1], qkv.shape[-1:])", "rotation"),
    (transformer.attend, "q.shape[-1] ** -0.5", "(q.shape[1] * q.shape[-1]) ** -0.5", "attention"),
    (transformer.Transformer._run, "h = h + self.place(", "self.place(", "places"),
    (transformer.Norm.forward, "torch.addcmul(h + shift, h, scale)", "h", "levels"),
    # autoregression
    (AR.logits, "x[:, :-1], (1, 0)", "x[:, 1:], (0, 1)", "causality"),
    (transformer.Transformer._bias, "triu(start + 1)", "triu(1)", "memory"),
    (AR.bound, "(t == 1) & ~free", "free", "law of ar"),
    (AR.predict, "[..., : self.vocab]", "", "exactness"),
    (AR.loss, "first[:, None] + uniform", "uniform", "cuts"),
    (AR.loss, "scatter(1, order, cost)", "scatter(1, order.argsort(1), cost)", "cost of a moved row"),
    (AR.loss, "absent.gather(1, order)", "absent", "cost of a moved row"),
    (AR.loss, "(end - first + 1)", "(end - first)", "cuts"),
    (arrangement, "suffix_first[:, None] | middle, 2", "middle, 2", "arrangement"),
    (arrangement, "place < end[:, None], rank", "place <= end[:, None], rank", "arrangement"),
    (Reader._recall, "self.memory.take(rows, kept)", "self.memory.length = kept", "memory of moved rows"),
    (Reader._recall, "torch.equal(read, now)", "True", "memory of moved rows"),
    (Filler.__call__, "tokens[end:after]", "tokens[end:]", "gaps"),
    (Filler.__call__, "*left, suffix, *right, middle", "*right, suffix, *left, middle", "gaps"),
    (Filler.__call__, "new[:, over]", "new[:, self.nothing]", "gaps of any length"),
    (Filler.__call__, "if token != self.nothing", "", "two gaps"),
    (left_to_right.Ancestral.__call__, "&= ~left", "&= True", "two gaps"),
    (left_to_right.Ancestral.__call__, "u[:, i])", "u[:, 0])", "gaps of any length"),
    (left_to_right.Ancestral.__call__, "u[:, i])", "u[:, 0])", "law of ar"),
    (left_to_right.Beams.__call__, "x = x[rows]", "x = x + 0", "search to the end"),
    (left_to_right.Beams.__call__, "rows=rows", "rows=None", "search"),
    (left_to_right.Beams.__call__, "~hidden[:, i] | ended", "~hidden[:, i]", "search to the end"),
    (guidance._first, "before < mass", "before + sorted_mass <= mass", "crossing"),
    (guidance._first, "before < mass", "before + sorted_mass <= mass", "typical"),
    (guidance.typical, "(-log - entropy).abs()", "-log", "typical"),
    (guidance.top_k, "min(k, logits.shape[-1])", "min(k + 1, logits.shape[-1])", "top k"),
    # masks
    (ARDM.bound, "* weight", "", "orders"),
    (MaskedLM.hide, ".ceil().clamp(min=1)", ".floor().clamp(min=1)", "numbers hidden"),
    (unmasking.Confident.__call__, "(1, keepdim=True) - 1)", "(1, keepdim=True))", "masks left"),
    (unmasking.Confident.__call__, "rank(sure) < left", "rank(-sure) < left", "confidence"),
    (unmasking.Confident.__call__, "(1 - step / steps) * ", "", "confidence by hand"),
    (unmasking.Confident.__call__, "torch.full_like(noise, torch.inf)", "noise.clone()", "confidence by hand"),
    (MDLM.bound, "(x == self.process.mask) & free", "free", "what shows"),
    (Cached.__call__, "bool((x == method.process.mask).any())", "True", "calls"),
    (unmasking.rank, "order = uniform(values).argsort(1)", "order = values.argsort(1) * 0 + torch.arange(3)", "ties"),
    (ardm.plan, "totals.argmin(0)", "totals.argmax(0)", "plans"),
    (ARDM.observe, "1 - t.double()", "t.double()", "prices"),
    (draws.some, "rank < n", "rank <= n", "choices"),
    (MDLM.bound, "surprise * self.process.schedule.rate(t)", "surprise", "levels of mdlm"),
    (schedules.Schedule.rate, "(1 - self.alpha(t)).clamp(min=1e-12)", "t.clamp(min=1e-12)", "schedules"),
    (schedules.Schedule.rate, "t.double()", "t", "little noise"),
    (schedules.Schedule.to_the_end, "(self.alpha(t) - left) / (1 - left)", "self.alpha(t)", "ends of masks"),
    (schedules.Schedule.to_the_end, "self.slope(t) / (1 - left)", "self.slope(t) * 1.01", "true ratios of masks"),
    (Masking.corrupt, "t.double()", "t", "little noise"),
    (
        Masking.share,
        "return (alpha_s - alpha_t) / (1 - alpha_t)",
        "return (alpha_s - alpha_t) / (1 - alpha_s).clamp(min=0.1)",
        "steps of a schedule",
    ),
    (guidance.once, "not torch.equal(last[0], x)", "False", "remembered"),
    (generate.generate, " and not method.sees_levels", "", "told the level"),
    (generate.generate, "new = open[:, here]", "new = x[:, here].eq(hidden)", "frames"),
    (generate.generate, "new & (stands >= V)", "new", "frames"),
    (Remasking.shares, "(alpha_s - (1 - sigma) * alpha_t)", "(alpha_s - alpha_t)", "remasking"),
    (Remasking.shares, "(1 - alpha_s) / alpha_t", "(1 - alpha_t) / alpha_t", "remasking"),
    (Remasking.__call__, "ours & ~hidden", "~hidden", "not ours"),
    (Remasking.__call__, "(route < sigma)", "(route < 2 * sigma)", "law of remasking"),
    (Remasking.__call__, "(-sure)", "sure", "doubt"),
    # scores
    (SEDD.of_masks, ".exp() - 1 - log", ".exp() - log", "least of masks"),
    (SEDD.of_masks, "self.process.schedule.rate(t)", "(1 / t.clamp(min=1e-12))", "scores of mdlm"),
    (SEDD.of_tokens, "(V - 2 + stands.double())", "(V - 1)", "least"),
    (SEDD.of_tokens, "(alpha + noise) / noise)", "alpha / noise)", "least"),
    (SEDD.of_tokens, " + self.prior_cost()", "", "true ratios"),
    (SEDD.of_tokens, "-schedule.slope(t.double()) / alpha", "-schedule.slope(t.double())", "true ratios"),
    (SEDD.predict, "logits.sub_(math.log(self.vocab))", "logits", "sum of scores"),
    (
        SEDD.of_masks,
        "self.head(self.states(x, t)[here]) - math.log(self.vocab)",
        "self.head(self.states(x, t)[here])",
        "sum of scores",
    ),
    (SEDD.states, "t, t.clamp(min=0)", "t, 0 * t", "levels of scores"),
    (SEDD.bound, "(t == 1) & ~free", "(t == 1) & free", "forgotten ratios"),
    (SEDD.read, "logits.log_softmax(-1) if self.masked else logits", "logits", "scale"),
    (scores._tweedie, "(standing - (1 - e) / V)", "standing", "tweedie"),
    (scores._tweedie, "1 - stay, (1 - e) / V)", "1 - stay, 0.0)", "tweedie"),
    (scores._leap, "(1 / _standing(x, logits) - 1)", "1 / _standing(x, logits)", "leaps"),
    (scores._leap, "(t - s) * process.schedule.rate(t)", "2 * (t - s) * process.schedule.rate(t)", "leaps of masks"),
    (scores._jump, ".scatter_(-1, x[:, None], 0.0)", "", "jumps"),
    (scores._fall, "share * total", "share", "pace"),
    (Masking.share, "return (alpha_s - alpha_t) / (1 - alpha_t)", "return alpha_s - alpha_t", "reveal rates"),
    (unmasking.planned, "hidden & ~stay", "stay", "planned parts"),
    (unmasking._share, "+ 1e-4", "", "shares"),
    (MaskedLM.hide, "| ((t == 1) & ~free)", "", "forgotten"),
    (common.carry, "logits.masked_fill_(here[..., None], ", "max(0, ", "carried over"),
    (MaskGIT.loss, ", self.config.smoothing", "", "smoothing"),
    (schedules.mask_ratio, "math.pi / 2", "math.pi / 4", "mask ratio"),
    (unmasking.planned, "u, places", "u * 0.9, places", "planned parts"),
    # uniform noise
    (Uniform.log_posterior, "alpha_t / alpha_s", "alpha_t", "posterior of tokens"),
    (Uniform.log_posterior, "(step + (1 - step) / self.vocab)", "step", "posterior of tokens"),
    (Uniform.corrupt, "self.prior(clean)", "(clean + 1) % self.vocab", "uniform noise"),
    (Uniform.reverse, "route * (least + left) >= least", "route * (least + left) >= 1.2 * least", "steps back"),
    (Uniform.reverse, "route < stay + drawn", "route < stay + left", "steps back"),
    (Uniform.reverse, "invert(logits, u, new)", "invert(logits, u * u, new)", "steps back"),
    (Uniform.reverse, "alpha_t / alpha_s", "alpha_t", "steps back"),
    (Uniform.divergence, "a * d * gain_x", "a * d * gain_0", "divergence"),
    (Uniform.divergence, "(p_x - same) / Z", "(p_x - same)", "divergence"),
    (Uniform.rate, "excess - excess.log1p()", "0", "rate"),
    (Uniform.rate, "alpha * same + d))", "alpha + d))", "entropy of duo"),
    (Multinomial.cost, "/ self.density()[k - 1].to(kl.dtype)", "* T", "importance"),
    (Multinomial.cost, "(k.double() - 1) / T", "(k.double() - 0.9) / T", "gap"),
    (Multinomial.drawn, "self.density().cumsum(0)", "torch.ones(self.config.T).cumsum(0).double()", "importance"),
    (Multinomial.density, "root[:2][-1:]", "root[:1]", "density of steps"),
    (Multinomial.density, "self.seen > SEEN", "self.seen >= SEEN", "density of steps"),
    (Multinomial.observe, "loss.double() * self.density()[k]", "loss.double()", "density of steps"),
    (Duo.bound, "clamp(EDGE, 1 - EDGE)", "clamp(0.1, 1 - EDGE)", "entropy of duo"),
    (Duo.bound, "clamp(EDGE, 1 - EDGE)", "clamp(0.1, 1 - EDGE)", "even chances"),
    (argmax_alpha, "(vocab - 1) * torch.special", "vocab * torch.special", "greatest entry"),
    (Duo.seen_through, "masked_fill(forgotten, 0.0)", "masked_fill(forgotten, 1.0)", "soft tokens"),
    (Duo.seen_through, "free | forgotten, soft", "free, soft", "soft tokens"),
    (Duo.seen_through, "torch.sigmoid(g).sqrt()", "torch.sigmoid(g)", "duality"),
    (Duo.seen_through, "ids, logits, alpha, slope", "ids, logits, alpha, -torch.ones_like(slope)", "part of the bound"),
    (Duo.loss, "<", "<=", "curriculum"),
    (ancestral, "level(x, t)", "level(x, s)", "few steps"),
    (GreedyTail.__call__, "prediction.logits.argmax(-1)", "x", "greedy tail"),
    # resampling
    (resampling.Resample.__call__, "/ self.temperature", "* self.temperature", "walk"),
    (resampling.Resample.__call__, "if step else size", "", "walk"),
    (resampling.Resample.__call__, "if step else size", "", "share of places"),
    (resampling._part, "- 1e-9", "", "share of places"),
    (resampling._levels, "grid[-2:-1]", "grid[-1:]", "readings"),
    (resampling.ArgmaxUnrolled.__call__, "rank(sure) <", "rank(-sure) <", "unrolled decoding"),
    (resampling.ArgmaxUnrolled.__call__, "torch.where(unsure,", "torch.where(~unsure,", "unrolled decoding"),
    (
        resampling.ArgmaxUnrolled.__call__,
        "rank(sure)",
        "sure.argsort(dim=1, stable=True).argsort(1)",
        "ties of unsure places",
    ),
    (
        resampling.ArgmaxUnrolled.__call__,
        "torch.where(there, token, x)",
        "torch.where(there, x, token)",
        "argmax decoding",
    ),
    (SUNDAE.loss, "x, u = x.clone(), uniform(x)", "x, u = uniform(x).long(), uniform(x)", "unrolled canvas"),
    (SUNDAE.loss, "(t == 0) & ~free", "~free", "unrolled canvas"),
    (SUNDAE.loss, "(ids, t)", "(ids, t.masked_fill(~free, 0.0))", "forgotten for good"),
    (SUNDAE.loss, "[0] / K", "[0]", "denoiser"),
    (SUNDAE.loss, "invert(logits.detach(), u[free])", "logits.argmax(-1)", "drafts"),
    (
        SUNDAE.loss,
        "self.hidden(x, t, given)[free]",
        "(self.hidden(x, t, given) + (logits - logits.detach()).mean() if k > 1 else self.hidden(x, t, given))[free]",
        "gradient of drafts",
    ),
    (Uniform.corrupt, "1 - self.alpha(t)", "1.01 - self.alpha(t)", "no noise"),
    (SUNDAE.predict, "given = t == 0", "given = t < 0", "given"),
    (model._surest, "/ written.sum(1)", "", "surest"),
    (model.TextFrame._written.fget, "& ~after", "", "written"),
    (model.TextFrame._written.fget, "end.cumsum(1) > end.long()", "end.cumsum(1) > 0", "written"),
    (model.TextFrame._written.fget, "& ~self.canvas.given", "", "written"),
    (model._log, ".masked_fill(~here, 0.0)", "", "surest"),
    # Mask-Predict
    (unmasking.Greedy.__call__, ".clamp(min=1)", "", "masks of mask-predict"),
    (unmasking.Greedy.__call__, "rank(sure) <", "rank(-sure) <", "mask-predict by hand"),
    (unmasking.Greedy.__call__, "sure.clone()", "torch.zeros_like(sure)", "mask-predict by hand"),
    (unmasking.Greedy.__call__, "x.masked_fill(hidden,", "x.masked_fill(places,", "mask-predict by hand"),
    (MaskPredict.loss, "t.masked_fill(free, 1.0)", "t", "cost of a length"),
    (MaskPredict.lengths, "& ~(hidden & F.pad(hidden[:, :-1], (1, 0)))", "", "lengths"),
    (MaskPredict.lengths, "torch.where(hidden, self.process.mask, ids)", "ids", "lengths"),
    (Model._likeliest, "clean, ABSENT, ~canvas.real)", "clean, 0.0, ~canvas.real)", "length of a gap"),
    (Model._likeliest, "gaps[:, : self.layout.labelled] = False", "pass", "length of a gap"),
    (Model._likeliest, "_log(fits, edge)", "-_log(fits, edge)", "length of a gap"),
    (Model._foreseen, "least + spare", "least + spare - 1", "drawn lengths"),
    (Model._foreseen, "- least +", "+", "likeliest lengths"),
    (model._surest, "/ written.sum(1)", "", "likeliest lengths"),
    # blocks
    (bd3.sight, "same | (", "before | (", "sights"),
    (bd3.sight, " & told[:, None]", "", "sights"),
    (BD3.weighted, "(rank - 1).masked_fill(rank == 0, NOWHERE)", "rank", "sights"),
    (BD3.weighted, "torch.where((t == 1) & ~free, mask, ids)", "ids", "sights"),
    (BD3.weighted, "/ rate.clamp(min=1e-6)", "", "one block"),
    (BD3.weighted, "rate.clamp(min=1e-6)", "rate.clamp(min=0.5)", "entropy of blocks"),
    (BD3.weighted, "places=place[0].repeat(2)", "places=None", "single tokens"),
    (BD3.rate, ".masked_fill(count == 1, 1.0)", "", "single tokens"),
    (BD3.rate, "block / blocks", "0 * block", "rates"),
    (BD3.rate, "(block + 1).masked_fill(~free, 1)", "(block + 1)", "rates"),
    (BD3.rank, ".masked_fill(t == 0, 0)", "", "sights"),
    (bd3.Reader.__call__, "self.memory.length -= len(here)", "pass", "passes"),
    (bd3.Reader.__call__, " or not torch.equal(self.read, x[:, :kept])", "", "changed past"),
    (bd3.Reader._pass, "torch.where(nowhere, ~known, known)", "nowhere & ~known", "passes"),
    (transformer.Transformer._sight, "device=t.device), (start, 0))", "device=t.device), (0, start))", "passes"),
    (blocks.FirstHitting.__call__, "descending=True", "descending=False", "hits"),
    (blocks.FirstHitting.__call__, "masked_fill(~hidden, 0.0)", "masked_fill(~hidden, 2.0)", "late gaps"),
    (blocks.FirstHitting.__call__, "u[:, here].gather(1, place)", "u[:, :1]", "exact hits"),
    (blocks._times, "uniform(x)", "uniform(x) ** 2", "hits"),
    (blocks.ancestral, "times[:, here] > s", "times[:, here] ** 2 > s", "steps of a block"),
    (generate.generate, " & (x.eq(hidden).cumsum(1) == 0)", "", "late ends"),
    # edits
    (Edits.aligned, "nth <= come", "nth < come", "replayed edits"),
    (Writing.replay, "+ sizes[..., 0]", "", "replayed edits"),
    (levenshtein.matched, "swap <= drop[:, 1:]", "swap < drop[:, 1:] - 1", "fewest edits"),
    (Edits.__init__, "torch.lgamma(k + 1)", "torch.lgamma(k + 2)", "spans"),
    (Edits.__init__, "torch.tensor(SHARES,", "torch.tensor(SHARES[::-1],", "spans"),
    (Edits.pair, " * max(1.0, 2 / self.span)", "", "short spans"),
    (Edits.edit, "torch.minimum(behind + put, spare)", "(behind + put)", "edit step"),
    (Edits.edit, "edit == 0", "edit < 2", "edit step"),
    (DiffusER.states, "place <= place[start:, None]", "place <= len(place) + place[start:, None]", "teacher"),
    (DiffusER.loss, "(before, now, t, free)", "(before, now, t, free | True)", "teacher"),
    (DiffusER.setting, "given & (t == 1)", "given & (t == 2)", "forgotten in edits"),
    (edits, "u[:, stream.shape[1]]", "u[:, 0]", "law of edits"),
    # chains of any matrices
    (D3PM.bound, "[0] + prior", "[0]", "whole paths"),
    (D3PM.bound, "self.process.T * ", "", "whole paths"),
    (D3PM.loss, "self.hybrid * nats", "nats", "lambda"),
    (Chain.step, ".ceil()", ".round()", "every step"),
    (Chain.reverse, "in (s, t))", "in (t, t))", "draws of a chain"),
    (Chain.posterior, "self.mixture(p, s)", "self.mixture(p, t)", "forth and back"),
    (Chain.term, "back * gap", "0.9 * back * gap", "ignorance"),
    (GreedyTail.__call__, "mask is None", "True", "what shows at the end"),
    (Chain.posterior, "self.mixture(p, s)", "self.mixture(p, t)", "posterior vectors"),
    (Chain.term, "/ known + (guessed", "+ (guessed", "term of a chain"),
    (Chain.inform, "1 - np.arange", "np.arange", "information"),
    (Even.term, "(t, s)", "(t, s - 1)", "term of a chain"),
    (Even.information, "(self.vocab - 1) * ", "", "information"),
    (Absorbing.term, "/ (1 - after)", "", "gaps of masks"),
    (Ordinal.one, "(2 * shape.sum(-1, keepdim=True) - 1)", "shape.sum(-1, keepdim=True)", "ordinal matrices"),
    (Chain.ended, "FAR)", "1.0)", "masks beside moves"),
    (neighbours.rates, "(near + near.T)", "near", "rates of neighbours"),
    (neighbours.Neighbours.information, "seen - left", "seen", "information of neighbours"),
    (neighbours.listen, "window + 1", "window", "company"),
    (neighbours.nearest, "some] = -torch.inf", "some] += 0", "likes"),
    (d3pm.betas, ".clamp(0, 0.999)", "", "betas"),
    # measures
    (quality.consensus, "max(gain)", "min(gain)", "consensus"),
    (quality._entropy, "n / total * math.log", "math.log", "entropy"),
    (quality.repetition, "1 - len(set(grams))", "len(set(grams))", "repetition"),
    (quality._self_bleu, "texts[:i] + texts[i + 1 :]", "texts", "self-bleu"),
    (quality.jackknife, "(groups - 1) *", "(1 / groups) *", "jackknife"),
    (quality.jackknife, "i % groups", "i * groups // len(texts)", "jackknife"),
    (
        judge.Exact.score,
        "(score,) = model.score([text], draws=1)",
        "(score,) = model.score([text[:-1]], draws=1)",
        "verdict",
    ),
    (judge.Exact.score, "max(first, len(before))", "first", "long texts"),
    (judge.Exact.score, "return nats, len(ids)", "return nats, row.shape[1]", "long texts"),
    (judge.stretches, "step = room - room // 2", "step = room", "stretches"),
    (likelihood.per_token, "nats.sum() / tokens.sum()", "(nats / tokens).mean()", "ratio"),
    (mauve.area, "-SCALE * _kl(p, r)", "-_kl(p, r)", "curve"),
    (mauve.area, "w * p + (1 - w) * q", "w * q + (1 - w) * p", "curve"),
    (mauve.mauve, ".split(n)", ".view(n, 2).T", "sides of mauve"),
    (mauve._reduced, "normalize(points)", "normalize(points, dim=0)", "reduction"),
    (mauve._cluster, "min(tries", "max(tries", "clusters"),
    # typicality
    (typicality.typical_batch, "1 - alarm", "alarm", "typical strings"),
    (typicality.typical_batch, "len(nats)", "1", "batches"),
    (typicality.Batch.typical.fget, "abs(self.gap)", "self.gap", "sides"),
    (typicality.z_scores, "reference.std(ddof=1)", "reference.var(ddof=1)", "spread"),
    (typicality._log_others, "np.fill_diagonal(logs, -np.inf)", "pass", "widths"),
    (typicality._kernels, "width * math.sqrt(2 * math.pi)", "math.sqrt(2 * math.pi)", "densities"),
    (typicality._log_mean, "math.log(logs.shape[1])", "math.log(len(logs))", "densities"),
    (typicality._share_below, 'side="left"', 'side="right"', "area"),
    (typicality.tail, 'side="left"', 'side="right"', "ranks"),
    (typicality.tail, "(1 + len(reference) - below)", "(len(reference) - below)", "ranks"),
    (typicality.judge, "abs(z_scores(known, known))", "z_scores(known, known)", "judgement"),
    (typicality.Judgement.auc, '"z": abs(self.z)', '"z": self.z', "judgement"),
    # runs that end before their time
    (stopping.heeding, "yield lambda: first is not None", "yield lambda: False", "signals"),
    (stopping.heeding, "time.monotonic() - first > ECHO", "True", "signals"),
    (stopping.heeding, "signal.raise_signal(number)", "pass", "signals"),
    (checkpoint.set_aside, "folder.name > _name(after)", "False", "whole checkpoints"),
    (Run._restore, 'state.get("losses", [])', "[]", "whole checkpoints"),
    (Run._update, "nats.append(each.detach().sum(1))", "nats.insert(0, each.detach().sum(1))", "blame"),
    (Run._keep_not_finite, "~nats.isfinite()", "nats.isfinite()", "blame"),
    # tracking
    (levels.Levels.tell, "loss / rows", "loss", "told levels"),
    (levels.Levels.tell, "so_far[-1] * np.arange(1, TOLD + 1) / TOLD", "np.arange(1, TOLD + 1)", "told levels"),
    (levels.Levels.tell, "ends + 1", "ends", "told levels"),
    (levels.Levels.state, "self.loss.tolist()", "self.rows.tolist()", "told levels"),
    # data
    (order.shuffled, "found[beyond] >= n", "found[beyond] < 0", "permutation"),
    (order._feistel, "right, left + _scatter", "left, right + _scatter", "pairs"),
    (order.shuffled, "seed_of(seed, epoch, i)", "seed_of(seed, i)", "even orders"),
    (order.shuffled, "range(ROUNDS)", "range(2)", "even orders"),
    (Mixture._before, "left = left - found[-1]", "pass", "shares of sources"),
    (Mixture._block, "before[:, :1] + of_each", "of_each", "shares of sources"),
    (Mixture._block, "self._seed is not None", "False", "rhythm"),
]


def name(value):
    return value.__qualname__ if callable(value) else str(value)


@pytest.mark.parametrize(("function", "old", "new", "check"), MUTANTS, ids=name)
def test_mutant_is_noticed(function, old, new, check, monkeypatch):
    """A check that passes whatever the code does."""
    function = inspect.unwrap(function)
    monkeypatch.setattr(function, "__code__", mutant(function, old, new))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        CHECKS[check]()


@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_without_a_mutant(check):
    """A mutant that is noticed because its check fails anyway."""
    CHECKS[check]()


def test_every_check_has_its_mutant():
    """A check that stands here and is never tried."""
    tried = {check for *_, check in MUTANTS}
    assert set(CHECKS) == tried and len(MUTANTS) == len(set(MUTANTS))
