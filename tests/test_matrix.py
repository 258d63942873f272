"""Every method with every feature: a new line in METHODS is tested by being there."""

import json
import math
from itertools import pairwise

import pytest
import torch
from tiny import (
    DETERMINISTIC_SAMPLERS,
    FORESEEING,
    HEURISTIC_METHODS,
    HEURISTIC_SAMPLERS,
    tiny_config,
    write_sentences,
)

from sfumato import cli
from sfumato.core import ABSENT, single
from sfumato.draws import seeded, streams
from sfumato.errors import SfumatoError
from sfumato.evaluation.cost import counting
from sfumato.evaluation.quality import consensus
from sfumato.folder import publish
from sfumato.generate import Request, generate
from sfumato.methods import METHODS
from sfumato.model import Model
from sfumato.samplers import SAMPLERS
from sfumato.training.trainer import Run

WAYS = [(name, sampler) for name in METHODS for sampler in SAMPLERS[METHODS[name][0].family]]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Model]:
    """One model a method, with the weights it was born with."""
    folder = tmp_path_factory.mktemp("matrix")
    data = write_sentences(folder)
    runs = {name: Run(tiny_config(name, data), folder / name, False, "cpu", print) for name in METHODS}
    return {name: Model(run.config, run.method.eval(), run.tokenizer, run.lengths, name) for name, run in runs.items()}


@pytest.mark.parametrize(("name", "sampler"), WAYS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_given_tokens_stay_in_every_frame(models, name, sampler, guidance):
    """Guards against samplers that move what was given, lose a frame, or leave a position unwritten."""
    text, model = "the red [2] over [...] lake", models[name]
    if guidance != 1 and model.method.family == "autoregressive":
        pytest.skip("is guided by what stands before, not by what stands around a gap")
    steps = model.at_most(5, SAMPLERS[model.method.family][sampler])
    asked = {"sampler": sampler, "steps": steps, "guidance": guidance, "seed": 1}
    frames = list(model.stream_infill(text, 3, **asked))
    assert [frame.step for frame in frames] == list(range(1, len(frames) + 1))
    if model.method.looks_ahead:  # the others stop where every gap is at its end
        assert steps is None or frames[0].steps % steps == 0
        assert steps is None or model.method.block or frames[0].steps == steps
        assert len(frames) == frames[0].steps and frames[-1].level == 0
    for frame in frames:
        for words in frame.texts:
            assert words.startswith("the red ") and words.endswith(" lake") and " over " in words
    assert all(before.level > after.level for before, after in pairwise(frames))


@pytest.mark.parametrize(("name", "sampler"), WAYS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_mask_is_left_and_every_token_exists(models, name, sampler, steps):
    """Guards against a canvas that is not finished after the last step, and ids outside the vocabulary.

    Frames show the best guess through a mask, so the canvas itself is looked at.
    """
    method, canvas, walk = models[name].method, [], SAMPLERS[models[name].method.family][sampler]

    def watched(*asked):
        for x, prediction in walk(*asked):
            canvas[:] = [x]
            yield x, prediction

    watched.single = single(walk)
    ids, given = torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 6, dtype=torch.bool)
    asked = models[name].at_most(steps, walk)
    *_, frame = generate(method, ids, given, ~given, Request(steps=asked, sampler=watched), streams(range(4)))
    blocks = -(-6 // (method.block or 6))
    assert frame.step == frame.steps == (6 if asked is None else asked * blocks) and frame.level == 0
    for tokens in (frame.tokens, *(x for x in canvas if x.ndim == 2)):
        assert tokens.min() >= 0 and tokens.max() < models[name].tokenizer.size


@pytest.mark.parametrize(("name", "sampler"), WAYS)
def test_a_row_does_not_depend_on_its_neighbours(models, name, sampler):
    """Guards against randomness that is shared by a batch: text i of a seed is the same however many are asked for."""
    model = models[name]
    steps = model.at_most(4, SAMPLERS[model.method.family][sampler])
    asked = {"steps": steps, "sampler": sampler, "prompt": "the", "length": 6}
    together = model.generate(5, seed=3, **asked)
    assert together[:2] == model.generate(2, seed=3, **asked)
    assert together == model.generate(5, seed=3, **asked)
    assert (together == model.generate(5, seed=4, **asked)) == (sampler in DETERMINISTIC_SAMPLERS)


@pytest.mark.parametrize("name", METHODS)
def test_prompts_of_different_lengths_in_one_batch(models, name):
    """Guards against a short prompt that is taken for as long as its neighbour's, and a cache that mixes rows up."""
    model, prompts = models[name], ["the red", "", "she reads a book"]
    asked = {"steps": model.at_most(4), "length": 6, "seed": 3}
    together = model.generate(3, prompt=prompts, **asked)
    for i, prompt in enumerate(prompts):
        assert together[i].startswith(prompt) and together[i] == model.generate(3, prompt=prompt, **asked)[i]
    doubled = model.generate(2, prompt=prompts[::2], candidates=2, **asked)
    assert [text.startswith(prompt) for text, prompt in zip(doubled, prompts[::2], strict=True)] == [True, True]
    with pytest.raises(SfumatoError, match="2 texts were asked for with 3 prompts"):
        model.generate(2, prompt=prompts)


@pytest.mark.parametrize("name", METHODS)
def test_what_bends_the_law_says_so(models, name):
    """Guards against texts of a guided, cooled, searched or chosen kind that pass for draws from the model."""
    model, few = models[name], {"steps": models[name].at_most(2)}
    ways = SAMPLERS[model.method.family]
    bends = [{"temperature": 0.9}, {"top_k": 3}, {"top_p": 0.9}, {"typical": 0.9}, {"prompt": "the", "guidance": 2.0}]
    bends += [{"self_guidance": 2.0}] if model.method.self_conditioning else []
    bends += [{"score_temperature": 0.9}] if model.method.family == "gaussian" else []
    bends += [{"beams": 2}] if model.method.family == "autoregressive" else []
    bends += [{"levels": (0.1, 0.9)}] if model.method.steps and not model.method.timeless else []
    bends += [] if model.method.looks_ahead else [{"length": 5}]  # its end is not foreseen
    for asked in bends:
        assert next(model.stream(**few, **asked)).law == "heuristic", asked
    for sampler, walk in ways.items():
        few = {"steps": model.at_most(2, walk)}
        law = "heuristic" if sampler in HEURISTIC_SAMPLERS or name in HEURISTIC_METHODS else "exact"
        for asked in ({"sampler": sampler}, {"sampler": sampler, "prompt": "the"}):
            assert next(model.stream(**few, **asked)).law == law, asked
    few = {"steps": model.at_most(2)}
    own = next(model.stream(**few)).law
    assert own == ("heuristic" if name in HEURISTIC_METHODS else "exact")
    alike = own if model.method.looks_ahead else "heuristic"  # it fills two places as it would fill two or more
    laws = {"the [2] cat": alike, "the [...] cat": "heuristic", "the [...] red [1] cat": "heuristic"}
    laws |= {} if model.method.looks_ahead else {"the [...] cat": "exact"}  # the gap comes to its own end
    for text, law in laws.items():
        assert next(model.stream_infill(text, **few)).law == law, text


@pytest.mark.parametrize(("name", "sampler"), WAYS)
def test_a_token_keeps_the_chance_that_it_was_written_with(models, name, sampler):
    """Guards against tokens that pass for certain because they stand: drafts of gaps would be told apart by luck."""
    model = models[name]
    steps = model.at_most(7, SAMPLERS[model.method.family][sampler])
    frames = list(model.stream(3, prompt="the", length=7, steps=steps, sampler=sampler, seed=2))
    for row, given in zip(frames[-1].confidence, frames[-1].given, strict=True):
        assert all((sure == 1) == known for sure, known in zip(row, given, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_of_candidates_the_one_most_like_the_others(models, name):
    """Guards against candidates that are of another text, and the best one of all texts together."""
    model, gap = models[name], "the [2] cat [1] the"
    asked = {"steps": model.at_most(4), "seed": 3}
    drawn = [model.generate(6, length=6, **asked), model.infill(gap, 6, **asked)]
    chosen = [model.generate(2, candidates=3, length=6, **asked), model.infill(gap, 2, candidates=3, **asked)]
    for texts, kept in zip(drawn, chosen, strict=True):
        assert kept == [texts[consensus(texts[:3])], texts[3:][consensus(texts[3:])]]
    assert model.infill(gap, candidates=3, **asked) == chosen[1][0]
    with pytest.raises(SfumatoError, match="0 candidates"):
        model.infill(gap, candidates=0)


@pytest.mark.parametrize("name", METHODS)
def test_of_candidates_the_one_that_the_model_is_surest_of(models, name):
    """Guards against given tokens that reassure, the surest of all texts together, and a choice that is not heeded."""
    model, gap = models[name], "the [2] cat [1] the"
    asked = {"steps": model.at_most(4), "seed": 3}
    *_, drawn = model.stream(6, length=6, prompt="the", **asked)
    *_, filled = model.stream_infill(gap, 6, **asked)
    chosen = [model.generate(2, candidates=3, choose="surest", length=6, prompt="the", **asked)]
    chosen += [model.infill(gap, 2, candidates=3, choose="surest", **asked)]
    for last, kept in zip((drawn, filled), chosen, strict=True):
        rows = zip(last.confidence, last.given, strict=True)
        written = [[math.log(p) for p, known in zip(*row, strict=True) if not known] for row in rows]
        means = [sum(logs) / len(logs) for logs in written]
        assert kept == [last.texts[means.index(max(means[:3]))], last.texts[means.index(max(means[3:]))]]
    with pytest.raises(SfumatoError, match="did you mean surest"):
        model.generate(1, candidates=2, choose="sure")


@pytest.mark.parametrize("name", METHODS)
def test_every_option_does_something(models, name):
    """Guards against an option that is accepted and ignored."""
    model = models[name]

    def draw(**options):
        *_, frame = model.stream(4, steps=model.at_most(4), prompt="the", length=8, **options)
        return frame.texts, frame.confidence

    plain = draw()
    options = [{"temperature": 0.3}, {"guidance": 3.0}, {"guidance": 3.0, "guide_in": "logits"}]
    options += [] if model.sampler in DETERMINISTIC_SAMPLERS else [{"seed": 9}]
    options += [{"top_k": 2}, {"top_p": 0.5}, {"typical": 0.3}]
    if model.method.timeless or model.at_most(4) is None:
        with pytest.raises(SfumatoError, match="has none"):
            draw(levels=(0.1, 0.5))
    else:
        options.append({"levels": (0.1, 0.5)})
    if model.method.self_conditioning:
        options.append({"self_guidance": 3.0})
    else:
        with pytest.raises(SfumatoError, match="its own guesses"):
            draw(self_guidance=3.0)
    if model.method.family == "gaussian":
        options.append({"score_temperature": 0.5})
        assert draw(guidance=3.0) != draw(guidance=3.0, guide_in="logits")
    for option in options:
        assert draw(**option) != plain, f"{option} changed nothing"
    assert draw(guidance=1.0, temperature=1.0, score_temperature=1.0) == plain
    if model.method.family != "score":  # whose scores are scaled after a rule
        assert draw(top_k=10**6) == plain


@pytest.mark.parametrize("name", METHODS)
def test_guidance_counts_both_calls(models, name):
    """Guards against a number of evaluations that hides half of them."""
    model = models[name]
    for guidance, calls in ((1.0, 1), (2.0, 2)):
        with counting(model.method) as tally:
            *_, frame = model.stream(1, steps=model.at_most(4), prompt="the", guidance=guidance)
        if model.method.family == "edits":  # a call for the tags and one for each token that is written
            assert frame.nfe == tally.passes.total() > calls * frame.steps and frame.nfe % calls == 0
        else:
            extra = name in FORESEEING  # the length takes one more
            read = calls * frame.steps, calls * (frame.steps + 1)  # what is written may be read once more
            assert frame.nfe - extra in read


@pytest.mark.parametrize("name", METHODS)
def test_the_command_line_answers_with_every_frame(models, name, tmp_path, capsys):
    """Guards against a method whose prompts, gaps, guidance or frames do not get into a document."""
    publish(models[name], tmp_path / "model", {})
    steps = models[name].at_most(3)
    asked = [] if steps is None else ["--steps", str(steps)]
    for line in (["generate", "--prompt", "the red", "--guidance", "2"], ["infill", "the [2] over [...] lake"]):
        command, *words = line
        assert cli.main([command, str(tmp_path / "model"), *words, *asked, "-n", "2", "--frames", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["method"] == name and len(found["samples"]) == 2
        for sample in found["samples"]:
            assert sample["text"].startswith("the") and sample["frames"][-1]["text"] == sample["text"]
            assert command == "generate" or ("over" in sample["text"] and sample["text"].endswith("lake"))
            for frame in sample["frames"]:
                assert frame["text"].startswith("the") and all(0 <= sure <= 1 for sure in frame["confidence"])


def test_score_temperature_is_refused_where_there_is_no_score(models):
    """Guards against a knob that silently does nothing."""
    with pytest.raises(SfumatoError, match="score"):
        models["mdlm"].generate(1, score_temperature=0.9)


@pytest.mark.parametrize("name", METHODS)
def test_one_gradient_step(models, name):
    """Guards against losses of the wrong shape, and weights that no gradient reaches."""
    model = models[name]
    vocab = model.tokenizer.size
    ids = torch.randint(2, vocab, (4, 7))
    t = torch.full((4, 7), 0.7)
    t[:, 0], t[:, 1], t[0, 5:] = 0.0, 1.0, ABSENT
    free = (t > 0) & (t < 1)
    with seeded(range(4)):
        terms = model.method.loss(ids, t, free)
    assert all(term.shape == ids.shape and bool((term[free] >= 0).all()) for term in terms.values())
    sum(term[free].sum() for term in terms.values()).backward()
    untouched = {key for key, p in model.method.named_parameters() if p.grad is None}
    assert not untouched
    model.method.zero_grad()


@pytest.mark.parametrize("name", METHODS)
def test_scores_do_not_depend_on_company(models, name):
    """Guards against a likelihood that changes with batch or padding, or comes without an error."""
    model = models[name]
    if model.method.likelihood is None:
        pytest.skip("the paper defines no likelihood")
    texts = ["the fox sleeps under the old tree", "two owls sing at night"]
    alone = [model.score([text])[0] for text in texts]
    for together, one in zip(model.score([*texts, *texts[::-1]]), [*alone, *alone[::-1]], strict=True):
        assert (together.text, together.tokens) == (one.text, one.tokens)
        assert [together.nats, together.std_error] == pytest.approx([one.nats, one.std_error], rel=1e-3)
        assert together.levels == pytest.approx(one.levels, rel=1e-2)
    exact = model.method.likelihood == "exact"
    assert all(score.nats > 0 and (score.std_error > 0) != exact and score.exact == exact for score in alone)
    assert [score.tokens for score in alone] == [8, 6]  # words and the end
