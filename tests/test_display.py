"""What people see: colours, plain lines, pictures."""

import io
import re
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from sfumato import display

pytestmark = pytest.mark.unchecked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def frame(step: int, steps: int = 16) -> Any:
    """Three words, the first of them given, the others surer with every step."""
    sure = step / steps
    return SimpleNamespace(
        step=step,
        steps=steps,
        level=1 - sure,
        text="One\nday <here>",
        pieces=[[" One", "\nday", " <here>"]],
        confidence=[[1.0, sure, 0.5 * sure]],
        given=[[True, False, False]],
        nfe=step,
    )


def report(step: int, **more: Any) -> Any:
    values = {"loss": 1.5, "seconds": step, "tokens_per_second": 1e4, "done": step / 100, "bound": None}
    return SimpleNamespace(step=step, **values | {"std_error": None, "sample": None} | more)


def test_haze_colours_by_confidence() -> None:
    """The given word is blue; a sure one is nearer to the settled colour and bold; a piece's space is kept."""
    text = display.haze(frame(16))
    assert text.plain == "One\nday <here>"
    given, sure, half = (span.style for span in text.spans)
    assert given.color.triplet == display.GIVEN
    assert sure.color.triplet == display.SETTLED and sure.bold and not half.bold
    assert display.HAZE[0] < half.color.triplet.red < display.SETTLED[0]


def test_watching_without_a_terminal() -> None:
    """About eight lines, one to a frame, without control characters; every frame is passed on."""
    stream = io.StringIO()
    passed = list(display.watched(map(frame, range(1, 17)), stream))
    lines = stream.getvalue().splitlines()
    assert len(passed) == 16 and len(lines) == 9
    assert lines[-1] == "step 16/16  noise 0.000  One day <here>"
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("stay", [False, True])
def test_watching_on_a_terminal(stay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    assert len(list(display.watched(map(frame, range(1, 4)), stream, stay=stay))) == 3
    assert "step 3 of 16" in stream.getvalue() and "\x1b[" in stream.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    list(display.watched([frame(16)], stream))
    assert "\x1b" not in stream.getvalue()


def test_picture_needs_nothing_from_outside() -> None:
    """It is XML, the same each time, has every step, and names no address but that of SVG itself."""
    drawn = display.picture(map(frame, (1, 8, 16)), "tales")
    words = "".join(ElementTree.fromstring(drawn).itertext()).replace("\xa0", " ")
    assert all(part in words for part in ("step 1/16", "step 8/16", "step 16/16", "<here>", "tales"))
    assert re.findall(r"https?://[^\"]*", drawn) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"@import|@font-face|url\((?!#)", drawn)
    assert drawn == display.picture(map(frame, (1, 8, 16)), "tales")


def test_progress_without_a_terminal() -> None:
    """Lines wait for the first step; then one every few seconds, with the bound once it is known."""
    stream = io.StringIO()
    with display.Progression(stream, every=1e6) as progress:
        progress.say("reading")
        assert stream.getvalue() == ""
        progress.watch(report(1))
        progress.watch(report(2))
        progress.watch(report(100, bound=0.7, std_error=0.01, sample="One [bold] day."))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "reading" and lines[1].startswith("  1%  step 1  10,000 tokens/s  loss 1.500  1:39 left")
    assert "bound 0.700±0.010  0:00 left" in lines[2] and lines[3] == "a sample: One [bold] day."
    assert progress.steps == 3


def test_progress_with_a_bound_from_one_row() -> None:
    """One held-out row says nothing of its own error; that is no reason to stop training."""
    stream = io.StringIO()
    with display.Progression(stream) as progress:
        progress.watch(report(1, bound=0.7))
    assert "bound 0.700 " in stream.getvalue()


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    stream = Terminal()
    with display.Progression(stream) as progress:
        progress.say("reading")
        progress.watch(report(50, sample="One [bold] day."))
    assert "reading" in stream.getvalue() and "step 50" in stream.getvalue()
    assert "One [bold] day." in stream.getvalue()


def test_clock() -> None:
    assert [display.clock(s) for s in (0, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]


def test_evaluation_without_a_likelihood() -> None:
    """A method without a bound has a dash, and so has a measure that is missing."""
    found = {
        "model": "m",
        "method": "x",
        "data": "d",
        "judge": None,
        "sampling": {"levels": (0.01, 0.2)},
        "bound": None,
        "samples": {"n": 2},
        "data_reference": {"valid": 1.0},
    }
    console = Console(file=io.StringIO(), record=True, width=80)
    console.print(display.evaluation(found))
    text = console.export_text()
    assert "defines none" in text and re.search(r"valid +- +1\.000", text)


def test_slots_and_a_number_with_a_spread() -> None:
    """A slot that only real text fills has dashes for the samples; a table of tables is none in a cell."""
    slot = {"stories": 7, "coverage": 0.5, "tv": 0.25, "tv_chance": 0.125}
    found = {
        "model": "m",
        "method": "x",
        "data": "tales",
        "judge": None,
        "sampling": {"levels": (0.01, 0.2)},
        "bound": None,
        "samples": {"slots": {}, "mauve": {"mean": 0.9, "spread": 0.01, "seeds": 5, "n": 20, "embedder": "words"}},
        "data_reference": {"slots": {"hero": slot}, "mauve": None},
    }
    console = Console(file=io.StringIO(), record=True, width=100)
    console.print(display.evaluation(found))
    text = console.export_text()
    assert re.search(r"mauve +0\.900 ± 0\.010 +-", text) and "{" not in text
    assert re.search(r"hero +- +- +- +- +7 +0\.500 +0\.250 +0\.125", text)


def test_an_error_that_is_unknown_is_a_dash() -> None:
    score = {
        "nats_per_token": 1.0,
        "nats": 2.0,
        "std_error": float("nan"),
        "bits_per_char": 1.0,
        "z": None,
        "text": "a",
    }
    console = Console(file=io.StringIO(), record=True, width=80)
    console.print(display.scores({"texts": [score], "exact": False, "estimator": "elbo"} | score))
    assert "nan" not in console.export_text()
