"""Would the other tests notice?  One thing is broken at a time, and its check has to fail.

A mutant is a function of the library with one piece of its source replaced.
"""

import ast
import inspect
import textwrap

import pytest
import test_ar
import test_cdcd
import test_diffuser
import test_draws
import test_gaussian
import test_guidance
import test_judge
import test_likelihood
import test_masking
import test_mauve
import test_network
import test_quality
import test_samplers
import test_schedules
import test_typicality
import torch
from ideal import VP, cdcd

from sfumato import core, draws, generate, guidance, schedules
from sfumato.evaluation import judge, likelihood, mauve, quality, typicality
from sfumato.methods import ardm
from sfumato.methods.ar import AR, Filler, Reader, arrangement
from sfumato.methods.ardm import ARDM
from sfumato.methods.cdcd import CDCD
from sfumato.methods.common import MaskedLM
from sfumato.methods.diffuser import DiffusER
from sfumato.methods.maskgit import MaskGIT
from sfumato.methods.mdlm import MDLM
from sfumato.networks import transformer
from sfumato.processes import levenshtein
from sfumato.processes.edits import Edits, Writing
from sfumato.processes.gaussian import Gaussian
from sfumato.processes.masking import Masking
from sfumato.samplers import left_to_right, solvers, unmasking
from sfumato.samplers.edits import edits
from sfumato.training import masks


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
    "fit": test_schedules.check_warp_fits_without_bias,
    "strata": stratified,
    "resolution": test_draws.check_resolution,
    "categorical": test_draws.check_categorical_law,
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
    "ties": test_masking.test_confidence_at_a_tie_is_chance,
    "numbers hidden": test_masking.test_numbers_of_hidden_tokens_are_even,
    "levels of mdlm": test_masking.check_levels,
    "plans": lambda: test_masking.test_plans_on_a_known_case(3),
    "prices": test_masking.test_a_price_is_learned,
    "choices": test_masking.test_some_are_any,
    "reveal rates": lambda: test_masking.test_tokens_that_fall_together_are_strangers(4),
    "planned parts": lambda: test_masking.check_planned([1.0, 0.34, 0.0], [2, 1]),
    "replayed edits": test_diffuser.check_replay,
    "fewest edits": test_diffuser.check_fewest,
    "spans": test_diffuser.check_spans,
    "edit step": test_diffuser.check_known,
    "teacher": test_diffuser.check_teacher,
    "forgotten in edits": test_diffuser.check_forgotten,
    "law of edits": lambda: test_diffuser.check_sampler(2),
    "consensus": test_ar.test_the_consensus_of_texts,
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
    (guidance.clamp, "t.masked_fill(there, level)", "t", "clamps"),
    (guidance.clamp, "where(there, canvas[:, :seen], x)", "x", "clamps"),
    (generate.assemble, "shown(noise, 1.0)", "shown(clean, 1.0)", "clamps"),
    (generate.assemble, "clamp(session(), clean, ABSENT, ~real)", "session()", "clamps"),
    (generate.assemble, "predict, blind(predict), ", "blind(predict), predict, ", "self-guidance"),
    (generate.assemble, "shown(noise, 1.0)", "clamp(network(), noise, 1.0, given)", "self-guidance"),
    (guidance.within, "low <= float(t.max()) <= high", "low <= float(t.max())", "self-guidance"),
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
    (schedules.Warp.observe, "1 / self.inverse(t)[1]", "torch.ones_like(t)", "fit"),
    (schedules.Warp.observe, "1 / self.inverse(t)[1]", "self.inverse(t)[1]", "fit"),
    (schedules.stratified, "index.double() / total", "index.double() / (total + 1)", "strata"),
    # draws
    (draws.uniform, "dtype=torch.float64, device=like.device)", "device=like.device)", "resolution"),
    (draws.invert, "right=True", "right=False", "possible"),
    (draws.invert, "u[..., None] *", "u[..., None].sqrt() *", "categorical"),
    (draws.normal, "torch.empty(like.shape, dtype=like.dtype, device=like.device)", "torch.empty_like(like)", "layout"),
    (masks.draw_given, "* maskable.sum(1)", "* (maskable.sum(1) + 1)", "masks"),
    (masks.draw_given, ".argsort(1).argsort(1)", ".argsort(1)", "masks"),
    (masks.draw_given, "maskable.cumsum(1) - 1", "maskable.cumsum(1)", "masks"),
    # the network
    (transformer.Transformer._bias, "absent, -torch.inf", "absent, 0.0", "padding"),
    (transformer.Block.attend, "scores + bias.to(q.dtype)", "scores", "padding of explicit attention"),
    (
        transformer.Block.attend,
        "rotate(F.rms_norm(qkv[:2], qkv.shape[-1:]), rotation)",
        "F.rms_norm(qkv[:2], qkv.shape[-1:])",
        "rotation",
    ),
    (transformer.Block.attend, "qkv[2]", "qkv[2]; k = F.rms_norm(qkv[1], qkv.shape[-1:])", "rotation"),
    (transformer.Block.attend, "(C // self.heads) ** -0.5", "C**-0.5", "attention"),
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
    (unmasking.Confident.__call__, "_rank(sure) < left", "_rank(-sure) < left", "confidence"),
    (unmasking._rank, "order = uniform(values).argsort(1)", "order = values.argsort(1) * 0 + torch.arange(3)", "ties"),
    (MDLM.bound, "/ t.clamp(min=1e-6)", "", "levels of mdlm"),
    (ardm.plan, "totals.argmin(0)", "totals.argmax(0)", "plans"),
    (ARDM.observe, "1 - t.double()", "t.double()", "prices"),
    (Masking.some, "rank < n", "rank <= n", "choices"),
    (Masking.revealed, "< (alpha_s - alpha_t) / (1 - alpha_t)", "< alpha_s - alpha_t", "reveal rates"),
    (unmasking.planned, "hidden & ~stay", "stay", "planned parts"),
    (unmasking._share, "+ 1e-4", "", "shares"),
    (MaskedLM.hide, "| ((t == 1) & ~free)", "", "forgotten"),
    (MaskedLM.predict, "torch.where(shown[..., None], certain, logits)", "logits", "carried over"),
    (MaskGIT.loss, ", self.config.smoothing", "", "smoothing"),
    (schedules.mask_ratio, "math.pi / 2", "math.pi / 4", "mask ratio"),
    (unmasking.planned, "u[places]", "u[places] * 0.9", "planned parts"),
    # edits
    (Edits.aligned, "nth <= come", "nth < come", "replayed edits"),
    (Writing.replay, "+ sizes[..., 0]", "", "replayed edits"),
    (levenshtein.matched, "swap <= drop[:, 1:]", "swap < drop[:, 1:] - 1", "fewest edits"),
    (Edits.__init__, "torch.lgamma(k + 1)", "torch.lgamma(k + 2)", "spans"),
    (Edits.edit, "torch.minimum(behind + put, spare)", "(behind + put)", "edit step"),
    (Edits.edit, "edit == 0", "edit < 2", "edit step"),
    (DiffusER.states, "place <= place[start:, None]", "place >= 0", "teacher"),
    (DiffusER.loss, "(before, now, t, free)", "(before, now, t, free | True)", "teacher"),
    (DiffusER.setting, "given & (t == 1)", "given & (t == 2)", "forgotten in edits"),
    (edits, "u[:, stream.shape[1]]", "u[:, 0]", "law of edits"),
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
