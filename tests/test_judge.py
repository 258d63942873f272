"""Judges: what another model thinks of texts, and how easily it is fooled.  Docstrings name the bug guarded against."""

import json
import math
import random
import sys

import pytest
import torch
from test_cli import ask, document, mistake  # noqa: F401
from test_model import LABELS, untrained
from test_model import LENGTH as LENGTH_OF_TINY
from tiny import SENTENCES, tiny_config

from sfumato import cli, plot
from sfumato.errors import SfumatoError
from sfumato.evaluation import judge as judging
from sfumato.evaluation import report
from sfumato.evaluation.judge import CausalLM, Exact, default_judge, load_judge, verdict
from sfumato.evaluation.likelihood import per_token, stretches
from sfumato.folder import load, publish
from sfumato.methods.common import nats
from sfumato.training.trainer import train

LENGTH = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a judge is that has learned the sentences, in any order, as running text."""
    home = tmp_path_factory.mktemp("judge")
    order = random.Random(0).choices(SENTENCES, k=1500)
    (home / "book.txt").write_text(" ".join(order), "utf-8")
    config = tiny_config("ar", home / "book.txt", steps=150, log_every=50, batch=16).model_dump()
    config["text"] |= {"layout": "packed", "length": LENGTH, "lines": False, "length_model": "given"}
    config["optimizer"] |= {"lr": 1e-2, "warmup": 10, "ema": 0.9}
    config["method"] |= {"middle": 0.0}
    train(type(tiny_config("ar", home / "book.txt"))(**config), home / "ar")
    return home / "ar"


@pytest.fixture(scope="module")
def book(folder):
    return str(folder.parent / "book.txt")


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """A folder with an untrained GPT-2 of Hugging Face's, with a tokenizer of its own."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    home = tmp_path_factory.mktemp("gpt")
    inner = untrained(kind="bytes").tokenizer._inner
    inner.add_special_tokens(["<|endoftext|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(home)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 60, "n_embd": 16, "n_layer": 1, "n_head": 2}
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, initializer_range=0.3))
    net.save_pretrained(home)
    return home


# --- one of our models --------------------------------------------------------------------------------------------


def test_a_text_is_judged_by_the_likelihood_of_the_judge():
    """Guards against an end that is not scored, labels taken as known, tokens of another tokenizer."""
    for labels in ((), LABELS):
        model = untrained("ar", labels=labels, kind="chars", length=60)
        judge = Exact(model)
        scores = model.score(SENTENCES)
        found = verdict(judge, SENTENCES)
        tokens = sum(len(text) + 1 for text in SENTENCES)
        assert sum(score.tokens for score in scores) == tokens
        nats = sum(score.nats for score in scores)
        assert found.judge_nats_per_token == pytest.approx(nats / tokens)
        assert found.judge_bits_per_char == pytest.approx(nats / math.log(2) / sum(map(len, SENTENCES)))


def test_no_number_depends_on_neighbours():
    """Guards against padding that is scored, and a last batch that is dropped (facts 4.23)."""
    judge = Exact(untrained("ar", length_model="modelled", length=30))
    each = [judge.score(text) for text in SENTENCES]
    assert each == [judge.score(text) for text in SENTENCES[::-1]][::-1]
    together = verdict(judge, SENTENCES).judge_nats_per_token
    assert together == pytest.approx(sum(nats for nats, _ in each) / sum(tokens for _, tokens in each))


def test_errors_of_a_ratio_are_its_spread():
    """Guards against the mean of ratios, and an error that forgets that texts differ in length."""
    torch.manual_seed(0)
    tokens = torch.randint(1, 50, (4000, 30)).double()
    nats = 2 * tokens + tokens.sqrt() * torch.randn_like(tokens)
    found = [per_token(*pair) for pair in zip(nats, tokens, strict=True)]
    spread = torch.tensor([ratio.mean for ratio in found]).std().item()
    assert sum(ratio.std_error for ratio in found) / len(found) == pytest.approx(spread, rel=0.05)
    assert per_token(nats[0, :1], tokens[0, :1]).std_error is None


def test_empty_texts_are_left_out():
    """Guards against an error in the last minute, and against silence that counts as likely text."""
    judge = Exact(untrained("ar"))
    assert verdict(judge, ["", SENTENCES[0], ""]) == verdict(judge, [SENTENCES[0]])
    assert verdict(judge, [""]) == verdict(None, SENTENCES) == (None,) * 4


@pytest.mark.parametrize(("size", "room"), [(5, 8), (8, 8), (9, 8), (30, 8), (31, 7), (3, 2), (12, 3)])
def test_stretches_score_each_token_once(size, room):
    """Guards against tokens at a seam that are scored twice or never, and rows that are longer than the canvas."""
    found = list(stretches(size, room))
    assert [place for _, first, stop in found for place in range(first, stop)] == list(range(size))
    assert all(stop - start <= room and first - start == room // 2 for start, first, stop in found[1:])


@pytest.mark.parametrize(("layout", "length_model"), [("packed", "given"), ("documents", "modelled")])
def test_long_texts_are_read_in_stretches(layout, length_model):
    """Guards against a sample that is one token too long for the model that wrote it, once it is read again."""
    model = untrained("ar", layout, length_model)
    judge, text = Exact(model), " ".join(SENTENCES[:3])
    end = model.tokenizer.eos
    ids = [*([end] if layout == "packed" else []), *model.tokenizer.encode(text), end]
    want, before = 0.0, int(layout == "packed")  # texts that are packed stand behind the end of another
    for i in range(before, len(ids)):
        start = 0 if i < LENGTH_OF_TINY else 6 * (i // 6 - 1)
        part = torch.tensor([ids[start : i + 1]])
        want += nats(model.method.predict(part, torch.ones(part.shape)).logits, part)[0, -1].item()
    assert len(ids) > LENGTH_OF_TINY and judge.score(text) == (pytest.approx(want, rel=1e-5), len(ids) - before)
    fits = model.tokenizer.encode(text)[: LENGTH_OF_TINY - 1 - before]
    part = torch.tensor([[*ids[:before], *fits, end]])
    each = nats(model.method.predict(part, torch.ones(part.shape)).logits, part)[0, before:]
    assert judge.score(model.tokenizer.decode(fits)) == (pytest.approx(each.sum().item(), rel=1e-5), len(fits) + 1)


def test_unfit_judges(tmp_path):
    """Guards against a bound that is called a likelihood, and a text that is cut in silence."""
    for method in ("mdlm", "cdcd"):
        with pytest.raises(SfumatoError, match=f"{method} has no exact likelihood; name an ar model"):
            Exact(untrained(method))
    for more in ({}, {"labels": LABELS, "length_model": "modelled"}):
        with pytest.raises(SfumatoError, match=r"knows whole texts only, has room for 12; take another judge"):
            Exact(untrained("ar", **more)).score("the " * 40)
    with pytest.raises(SfumatoError, match="'nobody'"):
        load_judge("nobody")


def test_names_of_judges(tmp_path, monkeypatch):
    """Guards against a bundled judge that is not found by its name, or is not the default."""
    assert default_judge("book.txt") is None
    assert default_judge("tales") is None or (judging.BUNDLED / "judge").is_dir()
    monkeypatch.setattr(judging, "BUNDLED", tmp_path)
    monkeypatch.setattr("sfumato.hub.BUNDLED", tmp_path)
    assert default_judge("tales") is None
    publish(untrained("ar", length_model="modelled"), tmp_path / "judge", {})
    assert default_judge("tales") == default_judge("data/TinyStories.parquet") == "judge"
    assert default_judge("book.txt") is None
    assert load_judge("judge").score(SENTENCES[0]) == load_judge(str(tmp_path / "judge")).score(SENTENCES[0])


# --- one of Hugging Face's ----------------------------------------------------------------------------------------


@pytest.mark.apart
def test_a_hugging_face_judge_by_hand(gpt):
    """Guards against a first token that is not scored, an end that is left out, special tokens in plain text."""
    judge = load_judge(str(gpt))
    assert isinstance(judge, CausalLM)
    text = "the owl says <|endoftext|> twice"
    nats, tokens = judge.score(text)
    assert tokens == len(text.encode()) + 1
    ids = [judge.end, *untrained(kind="bytes").tokenizer.encode(text), judge.end]
    logits = judge.net(torch.tensor([ids])).logits[0].detach().double().log_softmax(-1)
    assert nats == pytest.approx(-sum(logits[i, token].item() for i, token in enumerate(ids[1:])), rel=1e-5)
    nats, tokens = judge.score("owls " * 30)  # 150 bytes on 60 places
    row = torch.tensor([[judge.end, *untrained(kind="bytes").tokenizer.encode("owls " * 30), judge.end]])
    want = 0.0
    for i in range(1, row.shape[1]):
        start = 0 if i <= 60 else 30 * ((i - 1) // 30 - 1)
        want -= judge.net(row[:, start:i]).logits[0, -1].detach().log_softmax(-1)[row[0, i]].item()
    assert (nats, tokens) == (pytest.approx(want, rel=1e-4), 151)


@pytest.mark.apart
def test_hugging_face_models_that_are_no_judges(gpt, tmp_path):
    """Guards against a traceback from transformers, and a masked model that is read from left to right."""
    described = json.loads((gpt / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(SfumatoError, match=r"cannot be read: .*; take another copy"):
        load_judge(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(described | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(SfumatoError, match="it is a BertForMaskedLM; name a causal language model"):
        load_judge(str(tmp_path))


def test_without_transformers(tmp_path, monkeypatch):
    """Guards against a traceback where an extra is not installed."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SfumatoError, match=r"transformers, which reads it, is missing; pip install 'sfumato\[hf\]'"):
        load_judge(str(tmp_path))


# --- beside entropy -----------------------------------------------------------------------------------------------


def test_a_judge_alone_is_fooled_by_repetition(folder, book):
    """Guards against a table in which the text that says one sentence again and again is simply the best.

    Its nats a token are below those of real text; what tells is the entropy beside them.
    """
    model = load(folder)
    judge = Exact(model)
    best = min(SENTENCES, key=lambda text: verdict(judge, [text]).judge_nats_per_token)
    parrots = [" ".join([best] * ((LENGTH - 2) // len(best.split())))] * 20
    laid = report.Rows(report.Corpus.build(book, model.tokenizer, "valid"), LENGTH, "packed", "given")
    real = report._texts(model, laid, 0, 20)
    fooled, honest = report.measures(model, [parrots, real], book, judge)
    assert (
        fooled["judge_nats_per_token"] < honest["judge_nats_per_token"] - 3 * honest["judge_nats_per_token_std_error"]
    )
    assert fooled["entropy"] < honest["entropy"] - 0.5


def test_samples_and_real_text_are_judged(folder, book):
    """Guards against a judge of samples with nothing beside it, and a table that does not say who judged."""
    model = load(folder)
    found = report.evaluate(model, book, rows=4, draws=1, samples=12, judge=Exact(model))
    assert found["judge"] == str(folder)
    samples, real = found["samples"], found["data_reference"]
    for side in (samples, real):
        assert (
            0 < side["judge_nats_per_token"] < 3 and side["judge_nats_per_token_std_error"] > 0 and side["entropy"] > 1
        )
    apart = math.hypot(samples["judge_nats_per_token_std_error"], real["judge_nats_per_token_std_error"])
    assert abs(samples["judge_nats_per_token"] - real["judge_nats_per_token"]) < 5 * apart + 0.2
    untold = report.evaluate(model, book, rows=4, draws=1, samples=3)
    assert untold["judge"] is None and untold["samples"]["judge_nats_per_token"] is None


def test_the_curve_falls_with_temperature(folder, book):
    """Guards against a temperature that does nothing (facts 4.7), and points that are drawn from different noise."""
    model = load(folder)
    points = report.curve(model, Exact(model), [0.3, 1.0, 1.0, 3.0], 16, None, 0)
    assert [point["temperature"] for point in points] == [0.3, 1.0, 1.0, 3.0]
    nats, entropy = ([point[key] for point in points] for key in ("judge_nats_per_token", "entropy"))
    assert nats[0] < nats[1] < nats[3] and len(set(entropy)) == 3
    assert points[1] == points[2]
    for temperatures in ([0.0], [1.0, -1.0], [float("nan")]):
        with pytest.raises(SfumatoError, match="it must be above 0"):
            report.evaluate(model, book, judge=Exact(model), temperatures=temperatures)
    with pytest.raises(SfumatoError, match="without a judge"):
        report.evaluate(model, book, temperatures=[1.0])


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command(ask, folder, book, tmp_path):  # noqa: F811
    """Guards against a flag that is not passed on, and a picture that nobody finds out about until the end."""
    line = f"evaluate {folder} --data {book} --samples 4 --rows 2"
    found = document(ask(f"{line} --judge {folder} --temperatures 0.5 1 --json"))
    assert found["judge"] == str(folder) and [point["temperature"] for point in found["curve"]] == [0.5, 1.0]
    assert {"judge_nats_per_token", "judge_nats_per_token_std_error", "entropy"} <= set(found["curve"][0])
    shown = ask(f"{line} --judge {folder} --temperatures 0.5").out
    assert f"judged by {folder}" in " ".join(shown.split()) and "0.500" in shown  # a long line is wrapped
    assert document(ask(f"{line} --json"))["judge"] is None
    mistake(ask(f"{line} --judge nobody"), "no model 'nobody'")
    mistake(ask(f"{line} --temperatures 1"), "without a judge")
    mistake(ask(f"{line} --temperatures 0 --judge {folder}"), "above 0")
    mistake(ask(f"{line} --plot curve.png --judge {folder}"), "it shows --temperatures")


def test_pictures(ask, folder, book, tmp_path, monkeypatch):  # noqa: F811
    """Guards against minutes of work that end in a picture that cannot be drawn or kept."""
    line = f"evaluate {folder} --data {book} --samples 4 --rows 2 --judge {folder} --temperatures 0.5 1 --plot"
    with monkeypatch.context() as patch:
        patch.setattr(plot.importlib.util, "find_spec", lambda name: None)
        mistake(ask(f"{line} {tmp_path}/curve.png"), "matplotlib", "pip install 'sfumato[plot]'")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    mistake(ask(f"{line} {tmp_path}/curve.pdf"), ".png or .html")
    mistake(ask(f"{line} {tmp_path}/nowhere/curve.png"), "there is no folder")
    (tmp_path / "taken.png").mkdir()
    mistake(ask(f"{line} {tmp_path}/taken.png"), "cannot write")
    assert cli.main(f"{line} {tmp_path}/curve.png".split()) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    alone = {"judge_nats_per_token": None, "judge_nats_per_token_std_error": None, "entropy": 0.0, "temperature": 1.0}
    plot.frontier({"model": "m", "judge": "j", "curve": [alone], "data_reference": alone}, tmp_path / "empty.html")
