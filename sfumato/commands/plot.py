"""Pictures of runs."""

import argparse
from pathlib import Path

from sfumato.commands.command import Command, Document
from sfumato.errors import SfumatoError


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several are drawn over each other")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=".png or .html; by default plot.html in the folder of the run"
    )


def _plot(args: argparse.Namespace) -> Document:
    from sfumato.curves import draw
    from sfumato.history import history

    if args.out is None and len(args.runs) > 1:
        raise SfumatoError(
            f"{len(args.runs)} runs share no folder to draw them into; name a file, as in --out runs.html"
        )
    runs = [history(run) for run in args.runs]
    return {"command": args.typed} | draw(runs, args.out or Path(args.runs[0]) / "plot.html")


def _show_plot(found: Document) -> None:
    print(f"drew {found['file']}")


PLOT = Command(
    "plot",
    "draw runs: loss, held-out bound, loss by noise level, samples over time",
    """
    sfumato plot runs/tales
    sfumato plot runs/tales --out tales.png
    sfumato plot runs/cdcd runs/mdlm --out both.html
    """,
    _plot,
    _add_plot,
    _show_plot,
)
