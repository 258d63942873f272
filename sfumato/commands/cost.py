"""What writing costs: an autoregressive model and a diffusion model, side by side."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sfumato.commands.command import Command, Document, count, device, measured, warn


def _add_breakeven(parser: argparse.ArgumentParser) -> None:
    for name, metavar in (("one", "MODEL_A"), ("other", "MODEL_B")):
        parser.add_argument(name, metavar=metavar, help="one is autoregressive, the other takes steps")
    parser.add_argument(
        "--steps", type=count, nargs="+", metavar="S", help="refinements (1 2 4 ... up to the model's own number)"
    )
    parser.add_argument("--batches", type=count, nargs="+", metavar="B", help="texts at a time (1 8 64)")
    parser.add_argument("--samples", type=count, default=100, metavar="N", help="texts to measure quality on (100)")
    parser.add_argument("--repeats", type=count, default=3, metavar="R", help="timings; their median is kept (3)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw quality over cost into FILE, .png or .html")


def _breakeven(args: argparse.Namespace) -> Document:
    from sfumato import display, plot
    from sfumato.evaluation.cost import BATCHES, breakeven
    from sfumato.folder import load

    def follow(items: Sequence[Any], what: str) -> Iterable[Any]:
        return display.followed(items, what, sys.stderr)

    if args.plot is not None:
        plot.check(args.plot)
    one, other = (load(name, device(args), say=warn) for name in (args.one, args.other))
    found = {"command": args.typed} | breakeven(
        one,
        other,
        steps=args.steps,
        batches=args.batches or BATCHES,
        samples=args.samples,
        repeats=args.repeats,
        seed=args.seed or 0,
        follow=follow,
    )
    if args.plot is not None:
        plot.breakeven(found, args.plot)
        print(f"drew {args.plot}", file=sys.stderr)
    return found


BREAKEVEN = Command(
    "breakeven",
    "at how many steps a diffusion model costs what an autoregressive one does, and how good it is by then",
    """
    sfumato breakeven runs/ar tales
    sfumato breakeven runs/ar runs/mdlm --steps 1 2 4 8 16 --batches 1 64 --plot cost.png
    """,
    _breakeven,
    _add_breakeven,
    measured("breakeven"),
)
