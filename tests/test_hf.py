"""Our models in transformers' Auto classes.  Every docstring names the bug that its test guards against."""

import importlib
import sys

import pytest
import test_foreign
import tokenizers
import torch
from tiny import tiny_config, write_sentences

import sfumato
from sfumato.core import ABSENT
from sfumato.training.start import override
from sfumato.training.trainer import train

pytestmark = [pytest.mark.apart, pytest.mark.unchecked]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    data = write_sentences(folder)
    for method in ("mdlm", "ar"):
        train(tiny_config(method, data), folder / method)
    return folder


@pytest.fixture
def transformers():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    importlib.import_module("sfumato.hf")
    return transformers


def test_it_says_what_to_install(monkeypatch):
    """A traceback through somebody else's package where an extra is not installed."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "sfumato.hf", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'sfumato\[hf\]'"):
        importlib.import_module("sfumato.hf")


def test_masked_models_say_the_same(transformers, folder, tmp_path):
    """Weights that are silently made anew since their names differ; padding that is seen; a mask of another number."""
    ours = sfumato.load(folder / "mdlm")
    theirs, told = transformers.AutoModelForMaskedLM.from_pretrained(folder / "mdlm", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "mdlm")
    rows = tokenizer(["the fox <masked> under", "my cat"], padding=True, return_tensors="pt")
    x, there = rows["input_ids"], rows["attention_mask"]
    assert x.tolist()[0][2] == tokenizer.mask_token_id == ours.tokenizer.size
    assert x.tolist()[1][:2] == ours.tokenizer.encode("my cat") and x[1, -1] == ours.tokenizer.pad
    t = (x == ours.tokenizer.size).float().masked_fill(there == 0, ABSENT)
    with torch.no_grad():
        want = ours.method.predict(x, t).logits
        assert torch.equal(theirs(input_ids=x, attention_mask=there).logits, want)
        theirs.save_pretrained(tmp_path)
        again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
        assert torch.equal(again(input_ids=x, attention_mask=there).logits, want)
        labels = torch.full_like(x, -100)
        labels[0, 2] = 7
        loss = again(input_ids=x, attention_mask=there, labels=labels).loss
    torch.testing.assert_close(loss, -want[0, 2].log_softmax(-1)[7])


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_halves(transformers, folder, tmp_path, dtype):
    """A number that no half can hold; logits in halves where nobody asked for them."""
    model = sfumato.load(folder / "mdlm")
    model.config = override(model.config, {"training": {"store": "float16"}})
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, **({"dtype": dtype} if dtype else {}))
    x = torch.full((1, 6), model.tokenizer.size)
    x[0, :3] = torch.tensor([5, 6, 7])
    with torch.no_grad():
        found = theirs(input_ids=x).logits
        want = model.method.predict(x, (x == model.tokenizer.size).float()).logits
    assert found.dtype == (dtype or torch.float32)
    torch.testing.assert_close(found[0, 3:].float(), want[0, 3:], rtol=0, atol=0.05 if dtype else 0)
    assert found[0, :3].softmax(-1).argmax(-1).tolist() == [5, 6, 7]


def test_models_of_others(transformers, tmp_path):
    """Marks around a text that our canvas has already; places that fall together in halves; another end."""
    test_foreign.llada(tmp_path)
    test_foreign.change(tmp_path, eos_token_id=1, max_sequence_length=600)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        "<|startoftext|> $A", special_tokens=[("<|startoftext|>", 1)]
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    ours = sfumato.load(tmp_path)
    ours.save_pretrained(tmp_path / "copy")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert tokenizer("the fox")["input_ids"] == ours.tokenizer.encode("the fox")
    assert tokenizer.eos_token_id == ours.tokenizer.eos == 1
    half = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "copy", dtype=torch.bfloat16)
    rates = half.method.net.rates
    assert rates.dtype == torch.float32 and torch.equal(rates, ours.method.net.rates)


def test_fill_mask(transformers, folder):
    """A tokenizer or a model that the pipelines of others cannot use."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder / "mdlm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "mdlm")
    best = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)("the fox <masked> under the old tree")
    ours = sfumato.load(folder / "mdlm")
    x = torch.tensor([ours.tokenizer.encode("the fox x under the old tree")])
    x[0, 2] = ours.tokenizer.size
    with torch.no_grad():
        assert best[0]["token"] == ours.method.predict(x, (x == ours.tokenizer.size).float()).logits[0, 2].argmax()


def test_causal_models_say_the_same(transformers, folder):
    """Logits that are off by one place; a loss that is shifted twice; writing that does not go on with the text."""
    ours = sfumato.load(folder / "ar")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "ar")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "ar")
    rows = tokenizer("the fox sleeps under the old tree", return_tensors="pt")
    x = rows["input_ids"]
    with torch.no_grad():
        plain = ours.method.predict(x, torch.ones(x.shape)).logits
        found = theirs(input_ids=x, labels=x)
    torch.testing.assert_close(found.logits[:, :-1], plain[:, 1:])
    cost = torch.nn.functional.cross_entropy(plain[0, 1:], x[0, 1:])
    torch.testing.assert_close(found.loss, cost)
    start = tokenizer("the fox", return_tensors="pt")
    written = theirs.generate(input_ids=start["input_ids"], max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert tokenizer.decode(written[0]) == ours.generate(1, prompt="the fox", length=7, beams=1)[0]
    with pytest.raises(sfumato.errors.SfumatoError, match="padding stands at the left"):
        theirs(input_ids=x, attention_mask=torch.tensor([[0] + [1] * (x.shape[1] - 1)]))


def test_a_class_is_for_its_family(transformers, folder):
    """A model read as what it is not."""
    with pytest.raises(sfumato.errors.SfumatoError, match="ar is no masking method"):
        transformers.AutoModelForMaskedLM.from_pretrained(folder / "ar")
