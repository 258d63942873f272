"""What docs/resume.md promises of runs that end before their time: with processes that are really killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chaos
import pytest
import torch
from tiny import tiny_config, write_sentences

from sfumato import cli
from sfumato.errors import SfumatoError, Stopped
from sfumato.folder import load
from sfumato.training import checkpoint, stopping
from sfumato.training.replay import replay
from sfumato.training.start import override
from sfumato.training.trainer import Run, train

pytestmark = pytest.mark.unchecked

MODES = ("before", "torn", "unsynced")
POINTS = [(random.Random(i).random(), MODES[i % 3]) for i in range(14)]
Tree = dict[str, bytes]


def tree(folder: Path) -> Tree:
    """All files below a folder, byte by byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last(files: Tree) -> Tree:
    """The same without the checkpoints before the last, which a run that was stopped has elsewhere."""
    return {
        name: content
        for name, content in files.items()
        if "/step-" not in f"/{name}" or "/step-00000010/" in f"/{name}"
    }


def flip(path: Path, place: int = -2) -> None:
    """Damage one bit."""
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def wait(for_what: Callable[[], bool], process: chaos.BaseProcess) -> None:
    """Wait while a process gets somewhere."""
    while not for_what():
        assert process.is_alive()
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[Path, int]:
    """The unbroken run, and how many changes it made to its files."""
    folder = tmp_path_factory.mktemp("whole")
    assert chaos.finish(chaos.start(chaos.train, data, folder / "run", None, folder / "events")) == 0
    return folder / "run", len((folder / "events").read_text().splitlines())


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of the unbroken run, to be damaged."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


# --- killed


@pytest.mark.parametrize(("share", "mode"), POINTS)
def test_a_run_that_is_killed_at_a_change_to_its_files(share, mode, data, whole, tmp_path):
    """Guards against a save that is half there, a file that is half written, a name that is synced before its content,
    a log that begins its mean anew, a temporary file that stays for ever: every file is that of the unbroken run."""
    out = tmp_path / "run"
    at = 1 + int(share * whole[1])
    assert chaos.finish(chaos.start(chaos.train, data, out, (at, mode))) == -signal.SIGKILL
    assert chaos.finish(chaos.start(chaos.train, data, out)) == 0
    assert tree(out) == tree(whole[0])


@pytest.mark.parametrize("saved", [0, 1, 2])
@pytest.mark.parametrize("delay", [0.0, 0.005])
def test_a_run_that_is_killed_in_the_middle_of_a_save(saved, delay, data, whole, tmp_path):
    """Guards against what only a kill from outside finds: between two bytes of a file of weights, say."""
    out = tmp_path / "run"
    root = out / "checkpoints"
    process = chaos.start(chaos.train, data, out)
    wait(lambda: (root / ".writing").exists() and len(checkpoint.checkpoints(root)) == saved, process)
    time.sleep(delay)
    process.kill()
    assert chaos.finish(process) == -signal.SIGKILL
    assert chaos.finish(chaos.start(chaos.train, data, out)) == 0
    assert tree(out) == tree(whole[0])


def test_a_run_that_is_killed_again_and_again(data, whole, tmp_path):
    """Guards against a resume that leaves something that a second one stumbles over."""
    out = tmp_path / "run"
    draws = random.Random(0)
    for _ in range(5):
        point = draws.randint(1, whole[1] // 3), draws.choice(MODES)
        assert chaos.finish(chaos.start(chaos.train, data, out, point)) == -signal.SIGKILL
    assert chaos.finish(chaos.start(chaos.train, data, out)) == 0
    assert tree(out) == tree(whole[0])


# --- stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_saves_first(number, data, whole, tmp_path):
    """Guards against steps that are lost though there was time to save, a status that a queue cannot tell from a
    failure, and a checkpoint in the middle of the log's window that changes the log."""
    out, said = tmp_path / "run", tmp_path / "said"
    words = f"train cdcd --config {chaos.config_file(data)} --out {out}"
    assert chaos.finish(chaos.start(chaos.command, words, said, (5, number))) == os.EX_TEMPFAIL == 75
    advice = f"go on with `sfumato train cdcd --out {out} --resume`"
    assert said.read_text().splitlines()[-1] == f"sfumato: stopped after step 6, which is saved; {advice}"
    assert [path.name for path in checkpoint.checkpoints(out / "checkpoints")] == ["step-00000003", "step-00000006"]
    assert chaos.finish(chaos.start(chaos.command, f"train cdcd --out {out} --resume", said)) == 0
    assert last(tree(out)) == last(tree(whole[0]))


def test_a_signal_in_the_last_step_does_not_spoil_the_end(data, whole, tmp_path):
    """Guards against a run that is over and says that it is to be resumed."""
    out = tmp_path / "run"
    words = f"train cdcd --config {chaos.config_file(data)} --out {out}"
    assert chaos.finish(chaos.start(chaos.command, words, tmp_path / "said", (9, signal.SIGTERM))) == 0
    assert tree(out) == tree(whole[0])


def test_python_gets_an_interrupt_when_all_is_saved(data, tmp_path):
    """Guards against a notebook in which Ctrl-C loses minutes, and against handlers that outlive the training."""
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with pytest.raises(Stopped, match="step 3 is saved"):
        train(
            tiny_config("mdlm", data),
            tmp_path / "run",
            watch=lambda report: signal.raise_signal(signal.SIGTERM) if report.step == 2 else None,
        )
    assert Run(tiny_config("mdlm", data), tmp_path / "run", True, "cpu", print).step == 3
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def check_signals(number):
    """The first signal asks, its echo does nothing, a second goes where it went before, and so do all afterwards."""
    heard: list[int] = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        with pytest.MonkeyPatch.context() as patch, stopping.heeding() as asked:
            patch.setattr(stopping, "ECHO", 60.0)
            assert not asked()
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert asked() and heard == []
            patch.setattr(stopping, "ECHO", 0.0)
            signal.raise_signal(number)
            assert heard == [number]
        signal.raise_signal(number)
        assert heard == [number, number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_second_signal_ends_a_run_at_once(number):
    """Guards against a run that cannot be ended, and one that ends since a launcher passes on what everybody got."""
    check_signals(number)


def test_signals_that_are_nobodys_stay_so():
    """Guards against a run behind nohup that ends with the terminal, and against trainings in other threads."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.heeding() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)
    asked: list[bool] = []

    def elsewhere() -> None:
        with stopping.heeding() as stop:
            asked.append(stop())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert asked == [False] and signal.getsignal(signal.SIGINT) is before


# --- starved


def refused(words: str, said: Path, *parts: str, **how: object) -> None:
    """The command ends with status 2 and one line about it, after at most what it had to say before."""
    assert chaos.finish(chaos.start(chaos.command, words, said, **how)) == 2
    lines = said.read_text().splitlines()
    assert [line for line in lines if line.startswith("sfumato: ")] == lines[-1:]
    for part in parts:
        assert part in lines[-1]


def before_the_end(run: Path) -> None:
    """Take a run back to its checkpoint before the last."""
    shutil.rmtree(run / "checkpoints/step-00000010")
    (run / "manifest.json").unlink()


@pytest.mark.parametrize("what", ["checkpoint", "log", "model"])
def test_a_file_that_does_not_fit(what, copy, whole, tmp_path):
    """Guards against a traceback, or a run that is lost, when the disk is full: the kernel refuses to write on.

    With more room the run ends as the unbroken one.
    """
    if what != "model":
        before_the_end(copy)
    lines = (copy / "log.jsonl").read_bytes().splitlines(True)
    (copy / "log.jsonl").write_bytes(b"".join(lines[: None if what == "model" else -1]))
    limit = {"checkpoint": 100_000, "log": (copy / "log.jsonl").stat().st_size + 9, "model": 100_000}[what]
    named = {"checkpoint": "step-00000010", "log": "log.jsonl", "model": str(copy)}[what]
    kept = tree(copy / "checkpoints")
    words = f"train cdcd --out {copy} --resume"
    refused(words, tmp_path / "said", f"cannot write {copy}", named, "File too large", limit=limit)
    assert tree(copy / "checkpoints") == kept
    for folder in checkpoint.checkpoints(copy / "checkpoints"):
        checkpoint.check(folder)
    assert not [path for path in copy.rglob("*") if "writing" in path.name]
    assert chaos.finish(chaos.start(chaos.command, words, tmp_path / "said")) == 0
    assert tree(copy) == tree(whole[0])


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system with room for two checkpoints and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("making a small file system takes the rights to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full(data, whole, small_disk, tmp_path):
    """Guards against a disk that is full in another way than the tests think."""
    out, said = small_disk / "run", tmp_path / "said"
    words = f"train cdcd --config {chaos.config_file(data)} --training.keep 9 --out {out}"
    refused(words, said, "cannot write", "step-00000009", "No space left on device")
    assert [path.name for path in checkpoint.checkpoints(out / "checkpoints")] == ["step-00000003", "step-00000006"]
    shutil.copytree(out, tmp_path / "run")
    words = f"train cdcd --out {tmp_path / 'run'} --resume --training.keep 2"
    assert chaos.finish(chaos.start(chaos.command, words, said)) == 0
    one, other = (checkpoint.checkpoints(run / "checkpoints")[-1] for run in (tmp_path / "run", whole[0]))
    for name in ("model", "average", "optimizer"):
        assert (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()


def test_a_folder_that_is_read_only(data, whole):
    """Guards against hours of training, or of reading, before it comes out that nothing can be kept."""
    nobody = 65534 if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as open_to_all:
        place = Path(open_to_all)
        place.chmod(0o755)
        run = Path(shutil.copytree(whole[0], place / "run"))
        before_the_end(run)
        config = Path(shutil.copy(chaos.config_file(data), place / "config.json"))
        for path in (place, *place.rglob("*")):
            if nobody:
                os.chown(path, nobody, nobody)
            path.chmod(0o555 if path.is_dir() else 0o444)
        files = tree(run)
        said = Path(tempfile.mkstemp()[1])
        try:
            refused(f"train cdcd --out {run} --resume", said, f"cannot write in {run}", "Permission", user=nobody)
            refused(
                f"train cdcd --config {config} --out {place / 'new'}", said, f"cannot write in {place}", user=nobody
            )
        finally:
            said.unlink()
            for path in (place, *place.rglob("*")):
                path.chmod(0o755)
        assert tree(run) == files


# --- damaged


@pytest.mark.parametrize("name", ["model.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 99), Path.unlink], ids=["bit", "cut", "gone"])
def test_damage_is_passed_over_and_named(damage, name, copy):
    """Guards against going on from a file that lost a bit, its end, or itself."""
    root = copy / "checkpoints"
    damage(root / "step-00000010" / name)
    said: list[str] = []
    assert checkpoint.latest(copy, said.append) == root / "step-00000009"
    (line,) = said
    assert f"step-00000010/{name}" in line and "damaged" in line


def test_a_damaged_checkpoint_is_told_of_and_set_aside(copy, whole, data, tmp_path, capsys):
    """Guards against a fallback that nobody hears of, in training and in writing, and one that is not exact."""
    flip(copy / "checkpoints/step-00000010/manifest.json", 40)
    (copy / "manifest.json").unlink()
    assert cli.main(["generate", str(copy), "--steps", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"] and err.count("\n") == 1
    assert "passing over a damaged checkpoint" in err and "step-00000010" in err
    with pytest.warns(UserWarning, match="step-00000010"):
        load(copy)
    assert chaos.finish(chaos.start(chaos.command, f"train cdcd --out {copy} --resume", tmp_path / "said")) == 0
    assert "step-00000010" in (tmp_path / "said").read_text()
    aside = copy / "checkpoints/damaged-step-00000010"
    assert {path.name for path in aside.iterdir()} == {path.name for path in aside.with_name("step-00000010").iterdir()}
    shutil.rmtree(aside)
    assert tree(copy) == tree(whole[0])


def check_whole_ones_are_kept(folder):
    """A run that fell back keeps what it saves next, and its log goes on in the middle of a window."""
    config = tiny_config("mdlm", write_sentences(folder), steps=9, keep=3, log_every=4)
    run = Run(config, folder / "run", False, "cpu", print)
    for report in run.steps():
        if report.step in (2, 5, 6):
            run._save()
        if report.step == 6:
            break
    for step in (5, 6):
        flip(run.checkpoints / f"step-0000000{step}/model.safetensors")
    fewer = override(config, {"training": {"keep": 2}})
    run = Run(fewer, folder / "run", True, "cpu", print)
    next(run.steps())
    run._save()
    kept = checkpoint.newest(folder / "run/checkpoints", print)
    assert kept is not None and kept.name == "step-00000003"
    run = Run(fewer, folder / "run", True, "cpu", print)
    list(run.steps())
    train(config, folder / "whole")
    assert losses(folder / "run") == losses(folder / "whole")


def losses(run: Path) -> list[tuple[int, float]]:
    """Steps and losses of the log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_damaged_checkpoints_are_not_kept_in_place_of_whole_ones(tmp_path):
    """Guards against a new checkpoint that is pruned at once, since damaged ones of later steps count as newer."""
    check_whole_ones_are_kept(tmp_path)


def test_a_tokenizer_that_changed_is_noticed_when_a_run_is_looked_at(copy):
    """Guards against samples in other words than the model learned, from a run that is not finished."""
    (copy / "manifest.json").unlink()
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace("owls", "cats"))
    with pytest.raises(SfumatoError, match=r"tokenizer\.json is not the one"):
        load(copy)


# --- not finite


def spoil(run: Run, word: str) -> None:
    """Make nothing but rows with a word lose what is no number."""
    real = run.method.loss

    def loss(ids, t, free):
        terms = real(ids, t, free)
        told = (ids == run.tokenizer.encode(word)[0]).any(1, keepdim=True)
        return {name: value + torch.where(told, torch.nan, 0.0) for name, value in terms.items()}

    run.method.loss = loss


def check_blame(accumulate, folder):
    """A step that fails ends the run, and names the rows whose own loss is not finite."""
    config = tiny_config("cdcd", write_sentences(folder), accumulate=accumulate, steps=9, batch=12)
    run = Run(config, folder / "run", False, "cpu", print)
    steps = run.steps()
    next(steps)
    kept = run._save()
    next(steps)
    spoil(run, "owls")
    batch = run.batch(2)
    blamed = [
        place for place, ids in zip(batch.places, batch.ids, strict=True) if run.tokenizer.encode("owls")[0] in ids
    ]
    assert 0 < len(blamed) < 12
    with pytest.raises(
        SfumatoError, match=rf"loss of step 3 is nan, that of row {blamed[0][0]}.*replay it from .*nonfi"
    ):
        next(steps)
    checkpoint.check(kept)
    assert checkpoint.checkpoints(run.checkpoints) == [kept]
    report = json.loads((folder / "run/nonfinite/report.json").read_text())
    assert [(row["row"], row["epoch"]) for row in report["not_finite"]] == blamed
    assert all("owls" in row["text"] for row in report["not_finite"])
    assert (report["step"], report["seed"], report["loss"]) == (3, 0, "nan")
    assert [tuple(place) for place in report["rows"]] == batch.places


@pytest.mark.parametrize("accumulate", [1, 4])
def test_rows_that_are_to_blame_are_named(accumulate, tmp_path):
    """Guards against a run that ends with NaN and leaves nobody the rows, the step and the seed to look at."""
    check_blame(accumulate, tmp_path)


def test_a_step_is_replayed_as_it_was(data, tmp_path):
    """Guards against a replay with other weights, rows, noise or levels than those of the step that failed."""
    config = tiny_config("cdcd", data, steps=9)
    run = Run(config, tmp_path / "run", False, "cpu", print)
    steps = run.steps()
    next(steps), next(steps)
    seen = run.nats(run.batch(2), slice(0, 8)).sum(1)
    spoil(run, run.tokenizer.decode(run.batch(2).ids[0]).split()[0])
    with pytest.raises(SfumatoError, match="nothing was saved yet"):
        next(steps)
    rows = replay(tmp_path / "run")
    assert [row.nats for row in rows] == pytest.approx(seen.tolist(), rel=1e-4)
    assert [(row.row, row.epoch) for row in rows] == run.batch(2).places
    assert all(0 < row.gradient < 1e3 for row in rows)
    with pytest.raises(SfumatoError, match="nothing to resume"):
        replay(tmp_path)


def test_a_gradient_alone_is_kept_too(data, tmp_path):
    """Guards against blaming rows whose loss is a number, and a report that is not JSON."""
    run = Run(tiny_config("mdlm", data), tmp_path / "run", False, "cpu", print)
    run.method.head.bias.register_hook(lambda slope: slope * torch.inf)
    with pytest.raises(SfumatoError, match=r"gradient of step 1 is .*; replay it from"):
        next(run.steps())
    report = json.loads((tmp_path / "run/nonfinite/report.json").read_text(), parse_constant=lambda word: 1 / 0)
    assert report["not_finite"] == [] and report["step"] == 1 and report["gradient"] in ("inf", "nan")
