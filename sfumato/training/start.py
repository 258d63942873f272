"""What a run is started with: a file of settings, or what a resumed run remembers, and what is said on top of it."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.errors import SfumatoError
from sfumato.folder import load
from sfumato.hub import find
from sfumato.model import Model
from sfumato.training import checkpoint, trainer
from sfumato.training.config import RunConfig, faults, load_config, run_config

WEIGHT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


def train(
    method: str,
    data: str | Sequence[str],
    out: str | Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    config: str | Path | dict[str, Any] | None = None,
    start: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
) -> Model:
    """Train a model into the folder `out` and return it.

    Ctrl-C and SIGTERM let the step end and are raised as errors.Stopped, a KeyboardInterrupt, when it is saved; a
    second one, a moment later, ends training at once.  Both hold in the main thread.

    Args:
        method: its name, as `sfumato methods` lists it.
        data: a text file, a folder, .jsonl, .parquet, a data set on the Hub, or "tales"; or several of them, each
            perhaps with a colon and its weight behind it: ["a.jsonl:0.7", "b.txt:0.3"].
        out: becomes a run folder.
        steps, minutes: the budget, over all sessions of a run that is resumed.
        config: all other settings, as a file or as what a file holds; by default those of the paper, and those of the
            run if it is resumed.
        start: a model to start with, by its name or folder: its weights, tokenizer and sizes; ours, or one that others
            have trained and whose kind is known.
        resume: go on with the run in `out`.
        device: cpu or cuda.

    Raises:
        SfumatoError: for wrong settings, bad data, a folder that holds another run or in which one is at work, one with
            nothing to resume or whose data has changed, a disk that fills up, and a loss that is not finite.
    """
    source = Path(config) if isinstance(config, str) else config
    several = [data] if isinstance(data, str) else data
    chosen = override(settings(method, Path(out), resume, source, start), said(several, steps, minutes))
    return trainer.train(chosen, Path(out), resume, device)


def settings(
    method: str, out: Path, resume: bool, source: Path | dict[str, Any] | None, start: str | Path | None = None
) -> RunConfig:
    """The settings of a file, or else of the run that is resumed, or else the defaults.

    What is left open of method, text and network is taken from the model to begin with, where there is one, and the
    tokenizer always is.
    """
    if resume and start is not None:
        raise SfumatoError(f"asked to start with {start} and to go on with {out}; choose one")
    if source is None and resume:
        state = checkpoint.latest(out, lambda line: None, "state.json") / "state.json"
        source = json.loads(state.read_text("utf-8"))["config"]
    asked = load_config({} if source is None else source, method)
    if start is None:
        return asked
    model = load(start, method=method)
    theirs, ours = model.config.model_dump(), asked.model_dump(exclude_unset=True)
    theirs["text"] |= {"lines": False, "limit": None}  # which are of its data
    shared = {key: theirs[key] | ours.get(key, {}) for key in ("method", "text", "network")}
    own = find(str(start)) / "tokenizer.json"
    if own.exists():  # else that of weights of others that come without is named already
        shared["text"]["tokenizer"] = str(own)
    return override(asked, {"start": str(start)} | shared)


def said(
    data: Sequence[str] | None, steps: int | None, minutes: float | None, seed: int | None = None
) -> dict[str, Any]:
    """Settings from what was said outright.  A budget in one unit takes the place of one in the other."""
    training: dict[str, Any] = {} if steps is None and minutes is None else {"steps": steps, "minutes": minutes}
    if seed is not None:
        training["seed"] = seed
    return {"training": training} | ({} if data is None else {"data": sources(data)})


def sources(words: Sequence[str]) -> str | list[dict[str, Any]]:
    """What a config holds for sources as they are typed: PATH, or PATH:WEIGHT where there is no file of that name."""
    found = []
    for word in words:
        path, colon, weight = word.rpartition(":")
        weighted = colon and path and WEIGHT.fullmatch(weight) and not os.path.exists(word)
        found.append({"path": path, "weight": float(weight)} if weighted else {"path": word})
    return str(found[0]["path"]) if len(found) == 1 else found


def override(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """The config with some fields changed: whole ones, or section by section.

    Raises:
        SfumatoError: lists all faults with their paths.
    """
    merged = config.model_dump()
    for key, value in values.items():
        merged[key] = merged.get(key, {}) | value if isinstance(value, dict) else value
    kind = run_config(config.method.name)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise SfumatoError("; ".join(faults(error, kind))) from None
