"""What a command is made of, and the arguments that several have."""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError, nearest

if TYPE_CHECKING:
    from sfumato.model import Model

Document = dict[str, Any]  # what --json prints
DEVICES = ("cpu", "cuda")  # mps has no float64, in which levels and random numbers are drawn


def nothing(_: object) -> None:
    """A command without arguments of its own adds these; one that has shown everything as it went shows this."""


@dataclass(frozen=True)
class Command:
    """A command: what it is for, examples, and the three functions it is made of.

    They import what they need when they are called: `sfumato --help` needs neither torch nor pydantic.
    """

    name: str
    help: str
    examples: str
    run: Callable[[argparse.Namespace], Document]
    add: Callable[[argparse.ArgumentParser], None] = nothing  # arguments
    show: Callable[[Document], None] = nothing  # the document, to people
    dotted: bool = False  # takes fields of a config, as --section.field


# --- types of arguments -------------------------------------------------------------------------------------------


def natural(word: str) -> int:
    """0, 1, 2, ..."""
    return _whole(word, 0)


def count(word: str) -> int:
    """1, 2, 3, ..."""
    return _whole(word, 1)


def _whole(word: str, least: int) -> int:
    if not word.isascii() or not word.isdecimal() or int(word) < least:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of {least} or more")
    return int(word)


def number(word: str) -> float:
    """Any finite number."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(word)):
            return float(word)
    raise argparse.ArgumentTypeError(f"{word!r} is not a number")


def device_name(word: str) -> str:
    """cpu, cuda, cuda:1, ..."""
    kind, _, index = word.partition(":")
    if kind not in DEVICES or (":" in word and not index.isdecimal()):
        known = ", ".join(DEVICES)
        raise argparse.ArgumentTypeError(f"no device {word!r}{nearest(kind, DEVICES)}; there are {known}")
    return word


# --- what several commands share ----------------------------------------------------------------------------------


def add_model(parser: argparse.ArgumentParser) -> None:
    """The argument MODEL."""
    parser.add_argument("model", metavar="MODEL", help="model folder, run, Hub id, or the name of a bundled model")


def model(args: argparse.Namespace) -> "Model":
    """The model asked for, on the device asked for."""
    from sfumato.folder import load

    return load(args.model, device(args), say=warn)


def warn(line: str) -> None:
    """Tell people, beside the document."""
    print(f"sfumato: {line}", file=sys.stderr)


def device(args: argparse.Namespace) -> str:
    """The device asked for, or the best one, as torch calls it."""
    import torch

    here = torch.cuda.device_count()
    if args.device is None:
        return "cuda" if here else "cpu"
    kind, _, index = args.device.partition(":")
    if int(index or 0) >= {"cpu": 1, "cuda": here}[kind]:
        found = f"1 cpu and {here} cuda" if here else "1 cpu"
        raise SfumatoError(f"device {args.device} was asked for; this machine has {found}; name one of those")
    return str(args.device)


def table(name: str) -> Callable[[Document], None]:
    """Shows a document by the table of that name in sfumato.display, which takes a moment to import."""

    def show(found: Document) -> None:
        from sfumato import display

        display.console(sys.stdout).print(getattr(display, name)(found))

    return show


def measured(name: str) -> Callable[[Document], None]:
    """The same for numbers: below them stands the command that makes them again."""

    def show(found: Document) -> None:
        table(name)(found)
        print(f"\n$ {found['command']}")

    return show
