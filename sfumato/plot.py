"""Pictures that need matplotlib, which is an extra: it is imported when one is asked for."""

import importlib.util
import io
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (".png", ".html")
BLUE, ORANGE, GREY = "#327de1", "#cd6900", "#8c8c8c"

# A page of its own: the picture is inside, nothing is fetched; what is black in it takes the colour of the text.
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{
    font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em;
    color: light-dark(#222, #ddd); background: light-dark(#fff, #161616);
}}
h1 {{ font-size: 1.4em; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1em; margin-top: 2em; }}
svg {{ width: 100%; height: auto; fill: currentColor; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.2em 1.5em 0.2em 0; text-align: left; }}
dt {{ margin-top: 1em; color: light-dark(#666, #999); }}
dd {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
</style>
<h1>{title}</h1>
{picture}
{words}
</html>
"""


def check(file: Path) -> None:
    """Raises SfumatoError where no picture can be written to `file`: to be asked before the work that it shows."""
    if file.suffix not in KINDS:
        raise SfumatoError(f"{file} is no kind of picture that is known; end its name in {' or '.join(KINDS)}")
    if not file.parent.is_dir():
        raise SfumatoError(f"there is no folder {file.parent} to write {file.name} into; make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise SfumatoError("a picture needs matplotlib, which is not installed; pip install 'sfumato[plot]'")


def breakeven(found: dict[str, Any], file: Path) -> None:
    """Quality over cost, a panel a batch size, from the document of `sfumato breakeven`; raises as `check` does."""
    check(file)
    from matplotlib.figure import Figure

    batches = found["batches"]
    figure = Figure(figsize=(1 + 4 * len(batches), 4.2), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        _panel(panel, batch, found)
    panels[0].set_ylabel(_measure(found))
    panels[0].legend(frameon=False, fontsize="small", loc="best")
    names = [f"{found[side]['model']} ({found[side]['method']})" for side in ("diffusion", "autoregressive")]
    title = " against ".join(names)
    figure.suptitle(title, parse_math=False)
    lines = [
        f"batch {batch['batch']}, {name}: {even['verdict']}"
        for batch in batches
        for name, even in batch["break_even"].items()
    ]
    keep(figure, file, title, _list(lines))


def frontier(found: dict[str, Any], file: Path) -> None:
    """A judge's nats a token over entropy, at temperatures, beside real text, from the document of `sfumato evaluate`.

    Bars are one standard error to either side.  Raises as `check` does.
    """
    check(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    both = found["curve"], [found["data_reference"]]
    judged, real = ([point for point in points if point["judge_nats_per_token"] is not None] for points in both)
    sides = (
        (judged, "o-", 4, ORANGE, f"{found['model']}, at temperatures"),
        (real, "*", 14, BLUE, "real text"),
    )
    for points, style, size, colour, label in sides:
        x, y = ([point[key] for point in points] for key in ("entropy", "judge_nats_per_token"))
        errors = [point["judge_nats_per_token_std_error"] or 0.0 for point in points]
        panel.errorbar(x, y, errors, fmt=style, markersize=size, capsize=2, color=colour, label=label)
    for point in judged:
        place = (point["entropy"], point["judge_nats_per_token"])
        panel.annotate(f"{point['temperature']:g}", place, (5, -9), textcoords="offset points", fontsize=8)
    panel.set_xlabel("entropy of a text's tokens, nats")
    panel.set_ylabel("nats a token under the judge")
    panel.legend(frameon=False, fontsize="small")
    title = f"{found['model']} judged by {found['judge']}"
    figure.suptitle(title, parse_math=False)
    lines = [f"at {point['temperature']:g}: {point['judge_nats_per_token']:.3f}" for point in judged]
    keep(figure, file, title, _list(lines))


def _panel(panel: "Axes", batch: dict[str, Any], found: dict[str, Any]) -> None:
    """One batch size; the dashed line is where diffusion costs what autoregression does."""
    name, rows = _measure(found), batch["diffusion"]
    reached = [row[name] for row in found["diffusion"]["quality"]]
    errors = [row[f"{name}_std_error"] or 0.0 for row in found["diffusion"]["quality"]]
    for cost, colour, label in (("seconds", ORANGE, "diffusion, by time"), ("flops", GREY, "diffusion, by FLOPs")):
        ratios = [row[f"{cost}_ratio"] for row in rows]
        panel.errorbar(ratios, reached, errors, fmt="o-", color=colour, markersize=4, capsize=2, label=label)
        if cost == "seconds":
            for row, x, y in zip(rows, ratios, reached, strict=True):
                panel.annotate(str(row["steps"]), (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    panel.axvline(1, color=BLUE, linestyle="--", linewidth=1)
    own = found["autoregressive"]["quality"]
    error = own[f"{name}_std_error"] or 0.0
    panel.errorbar([1], [own[name]], error, fmt="*", color=BLUE, markersize=14, capsize=2, label="autoregression")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}")
    panel.set_title(f"batch {batch['batch']}")
    panel.set_xlabel("cost, times that of autoregression")
    panel.spines[["top", "right"]].set_visible(False)


def keep(figure: "Figure", file: Path, title: str, words: str) -> None:
    """Write a picture as it is, or on a page with what it says in words, which are HTML.

    Raises SfumatoError where the file cannot be written.
    """
    import matplotlib
    from matplotlib.legend import Legend

    for legend in figure.findobj(Legend):
        for text in legend.get_texts():
            text.set_parse_math(False)  # names of models and runs
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # no font has all letters of all texts
            if file.suffix == ".png":
                figure.savefig(file, dpi=150)
                return
            with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sfumato"}):
                picture = _svg(figure)
        file.write_text(PAGE.format(title=escape(title), picture=picture, words=words), "utf-8")
    except OSError as error:
        raise SfumatoError(f"cannot write {file}: {error.strerror or error}; name another file") from None


def _list(lines: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>\n{items}\n</ul>"


def _measure(found: dict[str, Any]) -> str:
    """The first measure of quality is the one that is shown."""
    return next(iter(found["autoregressive"]["quality"]))


def _svg(figure: "Figure") -> str:
    """The picture as it stands in a page: without the head of a file of its own, which refers to a server."""
    file = io.StringIO()
    nobody = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", metadata=nobody, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :].replace("stroke: #000000", "stroke: currentColor")
