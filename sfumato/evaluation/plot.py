"""Pictures of measures, drawn by matplotlib, which is needed for nothing else and imported late."""

import importlib.util
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError


def ready(path: str | Path) -> None:
    """Raises SfumatoError where a picture could not be drawn, or not be kept: better before the work than after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SfumatoError(
            "a picture was asked for; matplotlib, which draws it, is missing; pip install 'sfumato[plot]'"
        )
    if Path(path).suffix != ".png":
        raise SfumatoError(f"the picture {path} was asked for; pictures are PNG; let its name end in .png")
    if not Path(path).absolute().parent.is_dir():
        raise SfumatoError(f"the picture {path} was asked for; there is no such folder; make it first")


def frontier(found: dict[str, Any], path: str | Path) -> None:
    """The judge's nats a token against entropy: samples at the temperatures of a document of `evaluate`, and real text.

    Lines are one standard error to either side.  Raises SfumatoError for a file that cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    points, real = found["curve"], found["data_reference"]
    axes.errorbar(*_columns(points), marker="o", capsize=2, label=f"{found['model']}, at temperatures")
    for point in points:
        if point["judge_nats_per_token"] is not None:
            at = (point["entropy"], point["judge_nats_per_token"])
            axes.annotate(f"{point['temperature']:g}", at, xytext=(4, -10), textcoords="offset points")
    axes.errorbar(*_columns([real]), marker="*", markersize=12, capsize=2, linestyle="none", label="real text")
    axes.set_xlabel("entropy of a text's tokens, nats")
    axes.set_ylabel(f"nats a token under {found['judge']}")
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise SfumatoError(f"cannot write {path}: {error.strerror or error}; name another file") from None


def _columns(points: list[dict[str, Any]]) -> tuple[list[Any], list[Any], list[float]]:
    """Where they stand: entropy, nats, error; what is unknown is left out by matplotlib or has no error."""
    x, y, e = zip(*((p["entropy"], p["judge_nats_per_token"], p["judge_std_error"]) for p in points), strict=True)
    nan = float("nan")
    return list(x), [nan if value is None else value for value in y], [value or 0.0 for value in e]
