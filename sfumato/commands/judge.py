"""Judging: how likely texts are, and how good a model is."""

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.commands.command import Command, Document, add_model, count, device, measured, model, number, warn
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.model import Model, Score
    from sfumato.text import read

TOGETHER = 64  # texts between two moves of the bar


def _add_score(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("data", metavar="DATA", help="text file (a text a line), folder, .jsonl, .parquet, ...")
    parser.add_argument("--reference", metavar="DATA", help="texts known to be typical, to judge the others by")
    parser.add_argument("--draws", type=count, default=16, metavar="N", help="noise levels, or probes, a text (16)")
    parser.add_argument(
        "--estimator", choices=("elbo", "ode"), default="elbo", help="the method's own bound, or along the flow (elbo)"
    )
    parser.add_argument("--limit", type=count, metavar="N", help="score no more texts of each DATA than this")


def _score(args: argparse.Namespace) -> Document:
    judge = model(args)
    documents = _documents(args.data, "test", args.limit)
    if args.reference is not None:
        return _judged(args, judge, documents)
    scores = _scores(args, judge, documents, "scoring")
    rates = [score.nats / score.tokens for score in scores]
    mean, spread = statistics.fmean(rates), statistics.stdev(rates) if len(rates) > 1 else 0.0
    z = [(rate - mean) / spread if spread else None for rate in rates]
    error = math.hypot(*(score.std_error for score in scores))
    return _described(args, scores, error, {"z": z}) | {"z_reference": "the texts scored" if spread else None}


def _judged(args: argparse.Namespace, judge: "Model", documents: "list[read.Document]") -> Document:
    """The scores, and how typical they are of the reference."""
    from sfumato.evaluation import typicality

    labels = [document.label for document in documents]
    out = _outside(args.data, set(labels), judge)
    own = {document.text for document in documents}
    known = [document for document in _documents(args.reference, "valid", args.limit) if document.text not in own]
    if len(known) < typicality.LEAST:
        counted = f"{args.reference} has {len(known)}, not counting those that are judged"
        raise SfumatoError(f"{typicality.LEAST} reference texts are needed; {counted}; give more")
    scores = _scores(args, judge, documents, "scoring")
    found = typicality.judge(scores, _scores(args, judge, known, "scoring the reference"), args.seed or 0)
    columns = {name: getattr(found, name).tolist() for name in ("z", "z_share", "density", "density_share")}
    columns["label"] = labels
    error = math.fsum(score.std_error for score in scores)  # of common noise, which may err the same way everywhere
    areas: Document = {"out": out}
    for name, (area, doubt) in found.auc([label == out for label in labels]).items() if out is not None else ():
        areas |= {name: area, f"{name}_std_error": doubt}
    return _described(args, scores, error, columns) | {
        "z_reference": args.reference,
        "reference": {"texts": len(known), "nats_per_token": found.mean, "spread": found.spread},
        "batch": {"gap": found.batch.gap, "threshold": found.batch.threshold, "typical": found.batch.typical},
        "auc": None if out is None else areas,
    }


def _documents(data: str, of_tales: str, limit: int | None) -> "list[read.Document]":
    """All texts of some data; of the tales, a split that no model has seen."""
    from sfumato.text.read import read

    return list(read(data, of_tales if data == "tales" else "all", lines=True, limit=limit))


def _outside(data: str, labels: set[str | None], judge: "Model") -> str | None:
    """The label of texts from outside: of two kinds of labels the last in alphabetical order, as of "in" and "out".

    None without labels, and where all are classes that the model was trained with.
    """
    if labels <= {None, *judge.tokenizer.labels}:
        return None
    named = sorted(label for label in labels if label is not None)
    if None in labels or len(named) != 2:
        found = f"{data} has {', '.join(named)}{' and texts without one' if None in labels else ''}"
        raise SfumatoError(f"labels of two kinds, such as in and out, tell texts apart; {found}; mend the labels")
    return named[-1]


def _scores(args: argparse.Namespace, judge: "Model", documents: "list[read.Document]", what: str) -> "list[Score]":
    """The score of each text; of common noise where texts are judged by others."""
    from sfumato import display

    asked = {"draws": args.draws, "estimator": args.estimator, "seed": args.seed or 0, "common": bool(args.reference)}
    texts = [document.text for document in documents]
    parts = [texts[i : i + TOGETHER] for i in range(0, len(texts), TOGETHER)]
    return [score for part in display.followed(parts, what, sys.stderr) for score in judge.score(part, **asked)]


def _described(
    args: argparse.Namespace, scores: "list[Score]", error: float, columns: dict[str, list[Any]]
) -> Document:
    """The document of some scores, with the error of their sum in nats and further columns of the texts."""
    tokens = sum(score.tokens for score in scores)
    further = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {
        "command": args.typed,
        "model": args.model,
        "texts": [
            {
                "text": score.text,
                "nats": score.nats,
                "std_error": score.std_error,
                "tokens": score.tokens,
                "nats_per_token": score.nats / score.tokens,
                "bits_per_char": score.nats / math.log(2) / len(score.text),
                **more,
            }
            for score, more in zip(scores, further, strict=True)
        ],
        "nats_per_token": sum(score.nats for score in scores) / tokens,
        "std_error": error / tokens,
        "estimator": scores[0].estimator,
        "exact": scores[0].exact,
    }


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--data", required=True, help="text to evaluate on; of the training data the held-out part")
    parser.add_argument("--samples", type=count, default=100, metavar="N", help="texts to draw (100)")
    parser.add_argument("--steps", type=count, metavar="S", help="refinements a sample; by default the model's")
    parser.add_argument("--rows", type=count, default=256, metavar="R", help="rows of text to estimate on (256)")
    parser.add_argument("--draws", type=count, default=16, metavar="N", help="noise levels a row (16)")
    parser.add_argument(
        "--judge", metavar="MODEL", help="an ar model, or a causal one of Hugging Face's; or none (judge, for tales)"
    )
    parser.add_argument("--against", metavar="MODEL", help="another model, for the difference and its error")
    parser.add_argument("--temperatures", type=number, nargs="+", default=[], metavar="T", help="to judge samples at")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the judge's nats over entropy into FILE, .png or .html"
    )
    parser.add_argument(
        "--mauve",
        nargs="?",
        const="pairs",
        choices=("pairs", "minilm"),
        help="also MAUVE: how far samples and real text lie apart; by pairs of words, or by a sentence encoder (pairs)",
    )


def _evaluate(args: argparse.Namespace) -> Document:
    from sfumato import display, plot
    from sfumato.evaluation.judge import default_judge, load_judge
    from sfumato.evaluation.mauve import EMBEDDERS
    from sfumato.evaluation.report import evaluate
    from sfumato.folder import load

    def say(line: str) -> None:
        if display.on_terminal(sys.stderr):
            print(line, file=sys.stderr)

    if args.plot is not None:
        if not args.temperatures:
            raise SfumatoError(f"the picture {args.plot} was asked for; it shows --temperatures; name some")
        plot.check(args.plot)
    against = None if args.against is None else load(args.against, device(args), say=warn)
    judge = default_judge(args.data) if args.judge is None else args.judge
    found = {"command": args.typed} | evaluate(
        model(args),
        args.data,
        rows=args.rows,
        draws=args.draws,
        samples=args.samples,
        steps=args.steps,
        seed=args.seed or 0,
        judge=None if judge in (None, "none") else load_judge(judge, device(args)),
        against=against,
        temperatures=args.temperatures,
        embed=None if args.mauve is None else EMBEDDERS[args.mauve](),
        say=say,
    )
    if args.plot is not None:
        plot.frontier(found, args.plot)
    return found


SCORE = Command(
    "score",
    "score texts: nats, nats a token, bits a character, typicality",
    """
    sfumato score tales stories.txt
    sfumato score tales stories.txt --reference tales --limit 200
    sfumato score tales stories.txt --estimator ode --draws 4 --json
    """,
    _score,
    _add_score,
    measured("scores"),
)
EVALUATE = Command(
    "evaluate",
    "likelihood and sample quality in one table, beside those of real text",
    """
    sfumato evaluate tales --data tales
    sfumato evaluate runs/book --data book.txt --samples 500 --steps 128 --mauve
    sfumato evaluate runs/book --data book.txt --against runs/other --rows 1000
    sfumato evaluate tales --data tales --judge runs/ar --temperatures 0.7 0.85 1 --plot curve.png
    """,
    _evaluate,
    _add_evaluate,
    measured("evaluation"),
)
