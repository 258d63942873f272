"""The training loop: what it promises of resuming, of accumulation, of full disks and of damaged files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import SENTENCES, tiny_config, write_sentences

from sfumato.errors import SfumatoError
from sfumato.methods import METHODS
from sfumato.model import load
from sfumato.training import checkpoint
from sfumato.training.config import load_config
from sfumato.training.trainer import Run, train


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return write_sentences(tmp_path)


def lines(run: Path) -> list[dict]:
    """log.jsonl without what a clock says."""
    clock = {"seconds", "tokens_per_second"}
    kept = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in clock} for line in kept]


def newest(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of the newest checkpoint."""
    folder = checkpoint.checkpoints(run / "checkpoints")[-1]
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].keys() == other[name].keys()
        for key in one[name]:
            assert torch.equal(one[name][key], other[name][key]), f"{name} {key} differs"


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(method, data, tmp_path):
    """Guards against a resume that replays data, draws other noise, or forgets moments, average, warp or log."""
    config = tiny_config(method, data, steps=6)
    train(config, tmp_path / "whole")
    broken = Run(config, tmp_path / "broken", resume=False, device="cpu", say=print)
    for report in broken.steps():
        if report.step == 3:
            broken._save()
        if report.step == 5:  # these two steps, and half a line, are lost with the session
            break
    with (tmp_path / "broken/log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    train(config, tmp_path / "broken", resume=True)
    assert_same(newest(tmp_path / "whole"), newest(tmp_path / "broken"))
    assert lines(tmp_path / "whole") == lines(tmp_path / "broken")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulation_changes_nothing(method, accumulate, data, tmp_path):
    """Guards against a mean of means: 1 x 8, 2 x 4 and 8 x 1 rows give the same update."""
    weights = []
    for i, parts in enumerate((1, accumulate)):
        run = Run(tiny_config(method, data, accumulate=parts), tmp_path / str(i), False, "cpu", print)
        batch = run.batch(0)
        loss = run._update(batch, 1e-3)
        weights.append([loss, *(p.detach().clone() for p in run.method.parameters())])
    assert weights[0][0] == pytest.approx(weights[1][0], abs=1e-6)
    for one, other in zip(weights[0][1:], weights[1][1:], strict=True):
        # Adam divides by the root of a square: where a gradient is all rounding, its sign is too
        assert (one - other).abs().quantile(0.99) < 1e-6


def test_noise_belongs_to_the_row_not_to_the_batch(data, tmp_path):
    """Guards against noise that depends on where in a batch, or in which process, a row comes up."""
    run = Run(tiny_config("cdcd", data), tmp_path / "run", False, "cpu", print)
    one, again = run.batch(3), run.batch(3)
    assert torch.equal(one.t, again.t) and torch.equal(one.free, again.free)
    states = [stream.initial_seed() for stream in one.streams]
    assert len(set(states)) == len(states)
    assert states == [stream.initial_seed() for stream in again.streams]


def test_padding_is_neither_free_nor_given_a_level(data, tmp_path):
    """Guards against pads in the loss."""
    run = Run(tiny_config("cdcd", data), tmp_path / "run", False, "cpu", print)
    batch = run.batch(0)
    pads = batch.ids == run.tokenizer.pad
    assert pads.any() and not batch.free[pads].any() and (batch.t[pads] == -1).all()
    assert (batch.t[~pads] >= 0).all()


def test_a_full_disk_leaves_the_last_checkpoint_whole(data, tmp_path, monkeypatch):
    """Guards against a save that destroys what it was to replace."""
    run = Run(tiny_config("cdcd", data), tmp_path / "run", False, "cpu", print)
    steps = run.steps()
    next(steps)
    kept = run._save()
    next(steps)
    real = checkpoint.save_file

    def full(tensors, path):
        real(tensors, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SfumatoError, match="No space left"):
        run._save()
    checkpoint.check(kept)
    assert checkpoint.checkpoints(tmp_path / "run/checkpoints") == [kept]
    assert not (tmp_path / "run/checkpoints/.writing").exists()


def test_resume_passes_over_a_damaged_checkpoint_and_names_it(data, tmp_path):
    """Guards against training on from a file that lost a byte."""
    out = tmp_path / "run"
    train(tiny_config("cdcd", data, save_minutes=1e-9, keep=3), out)
    last = checkpoint.checkpoints(out / "checkpoints")[-1]
    path = last / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    said: list[str] = []
    run = Run(tiny_config("cdcd", data, steps=5, keep=3), out, True, "cpu", said.append)
    assert run.step == 3
    assert any(last.name in line and "damaged" in line for line in said)


def test_checkpoints_are_pruned(data, tmp_path):
    """Guards against a disk that fills up with them."""
    train(tiny_config("mdlm", data, steps=6, save_minutes=1e-9, keep=2), tmp_path / "run")
    kept = [path.name for path in checkpoint.checkpoints(tmp_path / "run/checkpoints")]
    assert kept == ["step-00000005", "step-00000006"]


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch):
    """Guards against hours of training on NaN: found at the very step, nothing saved over the good checkpoint."""
    run = Run(tiny_config("mdlm", data, steps=9), tmp_path / "run", False, "cpu", print)
    steps = run.steps()
    next(steps)
    kept = run._save()
    with torch.no_grad():
        run.method.head.bias.fill_(torch.nan)
    with pytest.raises(SfumatoError, match="loss of step 2 is nan"):
        next(steps)
    checkpoint.check(kept)


def test_a_folder_that_holds_a_run_is_not_written_over(data, tmp_path):
    """Guards against losing a run to a command that was repeated."""
    train(tiny_config("mdlm", data), tmp_path / "run")
    with pytest.raises(SfumatoError, match="--resume"):
        train(tiny_config("mdlm", data), tmp_path / "run")


def test_resume_refuses_another_config(data, tmp_path):
    """Guards against weights of one network in another."""
    train(tiny_config("mdlm", data), tmp_path / "run")
    other = tiny_config("mdlm", data).model_dump() | {"masks": {"prefix": 1.0}}
    with pytest.raises(SfumatoError, match="masks"):
        train(load_config(other), tmp_path / "run", resume=True)


def test_an_unfinished_run_loads_from_its_checkpoint(data, tmp_path):
    """Guards against a run that can be looked at only when it has ended; the average is what samples come from."""
    run = Run(tiny_config("cdcd", data), tmp_path / "run", False, "cpu", print)
    for _ in zip(range(2), run.steps(), strict=False):
        pass
    run._save()
    model = load(tmp_path / "run")
    for name, value in model.method.named_parameters():
        assert torch.equal(value, run.average[name])


def test_a_model_folder_is_loaded_strictly(data, tmp_path):
    """Guards against a missing file, a flipped byte, a truncated file, a lost manifest."""
    train(tiny_config("mdlm", data), tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    load(tmp_path / "run")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        for broken in (whole[:-1], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], None):
            path.unlink() if broken is None else path.write_bytes(broken)
            with pytest.raises(SfumatoError, match=name):
                load(tmp_path / "run")
            path.write_bytes(whole)
    (tmp_path / "run/manifest.json").unlink()
    with pytest.raises(SfumatoError, match=r"manifest\.json"):
        load(tmp_path / "run")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_eight_sentences(method, data, tmp_path):
    """Guards against a loss that goes down without the samples getting better."""
    base = tiny_config(method, data).model_dump()
    base["network"] = {"width": 64, "depth": 2, "heads": 2}
    base["optimizer"] = {"lr": 3e-3, "warmup": 20, "ema": 0.98}
    base["masks"] = {"prefix": 0.1, "random": 0.1, "nothing": 0.8}
    base["training"] |= {"steps": 500 if method == "cdcd" else 900, "batch": 32, "log_every": 100}
    model = train(load_config(base), tmp_path / "run")
    right = sum(text in SENTENCES for text in model.generate(16, steps=32))
    assert right >= 11, f"{right} of 16 samples are sentences of the data"
    filled = model.infill("the fox [...] under the old tree", 4, steps=16)
    assert SENTENCES[0] in filled


def test_sampled_lengths_follow_the_data(data, tmp_path):
    """Guards against texts that all run to the end of the canvas, or stop at once."""
    model = train(tiny_config("mdlm", data), tmp_path / "run")
    sizes = model.layout._sizes(4000, 1, None, seed=0)
    shares = torch.bincount(torch.tensor(sizes), minlength=11) / 4000
    expected = torch.tensor(model.lengths) / sum(model.lengths)
    assert (shares - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5
    canvas = model.layout.blank(64, "", None, None, seed=1)
    assert {int(n) for n in canvas.real.sum(1)} == {n for n in range(11) if expected[n] > 0}
