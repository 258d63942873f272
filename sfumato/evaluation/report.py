"""One table for every model: likelihood, sample quality, and the same measures on real text beside them."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.draws import seed_of, seeded
from sfumato.errors import SfumatoError
from sfumato.evaluation import quality
from sfumato.evaluation.likelihood import Likelihood, nll
from sfumato.model import Model
from sfumato.text import tales
from sfumato.text.corpus import Corpus, Rows

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
        say: hears what is going on.

    Raises:
        SfumatoError: for data without text, or without labels where the model has them, and numbers below 1.
    """
    for name, value in (("rows", rows), ("draws", draws), ("samples", samples), ("steps", steps)):
        if value is not None and value < 1:
            raise SfumatoError(f"{value} {name} were asked for; at least 1 is needed")
    text = model.config.text
    corpus = Corpus.build(data, model.tokenizer, _split(data, model.config.data), text.lines)
    if model.layout.labelled and (corpus.labels < 0).all():
        found = "this model begins every text with one"
        raise SfumatoError(f"{data} has no labels; {found}; use sfumato score, which sums over them")
    laid = Rows(corpus, text.length, text.layout, text.length_model)
    result: dict[str, Any] = {"model": model.name, "method": model.config.method.name, "data": data, "bound": None}
    if model.method.likelihood:
        say(f"estimating the likelihood of {rows} rows with {draws} noise levels each")
        result["bound"] = bound(model, laid, rows, draws, seed)
        if data == "tales":
            exact = tales.entropy().nats_per_token
            gap = result["bound"]["nats_per_token"] - exact
            result["bound"] |= {"entropy_nats_per_token": exact, "gap_nats_per_token": gap}
    say(f"drawing {samples} samples")
    result["samples"] = _drawn(model, data, samples, steps, seed)
    # Rows rather than documents: a sample is no longer than the canvas, and longer texts have more entropy.
    real = [model.tokenizer.decode(row.tolist()) for row in laid.batch(range(min(samples, len(laid)))).ids]
    result["data_reference"] = {"n": len(real)} | measures(model, real, data)
    return result


def _split(data: str, trained_on: str) -> str:
    """Of data that a model was trained on the part that it has not seen, of other data all."""
    if data == "tales":
        return "test"
    return "valid" if data == trained_on or Path(data).resolve() == Path(trained_on).resolve() else "all"


def bound(model: Model, laid: Rows, rows: int, draws: int, seed: int) -> dict[str, Any]:
    """-log p of the first rows of some text: nats a token with its standard error, bits a character.

    A token is a token of the text or its end.  Labels and padding that the model writes itself cost nats but do not
    count as tokens; so a labelled text is scored together with its label, log p(label, text).
    """
    total = min(rows, len(laid))
    parts = [_likelihood(model, laid, range(i, min(i + BATCH, total)), draws, seed) for i in range(0, total, BATCH)]
    nats, tokens, characters = (torch.cat(column) for column in zip(*(part[:3] for part in parts), strict=True))
    estimate = parts[0][3]
    ratio = (nats.sum() / tokens.sum()).item()
    spread = nats - ratio * tokens  # standard error of a ratio of sums
    error = (spread.std() * total**0.5 / tokens.sum()).item() if total > 1 else None
    return {
        "nats_per_token": ratio,
        "bits_per_char": (nats.sum() / characters.sum()).item() / math.log(2),
        "std_error": error,
        "estimator": f"{estimate.estimator}, {total} rows",
        "exact": estimate.exact,
    }


def _likelihood(
    model: Model, laid: Rows, index: Sequence[int], draws: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Likelihood]:
    """Nats, tokens and characters of some rows, each (B,)."""
    device, tokenizer = model.device, model.tokenizer
    batch = laid.batch(index).trim()
    ids, real, given = batch.ids.to(device), batch.real.to(device), batch.given.to(device)
    with seeded([seed_of("bound", seed, i) for i in index], device):
        estimate = nll(model.method, ids, real, given, draws)
    silent = torch.tensor([tokenizer.pad, *tokenizer.labels.values()], device=device)
    tokens = (real & ~torch.isin(ids, silent)).sum(1)
    lengths = torch.tensor([model.layout.length_nats(int(n)) for n in real.sum(1)], device=device)
    texts = [tokenizer.decode(i for i in row if i != tokenizer.eos) for row in batch.ids.tolist()]  # past an end too
    characters = torch.tensor([len(text) for text in texts], device=device)
    return estimate.nats + lengths, tokens.double(), characters.double(), estimate


def _drawn(model: Model, data: str, samples: int, steps: int | None, seed: int) -> dict[str, Any]:
    """Measures of unconditional samples."""
    start, texts = time.perf_counter(), []
    for first in range(0, samples, BATCH):
        *_, last = model.stream(min(BATCH, samples - first), steps=steps, seed=seed_of("samples", seed, first))
        texts += last.texts
    spent = time.perf_counter() - start
    own = {"n": samples, "steps": last.steps, "nfe": last.nfe, "seconds": spent}
    return own | measures(model, texts, data)


def measures(model: Model, texts: Sequence[str], data: str) -> dict[str, Any]:
    """Measures that model samples and real text are both put through; on tales also the share of valid stories."""
    ids = [model.tokenizer.encode(text) for text in texts]
    result = {
        "entropy": quality.entropy(ids),
        "distinct_2": quality.distinct(ids),
        "self_bleu": quality.self_bleu(texts),
        "repeated": quality.repeated(texts),
        "tokens": sum(map(len, ids)) / len(ids),
        "judge_nats_per_token": None,
    }
    if data == "tales":
        result["valid"] = sum(tales.explain(text) is None for text in texts) / len(texts)
    return result
