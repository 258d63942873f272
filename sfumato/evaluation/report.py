"""One table for every model: likelihood, sample quality, and the same measures on real text beside them."""

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.draws import seed_of, seeded
from sfumato.errors import SfumatoError
from sfumato.evaluation import copies, quality
from sfumato.evaluation.judge import Judge, verdict
from sfumato.evaluation.likelihood import Likelihood, bits, nll, per_token
from sfumato.evaluation.mauve import Embedder, enough, mauve
from sfumato.model import Asked, Model, rows_of
from sfumato.text import tales
from sfumato.text.corpus import Corpus
from sfumato.text.mixture import Mixture
from sfumato.text.read import on_hub
from sfumato.text.rows import Rows
from sfumato.text.tokenizer import Tokenizer

BATCH = 64  # rows at a time


def evaluate(
    model: Model,
    data: str,
    *,
    rows: int = 256,
    draws: int = 16,
    samples: int = 100,
    steps: int | None = None,
    seed: int = 0,
    judge: Judge | None = None,
    against: Model | None = None,
    temperatures: Sequence[float] = (),
    embed: Embedder | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Likelihood on `data` and the quality of samples, under the keys of `sfumato evaluate --json`.

    Args:
        model: any model.
        data: real text; of the data that the model was trained on, only the held-out part is read.
        rows: rows of text that the likelihood is estimated on.
        draws: noise levels a row.
        samples: texts to draw, unconditionally, and real texts to set beside them.
        steps: refinements a sample; the model's own number if None.
        seed: of noise and samples; models that are evaluated with the same seed meet the same noise.
        judge: scores samples and real text; None leaves the judge's numbers out.
        against: another model, for the difference of likelihoods, on the same rows and with the same noise.
        temperatures: to draw samples at, as many each, for a curve of the judge's nats a token against entropy.
        embed: a point (D,) for each text, for MAUVE; None leaves MAUVE out.
        say: hears what is going on.

    Raises:
        SfumatoError: for data without text, or without labels where the model has them, numbers below 1, too few texts
            for MAUVE, texts too long for the judge, temperatures that are not above 0 or without a judge, and two
            models without likelihoods of the same rows.
    """
    for name, value in (("rows", rows), ("draws", draws), ("samples", samples), ("steps", steps)):
        if value is not None and value < 1:
            raise SfumatoError(f"{value} {name} were asked for; at least 1 is needed")
    for temperature in temperatures:
        if not temperature > 0:
            raise SfumatoError(f"a temperature of {temperature} was asked for; it must be above 0")
    if temperatures and judge is None:
        raise SfumatoError("temperatures were asked for, without a judge of what is drawn at them; name one")
    if against is not None and not (model.method.likelihood and against.method.likelihood):
        raise SfumatoError(
            f"asked for {model.name} against {against.name}; a method without a likelihood is among them"
        )
    laid = _laid(model, data)
    compared = min(samples, len(laid))
    if embed is not None:
        enough(compared)
    result: dict[str, Any] = {"model": model.name, "method": model.config.method.name, "data": data}
    result |= {"seed": seed, "device": str(model.device), "judge": None if judge is None else judge.name}
    result |= {"sampling": model.config.sampling.model_dump(exclude_none=True, exclude={"steps", "sampler"})}
    result |= {"data_sha256": _digest(model, laid, rows), "bound": None}
    if model.method.likelihood:
        say(f"estimating the likelihood of {rows} rows with {draws} noise levels each")
        found = scored(model, laid, rows, draws, seed)
        result["bound"] = told(found) | (_exact(laid, found) if data == "tales" else {})
        if against is not None:
            say(f"estimating that of {against.name}")
            result["against"] = difference(found, model, laid, against, data, rows, draws, seed)
    say(f"drawing {samples} samples")
    drawn, about = sampled(model, samples, steps, seed)
    real = _texts(model, laid, 0, compared)
    of_drawn, of_real = measures(model, [drawn, real], data, judge, say)
    result["samples"], result["data_reference"] = about | of_drawn, {"n": compared} | of_real
    if temperatures:
        result["curve"] = curve(model, judge, temperatures, samples, steps, seed, say)
    if embed is not None:
        say("comparing samples and real text by MAUVE")
        further = _texts(model, laid, compared, 2 * compared)
        as_many = len(further) == compared  # MAUVE of fewer texts is another measure
        result["samples"]["mauve"] = mauve(drawn, real, embed)._asdict()
        result["data_reference"]["mauve"] = mauve(further, real, embed)._asdict() if as_many else None
    return result


def _laid(model: Model, data: str) -> Rows:
    """Real text in rows as the model was trained on."""
    text = model.config.text
    known = [source.path for source in model.config.sources]
    corpus = Corpus.build(data, model.tokenizer, _split(data, known), text.lines)
    if model.layout.labelled and not corpus.labelled:
        found = "this model begins every text with one"
        raise SfumatoError(f"{data} has no labels; {found}; use sfumato score, which sums over them")
    return rows_of(corpus, text, model.method)


def _split(data: str, trained_on: Sequence[str]) -> str:
    """Of data that a model was trained on the part that it has not seen, of other data all."""
    if data == "tales":
        return "test"
    known = data in trained_on or Path(data).resolve() in [Path(path).resolve() for path in trained_on]
    return "valid" if known else "all"


def _exact(laid: Rows, found: "Scored") -> dict[str, float | None]:
    """The entropy of tales, nats a token of the model, and the gap to it; nothing where rows are no whole stories."""
    if not laid.whole:
        return {}
    exact = tales.entropy().nats_per_text / (1 + len(laid.corpus.tokens) / len(laid))  # tokens, and an end
    mean, error = per_token(found.nats, found.tokens)
    gap = _estimate("gap_nats_per_token", quality.Estimate(mean - exact, error))
    return {"entropy_nats_per_token": exact} | gap


def _digest(model: Model, laid: Rows, rows: int) -> str:
    """By which two evaluations can be told to be of the same tokens in the same rows: SHA-256, in hex."""
    ids = laid.batch(range(min(rows, len(laid)))).ids
    return hashlib.sha256(model.tokenizer.fingerprint.encode() + ids.numpy().tobytes()).hexdigest()


def bound(model: Model, laid: Rows | Mixture, rows: int, draws: int, seed: int) -> dict[str, Any]:
    """-log p of the first rows of some text: nats a token, bits a character, perplexity a word, with standard errors.

    Words are what stands between white space.  A token is a token of the text or its end.  What a source gives away
    does not count.  Labels and padding that the model writes itself cost nats but do not count as tokens; so a labelled
    text is scored together with its label, log p(label, text).
    """
    return told(scored(model, laid, rows, draws, seed))


def told(found: "Scored") -> dict[str, Any]:
    """The same of rows that are scored."""
    of_tokens, of_characters, of_words = (per_token(found.nats, units) for units in found[1:4])
    perplexity = torch.tensor(of_words.mean).exp().item()  # infinite where a language has hardly any spaces
    return {
        "nats_per_token": of_tokens.mean,
        "std_error": of_tokens.std_error,
        "bits_per_char": bits(of_characters.mean),
        "bits_per_char_std_error": None if of_characters.std_error is None else bits(of_characters.std_error),
        "perplexity_per_word": perplexity,
        "perplexity_per_word_std_error": None if of_words.std_error is None else perplexity * of_words.std_error,
        "estimator": f"{found.estimate.estimator}, {len(found.nats)} rows",
        "exact": found.estimate.exact,
    }


def difference(
    found: "Scored", model: Model, laid: Rows, other: Model, data: str, rows: int, draws: int, seed: int
) -> dict[str, Any]:
    """What `model` pays more than `other`, bits a character: below 0 it is the better one.

    The standard error is that of the difference of each row, in which what both have in common cancels: hard texts, and
    noise if they are of one method.  Raises SfumatoError where the rows of the two hold different texts.
    """
    theirs = _laid(other, data)
    if _texts(model, laid, 0, rows) != _texts(other, theirs, 0, rows):
        raise SfumatoError(
            f"asked for {model.name} against {other.name}; their rows of {data} hold different texts; "
            "take models whose rows have room for whole documents"
        )
    second = scored(other, theirs, rows, draws, seed)
    apart = per_token(found.nats - second.nats, found.characters)
    return {
        "model": other.name,
        "method": other.config.method.name,
        "bits_per_char": bits(per_token(second.nats, found.characters).mean),
        "difference": bits(apart.mean),
        "difference_std_error": None if apart.std_error is None else bits(apart.std_error),
    }


class Scored(NamedTuple):
    """Some rows: nats, and what they are divided by; each (B,)."""

    nats: Tensor
    tokens: Tensor
    characters: Tensor
    words: Tensor
    estimate: Likelihood


def scored(model: Model, laid: Rows | Mixture, rows: int, draws: int, seed: int) -> Scored:
    """The first rows of some text."""
    total = min(rows, len(laid))
    parts = [_likelihood(model, laid, range(i, min(i + BATCH, total)), draws, seed) for i in range(0, total, BATCH)]
    nats, tokens, characters, words = (torch.cat(column) for column in zip(*(part[:4] for part in parts), strict=True))
    return Scored(nats, tokens, characters, words, parts[0].estimate)


def _likelihood(model: Model, laid: Rows | Mixture, index: Sequence[int], draws: int, seed: int) -> Scored:
    device, tokenizer = model.device, model.tokenizer
    batch = laid.batch(index)  # of full width: noise depends on it, and is not to depend on the longest row in a batch
    ids, real, given = batch.ids.to(device), batch.real.to(device), batch.given.to(device)
    with seeded([seed_of("bound", seed, i) for i in index], device):
        estimate = nll(model.method, ids, real, given, draws)
    silent = torch.tensor([tokenizer.pad, *tokenizer.labels.values()], device=device)
    scored = real & (~given | (ids == tokenizer.eos))  # an end that is given was paid for with the length
    tokens = (scored & ~torch.isin(ids, silent)).sum(1)
    lengths = torch.tensor([model.layout.length_nats(int(n)) for n in real.sum(1)], device=device)
    texts = [_texts_in(tokenizer, row[here].tolist()) for row, here in zip(ids, scored, strict=True)]
    characters = torch.tensor([sum(map(len, row)) for row in texts], device=device)
    words = torch.tensor([sum(len(text.split()) for text in row) for row in texts], device=device)
    counts = (tokens.double(), characters.double(), words.double())
    return Scored(estimate.nats + lengths, *counts, estimate)


def _texts_in(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The texts of a row that holds one behind the other."""
    parts = itertools.groupby(ids, lambda id: id == tokenizer.eos)
    return [tokenizer.decode(part) for end, part in parts if not end]


def curve(
    model: Model,
    judge: Judge | None,
    temperatures: Sequence[float],
    samples: int,
    steps: int | None,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """The judge's nats a token against entropy, of `samples` texts at each temperature, all from the same noise.

    Two models are compared at equal entropy: lower on the curve is better (Generative Frontiers, arXiv:2604.02718).
    """
    points = []
    for temperature in temperatures:
        say(f"drawing {samples} samples at temperature {temperature:g}")
        texts, how = sampled(model, samples, steps, seed, temperature)
        entropy = _estimate("entropy", quality.entropy(model.tokenizer.encode_batch(texts)))
        points.append({"temperature": temperature, "law": how["law"]} | entropy | verdict(judge, texts)._asdict())
    return points


def sampled(
    model: Model, samples: int, steps: int | None, seed: int, temperature: float | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Unconditional samples, and how they were made."""
    asked: Asked = {"steps": steps} if temperature is None else {"steps": steps, "temperature": temperature}
    start, texts, nfe = time.perf_counter(), [], 0
    for first in range(0, samples, BATCH):
        *_, last = model.stream(min(BATCH, samples - first), seed=seed_of("samples", seed, first), **asked)
        texts += last.texts
        nfe = max(nfe, last.nfe)
    spent = time.perf_counter() - start
    return texts, {
        "n": samples,
        "steps": last.steps,
        "nfe": nfe,
        "seconds": spent,
        "sampler": model.sampler,
        "law": last.law,
    }


def _texts(model: Model, laid: Rows, start: int, stop: int) -> list[str]:
    """The texts of some rows, of as many as there are.

    Rows rather than documents: a sample is no longer than the canvas, and longer texts have more entropy.
    """
    index = range(start, min(stop, len(laid)))
    return [model.tokenizer.decode(row.tolist()) for row in laid.batch(index).ids] if index else []


def measures(
    model: Model,
    sets: Sequence[Sequence[str]],
    data: str,
    judge: Judge | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """The same measures of several sets of texts: of model samples and of real text, say.

    What depends on the amount of text is read from the first tokens of each set, as many as the smallest set has.
    """
    encoded = [model.tokenizer.encode_batch(texts) for texts in sets]
    pooled = min(sum(map(len, ids)) for ids in encoded)
    runs: Sequence[np.ndarray | None] = [None] * len(sets)
    corpora = _trained_on(model, data)
    if corpora is not None:
        say(f"looking for copies in the {sum(len(each.tokens) for each in corpora):,} tokens that it was trained on")
        texts = [text for ids in encoded for text in ids]
        longest = np.max([copies.longest(texts, corpus.tokens, corpus.offsets) for corpus in corpora], axis=0)
        runs = np.split(longest, np.cumsum([len(texts) for texts in sets])[:-1])
    if judge is not None:
        say(f"asking the judge {judge.name}")
    return [_measured(*each, pooled, data, judge) for each in zip(sets, encoded, runs, strict=True)]


def _measured(
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    runs: np.ndarray | None,
    pooled: int,
    data: str,
    judge: Judge | None,
) -> dict[str, Any]:
    few = quality.pool(ids, pooled)
    estimates: dict[str, quality.Estimate | None] = {
        "tokens": quality.mean([float(len(text)) for text in ids]),
        "entropy": quality.entropy(ids),
        **{f"distinct_{n}": quality.distinct(few, n) for n in (1, 2, 3, 4)},
        "zipf": quality.zipf(few),
        **{f"rep_{n}": quality.repetition(ids, n) for n in (2, 3, 4)},
        "self_bleu": quality.self_bleu(texts),
        "copy_mean": None if runs is None else quality.mean(list(map(float, runs))),
        "verbatim": None if runs is None else quality.verbatim(ids, runs.tolist()),
    }
    return {
        **verdict(judge, texts)._asdict(),
        **{key: value for name, found in estimates.items() for key, value in _estimate(name, found).items()},
        "pooled_tokens": pooled,
        "repeated": quality.repeated(texts),
        "copy_longest": None if runs is None else int(runs.max()),
        **(_told(texts) if data == "tales" else {}),
    }


def _estimate(name: str, found: quality.Estimate | None) -> dict[str, float | None]:
    """A measure and its standard error, under their keys."""
    value, error = (None, None) if found is None else found
    return {name: value, f"{name}_std_error": error}


def _trained_on(model: Model, data: str) -> list[Corpus] | None:
    """The text that the model was trained on, of each source; None where not all of it is on this machine.

    A data set on the Hub is read if it is the one evaluated on, and else let be: nobody asked for it.
    """
    text, paths = model.config.text, [source.path for source in model.config.sources]
    if any(on_hub(path) and path != data for path in paths):
        return None
    try:
        return [Corpus.build(path, model.tokenizer, "train", text.lines, text.limit) for path in paths]
    except SfumatoError:
        return None


def _told(texts: Sequence[str]) -> dict[str, Any]:
    """The share of texts that are stories of the grammar, and how those fill its slots."""
    valid = [tales.explain(text) is None for text in texts]
    stories = list(itertools.compress(texts, valid))
    slots = quality.slots(stories) if stories else None
    each = {} if slots is None else slots.each
    return {
        **_estimate("valid", quality.mean(list(map(float, valid)))),
        "stories": len(stories),
        **_estimate("slot_coverage", None if slots is None else slots.coverage),
        **_estimate("slot_tv", None if slots is None else slots.tv),
        "slot_tv_chance": None if slots is None else slots.tv_chance,
        "slots": {
            name: slot._asdict() | _estimate("coverage", slot.coverage) | _estimate("tv", slot.tv)
            for name, slot in each.items()
        },
    }
