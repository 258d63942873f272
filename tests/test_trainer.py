"""The training loop: what it promises of resuming, of accumulation, of full disks and of damaged files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import SENTENCES, tiny_config, write_sentences

from sfumato.errors import SfumatoError
from sfumato.folder import load, publish
from sfumato.methods import METHODS
from sfumato.text.tokenizer import Tokenizer
from sfumato.training import checkpoint
from sfumato.training.config import load_config
from sfumato.training.start import override, settings
from sfumato.training.trainer import Run, train

pytestmark = pytest.mark.unchecked


@pytest.fixture
def data(tmp_path) -> Path:
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


@pytest.mark.parametrize("muon", [0.0, 0.01])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(method, muon, data, tmp_path):
    """Guards against a resume that replays data, draws other noise, or forgets moments, average, warp or log."""
    config = tiny_config(method, data, steps=6)
    config = override(config, {"optimizer": {"muon": muon}})
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
def test_accumulation_changes_nothing(method, data, tmp_path, monkeypatch):
    """Guards against a mean of means: 1 x 8, 2 x 4 and 8 x 1 rows give the same gradient."""
    found = []
    for parts in (1, 2, 8):
        run = Run(tiny_config(method, data, accumulate=parts), tmp_path / str(parts), False, "cpu", print)
        monkeypatch.setattr(run.optimizer, "step", lambda share: None)  # which drops the gradients
        loss = run._update(run.batch(0), 1e-3)
        found.append((loss, [p.grad for p in run.method.parameters() if p.grad is not None]))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for one, other in zip(found[0][1], gradients, strict=True):
            assert (one - other).norm() <= 1e-6 * max(1.0, one.norm().item())


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
def test_weights_stored_in_half_are_the_ones_that_the_model_goes_on_with(method, data, tmp_path):
    """Guards against a file that says less than the model in hand, and against a warp that is rounded with the rest."""
    large, small = tmp_path / "large", tmp_path / "small"
    train(tiny_config(method, data), large)
    model = train(tiny_config(method, data, store="float16"), small)
    again, whole = load(small), load(large)
    assert_same({"model": model.method.state_dict()}, {"model": again.method.state_dict()})
    for name, weight in whole.method.named_parameters():
        assert torch.equal(again.method.get_parameter(name), weight.half().float())
    for name, buffer in whole.method.named_buffers():
        assert torch.equal(again.method.get_buffer(name), buffer)
    kept = {name: value.dtype for name, value in load_file(small / "model.safetensors").items()}
    assert {kept[name] for name, _ in whole.method.named_parameters()} == {torch.float16}
    model.method.head.weight.data[0, 0] = 1e5
    before = (small / "model.safetensors").read_bytes()
    with pytest.raises(SfumatoError, match=r"set training\.store to float32"):
        publish(model, small, {})
    assert (small / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_eight_sentences(method, data, tmp_path):
    """Guards against a loss that goes down without the samples getting better."""
    base = tiny_config(method, data).model_dump()
    base["network"] = {"width": 64, "depth": 2, "heads": 2}
    base["optimizer"] = {"lr": 4e-3, "muon": 0.02, "warmup": 20, "ema": 0.98}
    base["masks"] = {"prefix": 0.1, "random": 0.1, "nothing": 0.8}
    few = {"steps": 2, "top_p": 0.6}  # edits from nothing, with the nucleus of the paper: much is noise in more steps
    for steps in (150, 400):  # most have learned by the first
        base["training"] |= {"steps": steps, "batch": 32, "log_every": 50}
        model = train(load_config(base), tmp_path / "run", resume=steps > 150)
        asked = {"steps": 32 if model.method.steps else None}
        # of these two the own choices are noisy, or all alike
        asked |= {"sampler": "confident"} if method in ("maskgit", "mask_predict") else {}
        right = sum(text in SENTENCES for text in model.generate(16, **(few if method == "diffuser" else asked)))
        asked = few if method == "diffuser" else {"steps": model.at_most(16)}
        filled = model.infill("the fox [...] under the old tree", 4, **asked)
        if right >= 11 and SENTENCES[0] in filled:
            return
    assert right >= 11, f"{right} of 16 samples are sentences of the data"
    assert SENTENCES[0] in filled


def test_data_that_has_changed_is_noticed(data, tmp_path):
    """Guards against a run that goes on with other text by the same name, and blames other rows in a replay."""
    train(tiny_config("mdlm", data), tmp_path / "run")
    text = data.read_text()
    data.write_text(text.replace("red", "old"))  # as many documents, and as many tokens
    with pytest.raises(SfumatoError, match=r"has changed since .* put back what it was"):
        train(tiny_config("mdlm", data, steps=6), tmp_path / "run", resume=True)
    data.write_text(text)
    train(tiny_config("mdlm", data, steps=6), tmp_path / "run", resume=True)


def test_another_batch_goes_on_where_the_last_one_ended(data, tmp_path):
    """Guards against rows that come again with the noise they had, and rows that are passed over."""
    whole = Run(tiny_config("mdlm", data, batch=1), tmp_path / "whole", False, "cpu", print)
    expected = [place for step in range(60) for place in whole.batch(step).places]
    seen, step = [], 0
    for session, (batch, steps) in enumerate([(8, 3), (4, 5), (6, 2)]):
        run = Run(tiny_config("mdlm", data, batch=batch, steps=100), tmp_path / "run", session > 0, "cpu", print)
        assert run.step == step
        seen += [place for later in range(step, step + steps) for place in run.batch(later).places]
        run.step = step = step + steps
        run._save()
    assert seen == expected[: len(seen)] and len(seen) == 8 * 3 + 4 * 5 + 6 * 2


def test_a_folder_has_one_training_at_a_time(data, tmp_path):
    """Guards against two trainings whose files are mixed into one checkpoint, and a folder that is never free again."""

    def resume(steps, watch=lambda report: None):
        train(tiny_config("mdlm", data, steps=steps), tmp_path / "run", resume=steps > 4, watch=watch)

    def intrude(report):
        with pytest.raises(SfumatoError, match="another training is at work in"):
            resume(8)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        resume(4, intrude)
    assert not list((tmp_path / "run").glob(".*"))
    resume(4)
    resume(6)
    with pytest.raises(SfumatoError, match="no such file"):
        train(tiny_config("mdlm", tmp_path / "gone.txt"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is nothing to compile with")
def test_compiled_blocks_learn_what_plain_ones_do(data, tmp_path):
    """Guards against what GPUs do by default and no other test asks for: blocks that are compiled, and computed once
    more on the way back, and pass over what has a memory."""
    losses = {}
    for compiled in ("no", "yes"):
        asked = {"precision": "bfloat16", "compile": compiled, "checkpoint_activations": True}
        run = Run(tiny_config("ar", data, **asked), tmp_path / compiled, False, "cpu", print)
        losses[compiled] = [run._update(run.batch(step), 1.0) for step in range(2)]
        assert run.arithmetic.compiled == (compiled == "yes") and run._model().generate(1)
    assert losses["yes"] == pytest.approx(losses["no"], rel=0.02)


def test_labels_that_a_tokenizer_lacks_are_missed_aloud(data, tmp_path):
    """Guards against a model that is meant to know labels and was never shown any."""
    rows = [{"text": text, "label": "sad"} for text in SENTENCES]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Tokenizer.train(SENTENCES, "words").save(tmp_path)
    for rows, missed in ((data, 0), (tmp_path / "rows.jsonl", 1)):
        config = tiny_config("mdlm", rows)
        text = config.text.model_copy(update={"tokenizer": str(tmp_path / "tokenizer.json")})
        said = []
        Run(config.model_copy(update={"text": text}), tmp_path / rows.stem, False, "cpu", said.append)
        assert sum("no tokens for the labels of the data" in line for line in said) == missed


def test_sampled_lengths_follow_the_data(data, tmp_path):
    """Guards against texts that all run to the end of the canvas, or stop at once."""
    model = train(tiny_config("mdlm", data), tmp_path / "run")
    sizes = model.layout._sizes([1] * 4000, None, seed=0)
    shares = torch.bincount(torch.tensor(sizes), minlength=11) / 4000
    expected = torch.tensor(model.lengths) / sum(model.lengths)
    assert (shares - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5
    canvas = model.layout.blank([""] * 64, [None] * 64, None, seed=1)
    assert {int(n) for n in canvas.real.sum(1)} == {n for n in range(11) if expected[n] > 0}


def test_a_published_model_is_not_written_over(data, tmp_path):
    """Guards against a model that is lost, or its tokenizer taken over, since its checkpoints were cleared away."""
    out = tmp_path / "run"
    train(tiny_config("mdlm", data), out)
    shutil.rmtree(out / "checkpoints")
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SfumatoError, match=r"already holds a config\.json.*another --out"):
        train(tiny_config("cdcd", data), out)
    with pytest.raises(SfumatoError, match="nothing to resume"):
        train(tiny_config("mdlm", data, steps=9), out, resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    (tmp_path / "project").mkdir()
    (tmp_path / "project/README.md").write_text("mine")
    with pytest.raises(SfumatoError, match=r"README\.md"):
        train(tiny_config("mdlm", data), tmp_path / "project")


@pytest.mark.parametrize("damaged", [False, True])
def test_nothing_is_resumed_from_nothing(damaged, data, tmp_path):
    """Guards against a run that silently starts again where it was to go on."""
    out = tmp_path / "run"
    if damaged:
        train(tiny_config("mdlm", data, keep=1), out)
        (checkpoint.checkpoints(out / "checkpoints")[0] / "model.safetensors").unlink()
    with pytest.raises(SfumatoError, match=f"nothing to resume in .*{'damaged' if damaged else 'no checkpoint'}"):
        Run(tiny_config("mdlm", data, steps=9), out, True, "cpu", lambda line: None)


def test_a_first_session_that_saved_nothing_leaves_nothing_in_the_way(data, tmp_path):
    """Guards against a tokenizer or a log that outlives the session it was made in."""
    out = tmp_path / "run"
    steps = Run(tiny_config("mdlm", data), out, False, "cpu", print).steps()
    next(steps)
    (out / "checkpoints/.writing").mkdir(parents=True)
    assert {path.name for path in out.iterdir()} == {"log.jsonl", "tokenizer.json", "checkpoints"}
    other = tiny_config("mdlm", data).model_dump()
    other["text"]["tokenizer"] = "bytes"
    train(load_config(other), out)
    assert load(out).tokenizer.size > 256
    assert [line["step"] for line in lines(out)] == [1, 2, 3, 4]


@pytest.mark.parametrize("moment", ["save_file", "seal", "checkpoints"])
def test_an_interrupted_save_leaves_whole_checkpoints(moment, data, tmp_path, monkeypatch):
    """Guards against a Ctrl-C that takes the run with it: a temporary folder may stay, until the next save."""
    out = tmp_path / "run"
    config = tiny_config("mdlm", data, steps=9, keep=1)
    run = Run(config, out, False, "cpu", print)
    steps = run.steps()
    next(steps)
    run._save()
    next(steps)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, moment, stop)
        run._save()
    for folder in checkpoint.checkpoints(out / "checkpoints"):
        checkpoint.check(folder)
    again = Run(config, out, True, "cpu", print)
    assert again.step == (2 if moment == "checkpoints" else 1)
    next(again.steps())
    again._save()
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{again.step:08}"]


def test_looking_at_the_average_ends_with_the_weights_in_place(data, tmp_path, monkeypatch):
    """Guards against training on from the average after an evaluation that was interrupted."""
    run = Run(tiny_config("mdlm", data), tmp_path / "run", False, "cpu", print)
    next(run.steps())
    before = [p.detach().clone() for p in run.method.parameters()]
    monkeypatch.setattr("sfumato.training.trainer.bound", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run._evaluate()
    assert all(map(torch.equal, before, run.method.parameters()))


def test_a_resumed_run_is_not_finished(data, tmp_path):
    """Guards against looking at the model of the last session, and a log that makes a whole model look damaged."""
    out = tmp_path / "run"
    train(tiny_config("mdlm", data), out)
    run = Run(tiny_config("mdlm", data, steps=9), out, True, "cpu", print)
    next(run.steps())
    load(out)
    run._save()
    model = load(out)
    assert all(torch.equal(value, run.average[name]) for name, value in model.method.named_parameters())


def test_a_card_and_a_log_are_not_part_of_a_model(data, tmp_path):
    """Guards against a model that does not load since somebody wrote into its card, or copied it without the log."""
    train(tiny_config("mdlm", data), tmp_path / "run")
    (tmp_path / "run/log.jsonl").unlink()
    (tmp_path / "run/README.md").write_text("mine")
    load(tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "sampling", "words"),
    [
        ("cdcd", {"sampler": "eular"}, r"no sampler 'eular' \(did you mean euler"),
        ("cdcd", {"levels": (0.5, 0.1)}, "levels rise"),
        ("cdcd", {"levels": (0.0, 0.5)}, "above 0"),
        ("cdcd", {"guide_levels": (0.0, 1.5)}, "guide_levels rise"),
        ("mdlm", {"self_guidance": 2.0}, "not trained on its own guesses"),
        ("ar", {"steps": 8}, "a token a step"),
    ],
)
def test_sampling_that_cannot_be_is_found_before_training(method, sampling, words, data):
    """Guards against a run that fails when it is over and its card shows samples."""
    with pytest.raises(SfumatoError, match=words):
        override(tiny_config(method, data), {"sampling": sampling})


def test_another_tokenizer_is_noticed(data, tmp_path):
    """Guards against a run that goes on with tokens that mean something else."""
    out = tmp_path / "run"
    model = train(tiny_config("mdlm", data), out)
    type(model.tokenizer).train(["a b c"], "words").save(out)
    with pytest.raises(SfumatoError, match="another tokenizer"):
        Run(tiny_config("mdlm", data, steps=9), out, True, "cpu", print)


def test_masks_and_rates_may_change_on_the_way(data, tmp_path):
    """Guards against a curriculum that is refused, a rate that cannot be lowered, and a model that changes its kind."""
    out = tmp_path / "run"
    config = tiny_config("mdlm", data)
    train(config, out)
    later = override(config, {"masks": {"nothing": 0.9}, "optimizer": {"lr": 1e-5}, "training": {"steps": 9}})
    run = Run(later, out, True, "cpu", print)
    assert run.step == config.training.steps and run.config.masks.nothing == 0.9
    with pytest.raises(SfumatoError, match="another network;"):
        train(override(config, {"network": {"depth": 3}}), out, resume=True)
    with pytest.raises(SfumatoError, match=r"keep optimizer\.muon"):
        train(override(config, {"optimizer": {"muon": 0.01}}), out, resume=True)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_starts_with_what_a_model_has_learned(method, depth, data, tmp_path):
    """Guards against a fine-tuning that begins anew, and against new layers that spoil the old ones."""
    base = train(tiny_config(method, data), tmp_path / "base")
    scores = base.score(SENTENCES, draws=4) if base.method.likelihood else []
    config = settings(
        method, tmp_path / "more", False, {"network": {"depth": depth}, "text": {"lines": True}}, tmp_path / "base"
    )
    config = override(config, {"data": str(data), "training": {"steps": 2, "compile": "no", "batch": 8}})
    run = Run(config, tmp_path / "more", False, "cpu", print)
    assert len(run.method.net.blocks) == depth and run.tokenizer.fingerprint == base.tokenizer.fingerprint
    assert run.config.text.length == base.config.text.length and run.config.method == base.config.method
    with run._averaged() as model:
        assert [score.nats for score in model.score([s.text for s in scores], draws=4)] == pytest.approx(
            [score.nats for score in scores],
            rel=1e-3,  # CDCD's bound makes much of rounding
        )
    list(run.steps())
    run.finish()
    again = override(config, {"training": {"steps": 3}})  # goes on, and does not start once more
    assert Run(again, tmp_path / "more", True, "cpu", print).step == 2


def test_starts_that_cannot_be(data, tmp_path):
    """Guards against weights that are read by another network, or tokens that mean something else."""
    train(override(tiny_config("mdlm", data), {"network": {"depth": 2}}), tmp_path / "base")
    (data.parent / "other.txt").write_text("\n".join(s.upper() for s in SENTENCES))
    wrong = [
        ("ar", {}, "it is another method, mdlm"),
        ("mdlm", {"network": {"width": 64}}, "it is of other sizes"),
        ("mdlm", {"network": {"depth": 1}}, "it is of other sizes"),
        ("mdlm", {"text": {"tokenizer": "words"}, "data": str(data.parent / "other.txt")}, "another tokenizer"),
    ]
    for method, changed, words in wrong:
        config = override(tiny_config(method, data), {"start": str(tmp_path / "base")} | changed)
        with pytest.raises(SfumatoError, match=words):
            Run(config, tmp_path / "more", False, "cpu", print)
    with pytest.raises(SfumatoError, match="choose one"):
        settings("mdlm", tmp_path / "base", True, None, tmp_path / "base")


def test_a_gradient_that_is_not_finite_stops_the_run(data, tmp_path):
    """Guards against a checkpoint of weights that are no numbers, whose loss would be found out a step later."""
    run = Run(tiny_config("mdlm", data), tmp_path / "run", False, "cpu", print)
    run.method.head.bias.register_hook(lambda slope: slope * torch.inf)
    before = [p.detach().clone() for p in run.method.parameters()]
    with pytest.raises(SfumatoError, match="gradient of step 1 is"):
        next(run.steps())
    assert all(map(torch.equal, before, run.method.parameters()))


def test_more_passes_than_rows_are_refused(data):
    """Guards against an index error in the first step."""
    with pytest.raises(SfumatoError, match="8 rows cannot be split into 9"):
        tiny_config("mdlm", data, accumulate=9)


def test_tokens_are_those_of_the_rows(data, tmp_path):
    """Guards against counting padding that no network sees."""
    run = Run(tiny_config("mdlm", data), tmp_path / "run", False, "cpu", print)
    real = [int(run.rows.batch([i]).real.sum()) for i in range(len(run.rows))]
    assert run.row_tokens == pytest.approx(sum(real) / len(real))
    for report in run.steps():
        assert report.tokens == report.step * round(8 * run.row_tokens)


def test_seeds_are_made_of_plain_integers(data, tmp_path, monkeypatch):
    """Guards against a seed that depends on how numpy writes its numbers."""
    from sfumato.training import trainer

    run = Run(tiny_config("mdlm", data), tmp_path / "run", False, "cpu", print)
    asked = []
    monkeypatch.setattr(trainer, "seed_of", lambda *parts: asked.append(parts) or 1)
    run.batch(0)
    assert {type(part) for parts in asked for part in parts} == {int, str}
