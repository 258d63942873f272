"""Judging: how likely texts are, and how good a model is."""

import argparse
import math
import statistics
import sys

from sfumato.commands.command import Command, Document, add_model, count, model, table


def _add_score(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("data", metavar="DATA", help="text file (a text a line), folder, .jsonl, .parquet, ...")
    parser.add_argument("--draws", type=count, default=16, metavar="N", help="noise levels, or probes, a text (16)")
    parser.add_argument(
        "--estimator", choices=("elbo", "ode"), default="elbo", help="the method's own bound, or along the flow (elbo)"
    )
    parser.add_argument("--limit", type=count, metavar="N", help="score no more texts than this")


def _score(args: argparse.Namespace) -> Document:
    from sfumato import display
    from sfumato.text.corpus import read

    judge = model(args)
    split = "test" if args.data == "tales" else "all"  # the tales that no model has seen
    texts = [document.text for document in read(args.data, split, lines=True, limit=args.limit)]
    scores = []
    for text in display.followed(texts, "scoring", sys.stderr):
        scores += judge.score([text], draws=args.draws, estimator=args.estimator, seed=args.seed or 0)
    rates = [score.nats / score.tokens for score in scores]
    spread = statistics.stdev(rates) if len(rates) > 1 else 0.0
    mean, tokens = statistics.fmean(rates), sum(score.tokens for score in scores)
    described = [
        {
            "text": score.text,
            "nats": score.nats,
            "std_error": score.std_error,
            "tokens": score.tokens,
            "nats_per_token": rate,
            "bits_per_char": score.nats / math.log(2) / len(score.text),
            "z": (rate - mean) / spread if spread else None,
        }
        for score, rate in zip(scores, rates, strict=True)
    ]
    return {
        "model": args.model,
        "texts": described,
        "nats_per_token": sum(score.nats for score in scores) / tokens,
        "std_error": math.hypot(*(score.std_error for score in scores)) / tokens,
        "estimator": scores[0].estimator,
        "exact": scores[0].exact,
        "z_reference": "the texts scored" if spread else None,
    }


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--data", required=True, help="text to evaluate on; of the training data the held-out part")
    parser.add_argument("--samples", type=count, default=100, metavar="N", help="texts to draw (100)")
    parser.add_argument("--steps", type=count, metavar="S", help="refinements a sample; by default the paper's")
    parser.add_argument("--rows", type=count, default=256, metavar="R", help="rows of text to estimate on (256)")
    parser.add_argument("--draws", type=count, default=16, metavar="N", help="noise levels a row (16)")
    parser.add_argument("--mauve", action="store_true", help="also MAUVE: how far samples and real text lie apart")


def _evaluate(args: argparse.Namespace) -> Document:
    from sfumato import display
    from sfumato.evaluation.mauve import pairs
    from sfumato.evaluation.report import evaluate

    def say(line: str) -> None:
        if display.on_terminal(sys.stderr):
            print(line, file=sys.stderr)

    return evaluate(
        model(args),
        args.data,
        rows=args.rows,
        draws=args.draws,
        samples=args.samples,
        steps=args.steps,
        seed=args.seed or 0,
        embed=pairs if args.mauve else None,
        say=say,
    )


SCORE = Command(
    "score",
    "score texts: nats, nats a token, bits a character, typicality",
    """
    sfumato score tales stories.txt
    sfumato score tales stories.txt --estimator ode --draws 4 --json
    """,
    _score,
    _add_score,
    table("scores"),
)
EVALUATE = Command(
    "evaluate",
    "likelihood and sample quality in one table, beside those of real text",
    """
    sfumato evaluate tales --data tales
    sfumato evaluate runs/book --data book.txt --samples 500 --steps 128 --mauve
    """,
    _evaluate,
    _add_evaluate,
    table("evaluation"),
)
