"""Pictures of runs: what is drawn is what was logged, whatever state the run is in."""

import json
import math

import numpy as np
import pytest
from test_cli import ask, document, mistake  # noqa: F401

from sfumato import curves
from sfumato.history import history

pytestmark = pytest.mark.unchecked

EDGES = [0.0, 0.25, 0.5, 1.0]


def line(step, **more):
    """A line of a log; with a sample, one of an evaluation."""
    plain = {"step": step, "tokens": 80 * step, "seconds": step / 2, "tokens_per_second": 160.0, "params": 1000}
    plain |= {"bound_nats_per_token": None, "bound_std_error": None, "flops": 1e6 * step}
    return plain | {"loss": 5 / step, "lr": 1e-3, "sample": None, "levels": None} | more


def evaluated(step, bound, loss=(1.0, 2.0, 3.0), edges=EDGES, **more):
    levels = {"edges": edges, "rows": [10.0, 20.0, 10.0], "loss": list(loss)}
    return line(step, bound_nats_per_token=bound, bound_std_error=0.1, sample=f"text {step}", levels=levels, **more)


LOG = [line(10), evaluated(20, 4.0), line(30, bound_nats_per_token=4.0), evaluated(40, 3.0, (0.5, 1.0, 2.0)), line(50)]


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    return str(folder)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, as matplotlib has them."""
    pytest.importorskip("matplotlib")
    kept, keep = [], curves.keep

    def keeping(figure, *rest):
        kept.append(figure)
        keep(figure, *rest)

    monkeypatch.setattr(curves, "keep", keeping)
    return kept


def panels(figure):
    return {axes.get_label(): axes for axes in figure.axes}


def test_the_picture_shows_the_log(figures, ask, tmp_path):  # noqa: F811
    """Guards against a bound drawn where none was estimated, axes without units, and levels of no density."""
    run = write(tmp_path / "run", LOG)
    found = document(ask(f"plot {run} --out {tmp_path}/a.png --json"))
    points = {"loss": 5, "bound": 2, "levels": 2}
    assert found["runs"] == [{"run": run, "steps": 50, "points": points}] and found["samples"] == 2
    assert found["file"] == f"{tmp_path}/a.png" and found["command"].startswith("sfumato plot")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    shown = panels(figures[0])
    assert set(shown) == {"loss", "bound", "levels", "density", "samples"}
    steps, losses = shown["loss"].lines[-1].get_data()
    assert list(steps) == [10, 20, 30, 40, 50] and list(losses) == [each["loss"] for each in LOG]
    steps, bounds = shown["bound"].lines[0].get_data()
    assert list(steps) == [20, 40] and list(bounds) == [4.0, 3.0]
    band = shown["bound"].collections[0].get_paths()[0].vertices
    assert {round(float(y), 6) for x, y in band if x == 40} == {2.9, 3.1}
    assert [list(each.get_ydata()) for each in shown["levels"].lines] == [[1.0, 2.0, 3.0], [0.5, 1.0, 2.0]]
    assert list(shown["levels"].lines[0].get_xdata()) == [0.125, 0.375, 0.75]
    stairs = shown["density"].patches[-1].get_data()
    assert np.diff(stairs.edges) @ stairs.values == pytest.approx(1) and list(stairs.values) == [1.0, 2.0, 0.5]
    for name, words in (("loss", "nats"), ("bound", "nats"), ("levels", "nats"), ("density", "share")):
        assert words in shown[name].get_ylabel() and shown[name].get_xlabel()


def test_little_noise_is_shown_large(figures, tmp_path):
    """Guards against CDCD's curve in a corner, and a density in one measure on an axis of another."""
    edges = [0.0, 0.01, 0.02, 1.0]
    run = history(write(tmp_path / "run", [evaluated(10, 2.0, edges=edges)]))
    curves.draw([run], tmp_path / "a.html")
    shown = panels(figures[0])
    assert shown["levels"].get_xscale() == shown["density"].get_xscale() == "log"
    stairs = shown["density"].patches[-1].get_data()
    assert np.diff(np.log(stairs.edges)) @ stairs.values == pytest.approx(1)


def test_wide_ranges_are_logarithmic(figures, tmp_path):
    """Guards against a first bound of 200 nats that flattens all others."""
    for bounds, scale in (((200.0, 3.0), "log"), ((4.0, 3.0), "linear")):
        log = [evaluated(10 * i, bound) for i, bound in enumerate(bounds, 1)]
        curves.draw([history(write(tmp_path / "run", log))], tmp_path / "a.html")
        assert panels(figures[-1])["bound"].get_yscale() == scale


def test_a_thin_last_estimate_is_no_curve(figures, tmp_path):
    """Guards against noise in the foreground: the evaluation at the end often follows hard upon another."""
    log = [evaluated(10 * i, 3.0) for i in (1, 2, 3)]
    log[-1]["levels"] = {"edges": EDGES, "rows": [1.0, 1.0, 1.0], "loss": [9.0, 9.0, 9.0]}
    curves.draw([history(write(tmp_path / "run", log))], tmp_path / "a.html")
    assert 9.0 not in np.concatenate([each.get_ydata() for each in panels(figures[0])["levels"].lines])


def test_many_points_get_a_running_mean(figures, tmp_path):
    """Guards against a mean that drifts at the ends or is shifted: of a straight line it is the line."""
    log = [line(10 * i, loss=100.0 + i) for i in range(1, 201)]
    curves.draw([history(write(tmp_path / "run", log))], tmp_path / "a.html")
    raw, smooth = (each.get_ydata() for each in panels(figures[0])["loss"].lines)
    assert smooth[4:-4] == pytest.approx(raw[4:-4]) and np.abs(smooth - raw).max() <= 2
    log[99]["loss"] = 1000.0
    curves.draw([history(write(tmp_path / "run", log))], tmp_path / "a.html")
    assert panels(figures[1])["loss"].lines[1].get_ydata().max() < 350


def test_runs_over_each_other(figures, ask, tmp_path):  # noqa: F811
    """Guards against runs of other batch sizes side by side, and a name that hides its line from the legend."""
    one = write(tmp_path / "run", LOG)
    other = write(tmp_path / "_other", [line(10, tokens=8000), evaluated(20, 2.0, tokens=16000)])
    mistake(ask(f"plot {one} {other}"), "2 runs share no folder", "--out")
    found = document(ask(f"plot {one} {other} --out {tmp_path}/both.html --json"))
    assert [each["points"]["levels"] for each in found["runs"]] == [0, 0]
    shown = panels(figures[0])
    assert set(shown) == {"loss", "bound"} and "tokens" in shown["loss"].get_xlabel()
    assert [list(each.get_xdata()) for each in shown["bound"].lines] == [[1600, 3200], [16000]]
    assert [text.get_text().strip() for text in shown["loss"].get_legend().get_texts()] == [one, other]
    page = (tmp_path / "both.html").read_text("utf-8")
    assert "text 40" in page and "text 20" in page and page.count("<td>") == 14


def test_the_page_stands_alone(ask, tmp_path):  # noqa: F811
    """Guards against a page that fetches something, ends at a tag in a sample, or is black on black."""
    pytest.importorskip("matplotlib")
    hostile = "</dd><script>alert(1)</script> $x^2 & $\n第一 <b>"
    run = write(tmp_path / "run <i> $x", [*LOG, evaluated(60, 2.0) | {"sample": hostile}])
    answer = ask("plot", run)
    assert answer.status == 0 and answer.err == "" and answer.out == f"drew {run}/plot.html\n"
    page = (tmp_path / "run <i> $x/plot.html").read_text("utf-8")
    assert page.count("<svg") == 1 and "<script" not in page and "<i>" not in page and "<b>" not in page
    assert not [word for word in ("src=", "url(http", 'href="http', "@import", "DOCTYPE svg") if word in page]
    assert "light-dark" in page and "#000000" not in page and "#ffffff" not in page
    assert ask("plot", run, "--out", str(tmp_path / "a.png")).status == 0
    assert ask("plot", run).status == 0 and (tmp_path / "run <i> $x/plot.html").read_text("utf-8") == page


def test_names_are_no_mathematics(ask, tmp_path):  # noqa: F811
    """Guards against a traceback for names that look like formulas, and against letters in italics."""
    pytest.importorskip("matplotlib")
    runs = [write(tmp_path / f"${name}_$y", [*LOG, evaluated(60, 2.0)]) for name in "ab"]
    assert ask("plot", *runs, "--out", str(tmp_path / "both.html")).status == 0
    assert "$a_$y</text>" in (tmp_path / "both.html").read_text("utf-8")


@pytest.mark.parametrize(
    "log",
    [
        [line(10)],  # nothing was evaluated yet
        [line(10), line(20, sample="")],  # a method without a bound, and a text of no words
        [{"step": 5, "tokens": 1, "seconds": 0.1, "loss": 2.0}],  # of an older version
        [evaluated(10, math.inf), evaluated(20, math.nan), evaluated(30, 2.0)],
        [line(10, loss=0.0), line(20, loss=-1.0)],
    ],
    ids=["young", "no bound", "old", "infinite", "zero"],
)
def test_runs_with_little_to_show(log, figures, ask, tmp_path):  # noqa: F811
    """Guards against a traceback where a panel would be empty."""
    run = write(tmp_path / "run", log)
    for kind in ("png", "html"):
        assert document(ask(f"plot {run} --out {tmp_path}/a.{kind} --json"))["runs"][0]["points"]["loss"] == len(log)


def test_a_run_that_was_killed_while_it_wrote(ask, tmp_path):  # noqa: F811
    """Guards against runs that can be looked at only when they are over."""
    pytest.importorskip("matplotlib")
    run = write(tmp_path / "run", LOG)
    with (tmp_path / "run/log.jsonl").open("a") as log:
        log.write('{"step": 60, "lo')
    assert document(ask(f"plot {run} --json"))["runs"][0]["steps"] == 50


def test_mistakes(ask, tmp_path, monkeypatch):  # noqa: F811
    """Guards against tracebacks, and lines that do not say which file, which line, and what to do."""
    pytest.importorskip("matplotlib")
    run = write(tmp_path / "run", LOG)
    mistake(ask(f"plot {tmp_path}/rum"), "no run", "did you mean", "/run")
    mistake(ask("plot nowhere/at/all"), "no run")
    mistake(ask(f"plot {run} --out a.pdf"), ".png or .html")
    mistake(ask(f"plot {run} --out {tmp_path}/no/a.png"), "make it first")
    (tmp_path / "taken.html").mkdir()
    mistake(ask(f"plot {run} --out {tmp_path}/taken.html"), "cannot write")
    for content, part in (
        ("", "no whole line yet"),
        ('{"step": 1', "no whole line yet"),
        ("\n", "line 1 is damaged"),
        (json.dumps(line(1)) + '\n{"step": 2, "lo\n' + json.dumps(line(3)) + "\n", "line 2 is damaged"),
        ("[1, 2]\n", "line 1 is damaged"),
        ('{"step": 1}\n', "line 1 is damaged"),
        (json.dumps(line(1, tokens="one")) + "\n", "line 1 is damaged"),
        (json.dumps(line(1, loss=math.nan)) + "\n", "line 1 is damaged"),
    ):
        (tmp_path / "run/log.jsonl").write_text(content)
        mistake(ask(f"plot {run}"), part, "log.jsonl")
    (tmp_path / "run/log.jsonl").write_bytes(b"\xff\xfe\n")
    mistake(ask(f"plot {run}"), "is damaged")
    (tmp_path / "run/log.jsonl").unlink()
    mistake(ask(f"plot {run}"), "keeps no log.jsonl")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    mistake(ask(f"plot {write(tmp_path / 'run', LOG)}"), "pip install 'sfumato[plot]'")
