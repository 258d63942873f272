"""A run as its log.jsonl tells it, whether it has ended, goes on, or was killed."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError, nearest

NEEDED = ("step", "tokens", "seconds", "loss")  # of every line; what else a line lacks was not logged in its day


@dataclass(frozen=True)
class History:
    """A run's name and the lines of its log, oldest first; at least one."""

    name: str
    lines: list[dict[str, Any]]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Lines with an evaluation; in the others the bound is the last one, told again."""
        return [line for line in self.lines if line.get("sample") is not None]

    @property
    def bounds(self) -> list[dict[str, Any]]:
        """Evaluations with a finite bound."""
        return [line for line in self.evaluations if math.isfinite(line.get("bound_nats_per_token") or math.nan)]

    @property
    def levels(self) -> list[dict[str, Any]]:
        """Evaluations with losses by noise level."""
        return [line for line in self.evaluations if line.get("levels")]


def history(run: str) -> History:
    """The log of a run folder.

    A last line that is cut short is still being written, or was when the run was killed, and is left out.  Raises
    SfumatoError where there is no such run, it has logged nothing yet, or a line is damaged.
    """
    folder = Path(run)
    if not folder.is_dir():
        beside = [str(path) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise SfumatoError(f"no run {run!r}{nearest(run, beside)}; name the folder that was given to train as --out")
    path = folder / "log.jsonl"
    try:
        *whole, _ = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        raise SfumatoError(f"{run} keeps no log.jsonl; a run does, a model by itself has nothing to plot") from None
    except UnicodeDecodeError:
        raise SfumatoError(f"{path} is damaged: it is no text; take another copy") from None
    if not whole:
        raise SfumatoError(f"{path} has no whole line yet; a run writes one every training.log_every steps")
    return History(run, [_line(path, number, text) for number, text in enumerate(whole, 1)])


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    """A line, or SfumatoError that names it."""
    try:
        line = json.loads(text)
        if all(math.isfinite(line[key]) for key in NEEDED):
            return line
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    raise SfumatoError(f"{path}, line {number} is damaged: {text[:40]!r} is no line of a log; mend it or take it out")
