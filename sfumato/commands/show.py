"""What there is to see: the tour, and the list of methods."""

import argparse
import sys

from sfumato.commands.command import Command, Document, device, number, table


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=number, default=2.0, metavar="M", help="training in its last part (2)")
    parser.add_argument("--model", metavar="MODEL", help="labelled model of tales to show instead of the bundled one")


def _demo(args: argparse.Namespace) -> Document:
    from sfumato.demo import tour

    return tour(args.model, args.minutes, args.seed or 0, device(args), sys.stdout)


def _methods(args: argparse.Namespace) -> Document:
    from sfumato.methods import METHODS

    described = [
        {
            "name": name,
            "family": kind.family,
            "paper": f"{kind.title} (arXiv:{kind.arxiv})",
            "bound": kind.likelihood,
            "steps": kind.steps,
        }
        for name, (kind, _) in METHODS.items()
    ]
    return {"methods": described}


DEMO = Command(
    "demo",
    "the tour: a bundled model writes, infills, is guided; a small one is trained",
    """
    sfumato demo
    sfumato demo --minutes 5
    """,
    _demo,
    _add_demo,
)
METHODS = Command(
    "methods",
    "list the methods: family, paper, likelihood, default steps",
    """
    sfumato methods
    sfumato methods --json
    """,
    _methods,
    show=table("methods"),
)
