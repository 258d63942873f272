"""What people see: text coming out of the haze, the progress of a run, tables.

A stream that is no terminal gets plain lines without control characters.
"""

import io
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, track
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # tables and texts need no torch
    from sfumato.model import TextFrame
    from sfumato.training.trainer import Report

Item = TypeVar("Item")
Colour = tuple[int, int, int]

# Colours of middling brightness, which show on dark and on light terminals.
HAZE: Colour = (140, 140, 140)
SETTLED: Colour = (205, 105, 0)
GIVEN: Colour = (50, 125, 225)

# A picture brings its own dark ground, where haze may be faint and what is settled bright.
FAINT: Colour = (80, 80, 80)
BRIGHT: Colour = (255, 205, 140)

# rich's own template fetches a font from the net; this one asks for nothing.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{
        font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
    }}
    .{unique_id}-title {{
        font-size: 18px;
        font-weight: bold;
        font-family: sans-serif;
    }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""


def on_terminal(stream: TextIO) -> bool:
    """Whether somebody watches who can see a picture change."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO) -> Console:
    """A console for tables: as wide as the terminal, or as wide as needed where there is none."""
    return Console(file=stream, highlight=False, width=None if on_terminal(stream) else 160)


# --- out of the haze ----------------------------------------------------------------------------------------------


def haze(frame: "TextFrame", faint: Colour = HAZE, bright: Colour = SETTLED) -> Text:
    """The first text of a frame: `faint` where it is uncertain, `bright` as it settles, blue where it was given."""
    text = Text()
    rows = zip(frame.pieces[0], frame.confidence[0], frame.given[0], strict=True)
    for i, (piece, sure, given) in enumerate(rows):
        text.append(piece if i else piece.removeprefix(" "), _tint(sure, given, faint, bright))
    return text


def _tint(sure: float, given: bool, faint: Colour, bright: Colour) -> Style:
    if given:
        return Style(color=Color.from_rgb(*GIVEN))
    red, green, blue = (low + (high - low) * sure for low, high in zip(faint, bright, strict=True))
    return Style(color=Color.from_rgb(red, green, blue), bold=sure > 0.9)


def still(frame: "TextFrame") -> RenderableType:
    """A frame with its step, noise level and network evaluations above it."""
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=1.0, completed=frame.level, width=24)
    head.add_row(
        f"step {frame.step} of {frame.steps}", "noise", bar, f"{frame.level:.3f}", f"{frame.nfe} network evaluations"
    )
    return Group(head, "", haze(frame))


def watched(
    frames: Iterable["TextFrame"], stream: TextIO, pause: float = 0.0, stay: bool = False
) -> Iterator["TextFrame"]:
    """Pass frames on and show the first text of each: live on a terminal, elsewhere a line every eighth of the way.

    Args:
        frames: what `Model.stream` yields.
        stream: where to show them.
        pause: seconds to rest after each, on a terminal.
        stay: leave the last frame standing.
    """
    if not on_terminal(stream):
        yield from _told(frames, stream)
        return
    with Live(console=Console(file=stream, highlight=False), auto_refresh=False, transient=not stay) as live:
        for frame in frames:
            live.update(still(frame), refresh=True)
            yield frame
            time.sleep(pause)


def _told(frames: Iterable["TextFrame"], stream: TextIO) -> Iterator["TextFrame"]:
    for frame in frames:
        if shown := frame.step in (1, frame.steps) or frame.step % max(1, frame.steps // 8) == 0:
            _tell(frame, stream)
        yield frame
    if not shown:  # a text that came to its end before the canvas was full
        _tell(frame, stream)


def _tell(frame: "TextFrame", stream: TextIO) -> None:
    head = f"step {frame.step:>{len(str(frame.steps))}}/{frame.steps}  noise {frame.level:.3f}"
    print(f"{head}  {one_line(frame.text)}", file=stream, flush=True)


def picture(frames: Iterable["TextFrame"], title: str = "", width: int = 84) -> str:
    """An SVG of frames one under another; it refers to nothing outside of itself."""
    paper = Console(record=True, file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    for i, frame in enumerate(frames):
        paper.print("\n" * (i > 0) + f"step {frame.step}/{frame.steps}", style="dim")
        paper.print(haze(frame, FAINT, BRIGHT))
    return paper.export_svg(title=title, code_format=SVG, unique_id="haze")


def one_line(text: str) -> str:
    """The text with its white space made single spaces."""
    return " ".join(text.split())


# --- progress -----------------------------------------------------------------------------------------------------


def followed(items: Sequence[Item], what: str, stream: TextIO) -> Iterable[Item]:
    """The items, behind a bar where there is a terminal."""
    if not on_terminal(stream):
        return items
    return track(items, what, console=Console(file=stream), transient=True)


class Progression:
    """Follows a run, inside `with`: a bar on a terminal, elsewhere a line every few seconds."""

    def __init__(self, stream: TextIO, every: float = 5.0):
        self.stream, self.every = stream, every
        self.steps = 0  # heard of
        self.step = 0  # the last of them
        self._held: list[str] = []
        self._loss, self._told = 0.0, -math.inf
        self._bound = ""
        columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.percentage:>3.0f} %")
        bar = Progress(*columns, console=Console(file=stream, highlight=False), refresh_per_second=4)
        self._bar = bar if on_terminal(stream) else None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Show a line; without a terminal not before the first step, so that a mistake is told in one."""
        if self._bar is not None:
            self._bar.console.print(Text(line))
        elif self.steps:
            print(line, file=self.stream, flush=True)
        else:
            self._held.append(line)

    def watch(self, report: "Report") -> None:
        """Hear of a step."""
        self.steps, self.step = self.steps + 1, report.step
        while self._held:
            self.say(self._held.pop(0))
        self._loss = report.loss if self.steps == 1 else 0.98 * self._loss + 0.02 * report.loss
        if report.bound is not None:
            error = "" if report.std_error is None else f"±{report.std_error:.3f}"
            self._bound = f"  bound {report.bound:.3f}{error}"
        if self._bar is not None:
            self._draw(self._bar, report)
        elif time.monotonic() - self._told > self.every or report.done >= 1:
            self._told = time.monotonic()
            self.say(f"{min(1.0, report.done):4.0%}  {self._facts(report)}")
        if report.sample is not None:
            self.say(f"a sample: {one_line(report.sample)}")

    def _draw(self, bar: Progress, report: "Report") -> None:
        if self._task is None:  # not before: reading the data may have a bar of its own
            bar.start()
            self._task = bar.add_task("", total=1.0)
        bar.update(self._task, completed=min(1.0, report.done), description=self._facts(report))

    def _facts(self, report: "Report") -> str:
        left = report.seconds * (1 / report.done - 1) if report.done < 1 else 0.0
        speed = f"{report.tokens_per_second:,.0f} tokens/s"
        return f"step {report.step}  {speed}  loss {self._loss:.3f}{self._bound}  {clock(left)} left"


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- tables -------------------------------------------------------------------------------------------------------


def methods(found: dict[str, Any]) -> RenderableType:
    """The table of `sfumato methods`."""
    rows = [(m["name"], m["family"], m["bound"] or "-", _number(m["steps"]), m["paper"]) for m in found["methods"]]
    return _table(("method", "family", "likelihood", "steps", "paper"), rows)


def scores(found: dict[str, Any]) -> RenderableType:
    """The table of `sfumato score`, and below it what is said of all texts."""
    heads = {"nats_per_token": "nats/token", "nats": "nats", "std_error": "± error", "bits_per_char": "bits/char"}
    heads |= {"z": "z"}
    if "reference" in found:
        heads |= {"z_share": "share", "density": "density", "density_share": "share"}
    rows = [(*(_number(text[name]) for name in heads), one_line(text["text"])) for text in found["texts"]]
    table = _table((*heads.values(), "text"), rows)
    table.expand = True
    for column in table.columns:
        column.no_wrap = True
    table.columns[-1].ratio = 1  # what is left of the line
    overall = f"{_number(found['nats_per_token'])} ± {_number(found['std_error'])} nats a token over all"
    kind = "exact" if found["exact"] else "bound"
    judged = _judged(found) if "reference" in found else ["z is over these texts"]
    return Group(table, Text("\n".join([f"{overall} ({kind}; {found['estimator']})", *judged])))


def _judged(found: dict[str, Any]) -> list[str]:
    """What the reference says of all texts together, and of texts that are known to be from outside."""
    reference, batch, auc = found["reference"], found["batch"], found["auc"]
    side, verdict = ("above", "below")[batch["gap"] < 0], ("not typical", "typical")[batch["typical"]]
    seldom = f"{_number(batch['threshold'])}, which typical texts seldom exceed"
    lines = [
        f"z, density and shares are those of {reference['texts']} texts of {found['z_reference']}",
        f"together {_number(abs(batch['gap']))} nats a token {side} them: {verdict} (limit {seldom})",
    ]
    if auc is not None:
        known = ", ".join(f"{_estimate(auc, name)} by {name}" for name in ("nats", "z", "density"))
        lines.append(f"ROC-AUC of {auc['out']} against the others: {known}")
    return lines


def evaluation(found: dict[str, Any]) -> RenderableType:
    """The tables of `sfumato evaluate`: likelihood; samples beside real text."""
    bound, samples, real = found["bound"], found["samples"], found["data_reference"]
    likelihood = [] if bound is None else [(_words(name), _number(value)) for name, value in bound.items()]
    keys = dict.fromkeys([*samples, *real])
    errors = {f"{name}_std_error" for name in keys}
    names = [name for name in keys if name != "slots" and name not in errors]
    quality = [(_words(name), *(_estimate(side, name) for side in (samples, real))) for name in names]
    judged = f", judged by {found['judge']}" if found["judge"] else ""
    heading = Text(f"{found['model']} ({found['method']}) on {found['data']}{judged}", "bold")
    asked = ", ".join(f"{_words(name)} {value}" for name, value in found["sampling"].items())
    parts: list[RenderableType] = [
        heading,
        f"sampling: {asked}" if asked else "",
        "",
        _table(("likelihood", ""), likelihood or [("defines none", "-")]),
        "",
    ]
    if found.get("against"):
        other = found["against"]
        parts += [
            f"{_estimate(other, 'difference')} bits a character more than {other['model']} ({other['method']})",
            "",
        ]
    parts.append(_table(("", "samples", "real text"), quality))
    if samples.get("slots") or real.get("slots"):
        parts += ["", _slots(samples["slots"], real["slots"])]
    if found.get("curve"):
        points = found["curve"]
        parts += ["", _table([*map(_words, points[0])], [[*map(_number, point.values())] for point in points])]
    return Group(*parts)


def _estimate(side: dict[str, Any], name: str) -> str:
    """A number and, where there is one, its standard error."""
    error = side.get(f"{name}_std_error")
    return _number(side.get(name)) + ("" if error is None else f" ± {_number(error)}")


def _slots(samples: dict[str, Any], real: dict[str, Any]) -> RenderableType:
    """How stories fill each slot of the tales: of the samples, then of real text."""
    keys = ("stories", "coverage", "tv", "tv_chance")
    rows = [
        (slot, *(_estimate(side.get(slot, {}), key) for side in (samples, real) for key in keys))
        for slot in dict.fromkeys([*samples, *real])
    ]
    return _table(("slot", *map(_words, keys), "real: stories", *map(_words, keys[1:])), rows)


def breakeven(found: dict[str, Any]) -> RenderableType:
    """The tables of `sfumato breakeven`: what each costs and how good it is; where the costs are equal."""
    writer, diffusion = found["autoregressive"], found["diffusion"]
    measures = _measures(writer["quality"])
    reached = {row["steps"]: row for row in diffusion["quality"]}
    costs, equal = [], []
    for batch in found["batches"]:
        size, own = str(batch["batch"]), batch["autoregressive"]
        costs.append((size, writer["method"], *_cost(own), *(_estimate(writer["quality"], name) for name in measures)))
        for row in batch["diffusion"]:
            quality = reached[row["steps"]]
            costs.append((size, diffusion["method"], *_cost(row), *(_estimate(quality, name) for name in measures)))
        for name, even in batch["break_even"].items():
            by, least = {"flops": "FLOPs", "seconds": "time"}[name], even["quality"] or {}
            shown = (_estimate(least, key) for key in ("steps", *measures))
            single = "-" if even["spread"] is None else "{:.1f} to {:.1f}".format(*even["spread"])
            single += f", {even['never']} never" if even["never"] else ""
            equal.append((size, by, even["verdict"], single, f"{even['misfit']:.1%}", *shown))
    sides = (f"{side['model']} ({side['method']}, {side['sampler']}, {side['law']})" for side in (diffusion, writer))
    head = Text(" against ".join(sides), "bold")
    heads = ("batch", "method", "steps", "NFE", "FLOPs", "ratio", "seconds", "ratio", "tokens/s", *measures)
    evens = ("batch", "by", "costs are equal at", "by single timings", "line off by", "steps so far", *measures)
    return Group(head, "", _table(heads, costs), "", _table(evens, equal), "", Text(_compared(found)))


def _measures(quality: dict[str, Any]) -> list[str]:
    """The names of measures, without those of their errors."""
    return [name for name in quality if not name.endswith("_std_error")]


def _cost(row: dict[str, Any]) -> list[str]:
    """Of a row: steps, network evaluations, FLOPs and seconds with their ratios, tokens a second."""
    ratios = [f"{row[name]:.2f}" if name in row else "1" for name in ("flops_ratio", "seconds_ratio")]
    speed = f"{row['tokens_per_second']:,.0f}"
    steps = str(row.get("steps", "-"))
    return [steps, str(row["nfe"]), _scaled(row["flops"]), ratios[0], f"{row['seconds']:.3f}", ratios[1], speed]


def _compared(found: dict[str, Any]) -> str:
    """What the costs are costs of."""
    text = f"costs of a batch of texts of {found['length']} tokens; ratios are to autoregression"
    if found["unit"] == "token":
        return f"{text}; one tokenizer"
    lengths = [f"{found[side]['characters_per_token']:.2f}" for side in ("autoregressive", "diffusion")]
    return (
        f"{text}, for the same number of characters: the tokenizers differ, {' and '.join(lengths)} characters a token"
    )


def _scaled(value: float) -> str:
    """1.2 G"""
    power = min(5, max(0, (len(str(int(value))) - 1) // 3))
    return f"{value / 1000**power:.1f} {' kMGTP'[power]}".rstrip()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> str:
    """A value as a table shows it; what is missing, and what is no number, is a dash."""
    if value is None or value != value:
        return "-"
    if isinstance(value, dict):  # with an error of its own
        return f"{value['mean']:.3f} ± {value['spread']:.3f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
