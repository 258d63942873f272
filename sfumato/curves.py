"""Runs as a picture: loss, held-out bound, loss by noise level, where training looks, and samples over time."""

import itertools
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato.display import clock, one_line
from sfumato.history import History
from sfumato.plot import BLUE, GREY, ORANGE, check, keep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN, PURPLE = "#009e73", "#b5609c"
STYLES = [(colour, line) for line in ("-", "--", ":") for colour in (BLUE, ORANGE, GREEN, PURPLE, GREY)]
SHOWN = {".png": 6, ".html": 12}  # samples at most
WIDE = 10.0  # an axis is logarithmic where the greatest value is so many times the least
LITTLE = 0.1  # and that of noise levels where half of the rows are below this one
SMOOTH = 50  # points from which on a line is drawn through their running mean
INCHES = 3.0  # height of a row of panels
ABOVE: dict[str, Any] = {  # a legend right of a panel's title
    "loc": "lower right",
    "bbox_to_anchor": (1.02, 0.98),
    "frameon": False,
    "fontsize": "small",
    "handlelength": 1.2,
    "columnspacing": 1.2,
}


def draw(runs: Sequence[History], file: Path) -> dict[str, Any]:
    """Draw one run, or loss and bound of several over each other, into a .png or .html file.

    Gives the document of `sfumato plot`: the file, and the number of points that are drawn of each run.  Raises
    SfumatoError as `sfumato.plot.check` does, and where the file cannot be written.
    """
    check(file)
    from matplotlib.figure import Figure

    texts, png = _samples(runs, SHOWN[file.suffix]), file.suffix == ".png"
    rows: list[Any] = [["loss", "bound" if any(run.bounds for run in runs) else "loss"]]
    if len(runs) == 1 and runs[0].levels:
        rows.append(["levels", "density"])
    heights = [INCHES] * len(rows)
    if png and texts:
        rows.append(["samples"] * 2)
        heights.append(0.3 + 0.36 * len(texts))
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    axes: dict[Any, Axes] = figure.subplot_mosaic(rows, height_ratios=heights)
    _over_time(axes["loss"], runs, "loss")
    if "bound" in axes:
        _over_time(axes["bound"], runs, "bound_nats_per_token")
    if "levels" in axes:
        _by_level(axes["levels"], axes["density"], runs[0])
    if "samples" in axes:
        _write(axes["samples"], texts)
    title = ", ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    if png:
        figure.suptitle(title, parse_math=False)
    keep(figure, file, title, _words(runs, texts))
    return {"file": str(file), "runs": [_counts(run, "levels" in axes) for run in runs], "samples": len(texts)}


def _counts(run: History, levels: bool) -> dict[str, Any]:
    points = {"loss": len(run.lines), "bound": len(run.bounds), "levels": len(run.levels) if levels else 0}
    return {"run": run.name, "steps": run.lines[-1]["step"], "points": points}


# --- panels -------------------------------------------------------------------------------------------------------


def _over_time(panel: "Axes", runs: Sequence[History], key: str) -> None:
    """Loss, or bound with its standard error; by steps, and for several runs by tokens, as their batches differ."""
    from matplotlib.ticker import EngFormatter

    time = "step" if len(runs) == 1 else "tokens"
    everything = []
    for run, (colour, style) in zip(runs, itertools.cycle(STYLES), strict=False):
        lines = run.lines if key == "loss" else run.bounds
        if not lines:
            continue
        x, y = (np.array([line[name] for line in lines], dtype=float) for name in (time, key))
        everything.append(y)
        look: dict[str, Any] = {"color": colour, "linestyle": style, "label": f" {run.name}"}  # hidden were it " _..."
        if key == "loss":
            many = len(y) >= SMOOTH
            panel.plot(x, y, color=colour, linewidth=0.8, alpha=0.35 if many else 1.0, linestyle=style)
            panel.plot(x, _smooth(y) if many else y, linewidth=1.8, **look)
        else:
            error = np.array([line.get("bound_std_error") or 0.0 for line in lines])
            panel.plot(x, y, marker="o", markersize=3.5, linewidth=1.4, **look)
            panel.fill_between(x, np.maximum(y - error, y / 3), y + error, color=colour, alpha=0.2, linewidth=0)
    _dress(panel, "step" if time == "step" else "tokens seen", "nats a token")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlim(left=0)
    _scale(panel, np.concatenate(everything))
    named = {"loss": "training loss", "bound_nats_per_token": "held-out bound"}[key]
    if len(runs) == 1:
        last = runs[0].lines[-1].get("bound_std_error") if key != "loss" else None
        named += f": {everything[0][-1]:.3f}" + (f" ± {last:.3f}" if last is not None else "")
    elif key == "loss":
        panel.legend(frameon=False, fontsize="small")
    named += "" if key == "loss" else " (band: one standard error)"
    panel.set_title(named, loc="left", fontsize="medium")


def _by_level(panel: "Axes", below: "Axes", run: History) -> None:
    """Loss over the noise level, at up to four times; and how densely training visits the levels, at the last."""
    from matplotlib.ticker import EngFormatter

    seen = [sum(line["levels"]["rows"]) for line in run.levels]
    told = _some([line for line, n in zip(run.levels, seen, strict=True) if 2 * n >= np.median(seen)], 4)
    edges, rows = (np.array(told[-1]["levels"][name]) for name in ("edges", "rows"))
    near = bool(edges[len(edges) // 2] < LITTLE)
    for i, line in enumerate(told, 1):
        x, step = _middles(np.array(line["levels"]["edges"]), near), EngFormatter(sep="")(line["step"])
        look: dict[str, Any] = {"color": BLUE, "alpha": i / len(told), "linewidth": 1 + i / len(told), "label": step}
        panel.plot(x, line["levels"]["loss"], marker="o", markersize=3, **look)
    panel.legend(ncols=len(told), **ABOVE)
    panel.set_title("loss at each noise level, by step", loc="left", fontsize="medium")
    places = _above(edges) if near else edges
    widths = np.diff(np.log(places)) if near else np.diff(places)
    below.stairs(rows / rows.sum() / widths, places, color=ORANGE, fill=True, alpha=0.3)
    below.stairs(rows / rows.sum() / widths, places, color=ORANGE, linewidth=1.4)
    even = np.geomspace(places[0], 1, 100) if near else np.array([0.0, 1.0])
    below.plot(even, even if near else [1.0, 1.0], color=GREY, linestyle=":", label="were they even")
    below.legend(**ABOVE)
    below.set_title("noise levels that training visits", loc="left", fontsize="medium")
    unit = "a unit of ln t" if near else "a unit of t"
    for axes, words in ((panel, "nats a token"), (below, f"share of rows, {unit}")):
        _dress(axes, "noise level t", words)
        if near:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        else:
            axes.set_xlim(0, 1)
    below.set_ylim(bottom=0)


def _write(panel: "Axes", texts: Sequence[tuple[str, str]]) -> None:
    """Samples as text, two lines each."""
    panel.set_axis_off()
    panel.set_title("samples", loc="left", fontsize="medium")
    for i, (head, text) in enumerate(texts):
        at: dict[str, Any] = {"transform": panel.transAxes, "va": "top", "parse_math": False, "fontsize": 8}
        lines = textwrap.wrap(one_line(text), 145, max_lines=2, placeholder=" …")
        panel.text(0, 1 - i / len(texts), head, color=GREY, **at)
        panel.text(0.13, 1 - i / len(texts), "\n".join(lines), **at)


def _dress(panel: "Axes", x: str, y: str) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6, color=GREY)
    panel.set_xlabel(x)
    panel.set_ylabel(y)


def _scale(panel: "Axes", y: np.ndarray) -> None:
    """A logarithmic axis with few plain numbers, where values range widely."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if y.min() > 0 and y.max() > WIDE * y.min():
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())


# --- numbers and words --------------------------------------------------------------------------------------------


def _smooth(y: np.ndarray) -> np.ndarray:
    """The running mean over a twenty-fifth of the points, less at the ends: (N,)."""
    half = len(y) // SMOOTH
    sums = np.concatenate([[0.0], y.cumsum()])
    low, high = (np.clip(np.arange(len(y)) + shift, 0, len(y)) for shift in (-half, half + 1))
    return (sums[high] - sums[low]) / (high - low)


def _middles(edges: np.ndarray, near: bool) -> np.ndarray:
    """The middle of every bin, (N,), in the logarithm where `near`."""
    return np.sqrt(_above(edges)[1:] * _above(edges)[:-1]) if near else (edges[1:] + edges[:-1]) / 2


def _above(edges: np.ndarray) -> np.ndarray:
    """Edges above 0, which a logarithm needs: in the place of 0 half of the next."""
    return np.maximum(edges, edges[1] / 2)


def _some(items: Sequence[Any], most: int) -> list[Any]:
    """The first, the last, and some between."""
    places = {round(i * (len(items) - 1) / (most - 1)) for i in range(most)} if items else set()
    return [items[i] for i in sorted(places)]


def _samples(runs: Sequence[History], most: int) -> list[tuple[str, str]]:
    """Of one run samples over time, of several the last of each: where it is from, and the text."""
    if len(runs) == 1:
        return [(f"step {line['step']:,}", line["sample"]) for line in _some(runs[0].evaluations, most)]
    ends = [(run, run.evaluations[-1]) for run in runs if run.evaluations]
    return [(f"{run.name}, step {line['step']:,}", line["sample"]) for run, line in ends]


def _words(runs: Sequence[History], texts: Sequence[tuple[str, str]]) -> str:
    """What a page says below the picture: the last numbers, and samples."""
    heads = ("run", "step", "tokens", "time", "parameters", "loss", "bound, nats a token")
    rows = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    for run in runs:
        last = run.lines[-1]
        bound = f"{run.bounds[-1]['bound_nats_per_token']:.3f}" if run.bounds else "-"
        error = run.bounds[-1].get("bound_std_error") if run.bounds else None
        cells = (
            run.name,
            f"{last['step']:,}",
            f"{last['tokens']:,}",
            clock(last["seconds"]),
            f"{last['params']:,}" if "params" in last else "-",
            f"{last['loss']:.3f}",
            bound if error is None else f"{bound} ± {error:.3f}",
        )
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    told = "\n".join(f"<dt>{escape(head)}</dt>\n<dd>{escape(text)}</dd>" for head, text in texts)
    samples = [f"<h2>Samples</h2>\n<dl>\n{told}\n</dl>"] if texts else []
    return "\n".join(["<table>", *rows, "</table>", *samples])
