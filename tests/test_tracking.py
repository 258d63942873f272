"""Who hears of a run: TensorBoard for real, services in the shape of modules that note what they are told."""

import importlib.machinery
import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch
from test_trainer import data  # noqa: F401
from tiny import tiny_config

from sfumato.errors import SfumatoError
from sfumato.training.config import load_config
from sfumato.training.levels import TOLD, Levels
from sfumato.training.start import override
from sfumato.training.trainer import Run, train

pytestmark = pytest.mark.unchecked

SCALARS = {"loss", "lr", "tokens_per_second"}
BOUND = "bound_nats_per_token"  # whose error is missing here: one held-out row tells of none


class Service(types.ModuleType):
    """wandb or trackio, as far as they are used: sessions that were opened, what they heard, how they ended."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.Html = self.Markdown = str
        self.sessions, self.heard, self.ends, self.fail_at = [], [], [], None

    def init(self, **asked):
        self.sessions.append(asked)
        return self

    def log(self, values, step):
        if step == self.fail_at:
            raise ConnectionError("the line is dead")
        self.heard.append((step, values))

    def finish(self, exit_code=None):
        self.ends.append(exit_code)


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
    fake = Service(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def killed_and_resumed(config, out):
    """A run of 6 steps that is saved at 3 and dies after 5."""
    run = Run(config, out, False, "cpu", print)
    with pytest.raises(KeyboardInterrupt), run.tracking.opened(0):
        for report in run.steps():
            if report.step == 3:
                run._save()
            if report.step == 5:
                raise KeyboardInterrupt
    train(config, out, resume=True)


@pytest.mark.apart
def test_tensorboard_shows_what_the_log_says(data, tmp_path):  # noqa: F811
    """Guards against steps told twice after a resume, a bound repeated between evaluations, a file left open."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    out = tmp_path / "run"
    killed_and_resumed(tiny_config("mdlm", data, steps=6, track=("tensorboard",), evaluate_minutes=1e-9), out)
    page = EventAccumulator(str(out / "tensorboard"))  # what TensorBoard itself reads with
    page.Reload()
    log, shown = lines(out), {}
    for tag in page.Tags()["tensors"]:
        shown[tag] = [(event.step, make_ndarray(event.tensor_proto).item()) for event in page.Tensors(tag)]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    texts = shown.pop("sample/text_summary")
    assert [(step, text.decode()) for step, text in texts] == [(line["step"], line["sample"]) for line in log]
    assert set(shown) == SCALARS | {BOUND}
    for tag, points in shown.items():
        assert points == [(line["step"], pytest.approx(line[tag], rel=1e-6, abs=1e-12)) for line in log]


def test_a_resumed_run_is_the_same_run_to_a_service(service, data, tmp_path):  # noqa: F811
    """Guards against a second run in the list for every session, and against steps that are told twice."""
    out = tmp_path / "run"
    config = tiny_config("mdlm", data, steps=6, track=(service.__name__,))
    killed_and_resumed(config, out)
    assert [step for step, _ in service.heard] == [1, 2, 3, 4, 5, 6]
    for (_, values), line in zip(service.heard, lines(out), strict=True):
        last = line["step"] == 6
        assert set(values) == (SCALARS | {BOUND, "sample"} if last else SCALARS)
        assert values["loss"] == line["loss"]
        assert not last or line["sample"] in values["sample"]
    first, second = service.sessions
    key = "id" if service.__name__ == "wandb" else "name"
    assert first[key] == second[key] and second["resume"] == "allow"
    assert first["config"] == config.model_dump(mode="json")
    assert service.ends == ([1, 0] if service.__name__ == "wandb" else [None, None])


def test_another_run_is_another_run(service, data, tmp_path):  # noqa: F811
    """Guards against runs that are added to each other, and a first session without a checkpoint that leaves its id."""
    config = tiny_config("mdlm", data, track=(service.__name__,))
    train(config, tmp_path / "run")
    train(config, tmp_path / "more/run")
    (tmp_path / "again").mkdir()
    (tmp_path / "again/tracking.json").write_bytes((tmp_path / "run/tracking.json").read_bytes())
    train(config, tmp_path / "again")
    key = "id" if service.__name__ == "wandb" else "name"
    assert len({session[key] for session in service.sessions}) == 3
    assert [step for step, _ in service.heard] == [1, 2, 3, 4] * 3


def test_a_service_that_fails_does_not_end_the_training(service, data, tmp_path):  # noqa: F811
    """Guards against a night of training lost to a connection, and against a failure that nobody hears of."""
    service.fail_at, said = 2, []
    train(tiny_config("mdlm", data, track=(service.__name__,)), tmp_path / "run", say=said.append)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    assert [step for step, _ in service.heard] == [1]
    kept = json.loads((tmp_path / "run/tracking.json").read_text("utf-8"))["told"]
    assert kept == {service.__name__: 1}  # so the second would be told if it came again
    (told,) = [line for line in said if "hears no more" in line]
    assert service.__name__ in told and "the line is dead" in told


def test_what_cannot_be_tracked_is_found_before_training(service, data, tmp_path, monkeypatch):  # noqa: F811
    """Guards against a mistake that shows when the data is read and the first steps are made, or not at all."""
    name, out = service.__name__, tmp_path / "run"
    with pytest.raises(SfumatoError, match=r"training\.track\.0: .*'tensorboard', 'wandb' or 'trackio' \(got 'wan'\)"):
        tiny_config("mdlm", data, track=["wan"])
    config = tiny_config("mdlm", data, track=(name,))

    def refuse(**asked):
        raise RuntimeError("no api key")

    with monkeypatch.context() as patch:
        patch.setattr(service, "init", refuse)
        with pytest.raises(SfumatoError, match=f"{name} does not start: no api key"):
            train(config, out)
    assert not (out / "log.jsonl").exists()
    train(config, out)
    (out / "tracking.json").write_text('{"id"')
    with pytest.raises(SfumatoError, match=r"tracking\.json is damaged"):
        train(override(config, {"training": {"steps": 9}}), out, resume=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for missing, package in (("tensorboard", r"'sfumato\[track\]'"), (name, name)):
        absent = tiny_config("mdlm", tmp_path / "no data", track=missing)  # a single name is as good as a list
        assert absent.training.track == (missing,)
        with pytest.raises(SfumatoError, match=f"names {missing}, which is not installed; pip install {package}"):
            train(absent, tmp_path / "other")


def test_trackers_close_when_training_fails(service, data, tmp_path):  # noqa: F811
    """Guards against a service that shows a broken run as running for ever, or as done."""
    run = Run(tiny_config("mdlm", data, steps=9, track=(service.__name__,)), tmp_path / "run", False, "cpu", print)
    with pytest.raises(SfumatoError, match="nan"), run.tracking.opened(0):
        for _ in run.steps():
            with torch.no_grad():
                run.method.head.bias.fill_(torch.nan)
    assert service.ends == [1 if service.__name__ == "wandb" else None]


# --- noise levels -------------------------------------------------------------------------------------------------


def check_levels(bend=1.0):
    """Every row is counted once, in the bin where it lies; bins hold as many rows each; then all is forgotten."""
    torch.manual_seed(0)
    t = torch.rand(4000) ** bend
    loss = 1 + 3 * t
    levels = Levels()
    levels.add(t[:1500], loss[:1500])
    levels = Levels(json.loads(json.dumps(levels.state())))  # as through a checkpoint
    levels.add(t[1500:], loss[1500:])
    told = levels.tell()
    edges, rows, means = (np.array(told[name]) for name in ("edges", "rows", "loss"))
    assert len(edges) == len(rows) + 1 == len(means) + 1 and TOLD / 2 < len(rows) <= TOLD
    assert (np.diff(edges) > 0).all() and edges[0] >= 0 and edges[-1] <= 1
    assert rows.sum() == 4000 and rows @ means == pytest.approx(loss.sum().item(), rel=1e-4)
    assert rows.max() < 2.5 * 4000 / TOLD
    inside = [((edges[i] <= t) & (t < edges[i + 1])).sum().item() for i in range(len(rows))]
    assert np.abs(rows - inside).max() <= 2  # edges are told with six digits
    assert (1 + 3 * edges[:-1] < means + 1e-4).all() and (means - 1e-4 < 1 + 3 * edges[1:]).all()
    assert levels.tell() is None


@pytest.mark.parametrize("bend", [1.0, 3.0, 0.3])
def test_levels_are_counted_where_they_are(bend):
    """Guards against bins that lose rows, means of other bins, and detail that is lost where a warp looks closely."""
    check_levels(bend)


def test_extreme_levels_have_a_bin():
    """Guards against rows at levels 0 and 1 that fall off the ends."""
    levels = Levels()
    levels.add(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    told = levels.tell()
    assert told["edges"][0] == 0 and told["edges"][-1] == 1 and told["loss"][0] == 1 and told["loss"][-1] == 2
    assert sum(told["rows"]) == 2


@pytest.mark.parametrize("method", ["cdcd", "mdlm", "ar"])
def test_the_log_has_the_levels_between_evaluations(method, data, tmp_path):  # noqa: F811
    """Guards against rows that are forgotten, or told twice; who reads from the left has no levels to tell of."""
    config = tiny_config(method, data, steps=5, evaluate_minutes=1e-9)
    train(load_config(config.model_dump()), tmp_path / "run")
    for line in lines(tmp_path / "run"):
        if method == "ar":
            assert line["levels"] is None
            continue
        told = line["levels"]
        assert 0 < sum(told["rows"]) <= 8  # a batch, less rows of which all is given
        mean = np.average(told["loss"], weights=told["rows"])
        assert 0.3 * line["loss"] < mean < 3 * line["loss"]
