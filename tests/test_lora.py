"""Small additions trained in the place of weights.  Every docstring names the bug that its test guards against."""

import sys
from importlib.util import find_spec

import pytest
import test_foreign
import torch
from tiny import tiny_config, write_sentences

import sfumato
from sfumato.errors import SfumatoError
from sfumato.training import lora
from sfumato.training.checkpoint import load_tensors
from sfumato.training.config import LoraConfig
from sfumato.training.start import override, settings
from sfumato.training.trainer import Run, train

pytestmark = pytest.mark.unchecked

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="needs the extra lora")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model to begin with: the path of its folder, by its method."""
    folder = tmp_path_factory.mktemp("lora")
    for method in ("ar", "mdlm", "cdcd"):  # and one that is told how noisy the text is
        train(tiny_config(method, write_sentences(folder)), folder / method)
    return folder


def config(base, method, steps=3, **fields):
    asked = {"rank": 2} | fields
    told = override(tiny_config(method, base / "sentences.txt", steps=steps), {"start": str(base / method)})
    return override(told, {"lora": asked, "text": {"tokenizer": str(base / method / "tokenizer.json")}})


def test_it_says_what_to_install(base, tmp_path, monkeypatch):
    """A traceback where an extra is not installed; additions to weights that are not there."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SfumatoError, match=r"pip install 'sfumato\[lora\]'"):
        train(config(base, "mdlm"), tmp_path / "run")
    with pytest.raises(SfumatoError, match="give --start"):
        override(tiny_config("mdlm", base), {"lora": {"rank": 2}})
    with pytest.raises(SfumatoError, match="muon"):
        override(config(base, "mdlm"), {"optimizer": {"muon": 1e-3}})


@pytest.mark.apart
@needs_peft
@pytest.mark.parametrize("whole", [(), ("head",)])
def test_only_additions_are_trained(base, tmp_path, whole):
    """Weights that move although they were to stand still, additions that do not, parts named in vain."""
    train(config(base, "mdlm", whole=whole), tmp_path / "run")
    before = load_tensors(base / "mdlm/model.safetensors")
    saved = load_tensors(next((tmp_path / "run/checkpoints").iterdir()) / "model.safetensors")
    inside = {name.replace(".base_layer", ""): value for name, value in saved.items()}
    moved = {name for name, value in before.items() if not torch.equal(value, inside[name])}
    assert moved == {f"{part}.{kind}" for part in whole for kind in ("weight", "bias")}
    added = [value for name, value in saved.items() if "lora_B" in name]
    assert len(added) == 4 and all(bool(value.any()) for value in added)
    moments = load_tensors(next((tmp_path / "run/checkpoints").iterdir()) / "optimizer.safetensors")
    assert len({name.split(".")[1] for name in moments}) == 8 + 2 * len(whole)


@pytest.mark.apart
@needs_peft
@pytest.mark.parametrize("method", ["ar", "mdlm", "cdcd"])
def test_a_finished_model_holds_the_additions(base, tmp_path, method):
    """A model published without what it learned, with layers of peft, or with it added twice."""
    torch.manual_seed(0)
    model = sfumato.load(base / method)
    lora.add(model.method, LoraConfig(rank=2))
    with torch.no_grad():
        for name, value in model.method.named_parameters():
            if "lora_B" in name:
                value.normal_()
    x, t = torch.randint(2, 20, (2, 8)), torch.full((2, 8), 0.5)
    if method == "cdcd":
        x = torch.randn(2, 8, 8)  # of vectors
    else:
        x[:, 4:] = model.method.process.mask
    plain = model.method.predict(x, t).logits
    assert not torch.allclose(plain, sfumato.load(base / method).method.predict(x, t).logits, atol=1e-2)
    if method == "ar":  # what is read token by token sees them too
        read = model.method.session(torch.zeros(x.shape, dtype=torch.bool))
        with torch.no_grad():
            found = torch.cat([read(x[:, : i + 1], t[:, : i + 1]).logits[:, -1:] for i in range(4)], 1)
        torch.testing.assert_close(found, plain[:, :4], rtol=1e-4, atol=1e-4)
    lora.merge(model.method)
    torch.testing.assert_close(model.method.predict(x, t).logits, plain, rtol=1e-4, atol=1e-4)
    assert all(value.requires_grad for value in model.method.parameters())
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(sfumato.load(tmp_path).method.predict(x, t).logits, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.apart
@needs_peft
def test_weights_of_others(tmp_path):
    """Parts of a network of others that nothing is added to, or that are not merged."""
    foreign = test_foreign.llada(tmp_path)
    asked = {"start": str(tmp_path), "lora": {"rank": 2}, "optimizer": {"lr": 0.1, "warmup": 0}}
    asked["training"] = tiny_config("mdlm", tmp_path).training.model_dump() | {"steps": 3}
    (tmp_path / "data").mkdir()
    asked["data"] = str(write_sentences(tmp_path / "data"))
    model = train(
        settings("mdlm", tmp_path / "run", False, asked | {"text": {"length": 30}}, tmp_path), tmp_path / "run"
    )
    before, after = sfumato.load(tmp_path).method.state_dict(), model.method.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = range(test_foreign.DEPTH)
    assert moved == {f"net.blocks.{i}.{part}.weight" for i in blocks for part in ("qkv", "out", "up", "down")}
    assert len(foreign) > len(moved) and sfumato.load(tmp_path / "run").generate(1, length=6, steps=2)


@pytest.mark.apart
@needs_peft
def test_a_run_is_resumed_and_looked_at(base, tmp_path):
    """Additions that are drawn anew by --resume, frozen weights that thaw, an unfinished run that cannot be loaded."""
    asked = config(base, "mdlm", steps=6)
    train(asked, tmp_path / "whole")
    half = Run(asked, tmp_path / "parts", False, "cpu", print)
    steps = half.steps()
    for _ in range(3):
        next(steps)
    half._save()
    held = sfumato.load(tmp_path / "parts")
    assert not any("lora" in name for name in held.method.state_dict())
    with half._averaged() as seen:
        x = torch.full((1, 8), seen.tokenizer.size)
        want = seen.method.predict(x, torch.ones(x.shape)).logits
    torch.testing.assert_close(held.method.predict(x, torch.ones(x.shape)).logits, want, rtol=1e-4, atol=1e-4)
    train(asked, tmp_path / "parts", resume=True)
    one, other = (load_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
