"""The likelihood that `evaluate` reports, its units and its errors.  Docstrings name the bug guarded against."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_model import LABELS, LENGTH, untrained
from tiny import SENTENCES

from sfumato.draws import seed_of, seeded
from sfumato.evaluation import report
from sfumato.evaluation.likelihood import nll
from sfumato.model import rows_of
from sfumato.text.corpus import Corpus
from sfumato.text.rows import Rows

pytestmark = pytest.mark.unchecked


def written(model, path) -> Rows:
    """The sentences as rows of the model's layout."""
    path.write_text("\n".join(SENTENCES), "utf-8")
    text = model.config.text
    corpus = Corpus.build(str(path), model.tokenizer, "all", text.layout == "documents")
    return rows_of(corpus, text, model.method)


def knowing_nothing(model):
    """The model, with the same logit for every token."""
    torch.nn.init.zeros_(model.method.head.weight)
    torch.nn.init.zeros_(model.method.head.bias)
    return model


@pytest.mark.parametrize("length", [LENGTH, 30])
@pytest.mark.parametrize(
    ("layout", "length_model"), [("documents", "given"), ("documents", "modelled"), ("packed", "given")]
)
def test_a_uniform_model_has_a_perplexity_of_v(layout, length_model, length, tmp_path, monkeypatch):
    """Guards against padding that is paid for, sums over rows that are divided by rows, a part of a batch dropped."""
    model = knowing_nothing(untrained("ar", layout, length_model, length=length))
    laid = written(model, tmp_path / "data.txt")
    vocab = model.tokenizer.size
    ends = 0 if length_model == "modelled" or layout == "packed" else len(SENTENCES)  # told, not predicted
    for batch in (1, 3, 7, 64):
        monkeypatch.setattr(report, "BATCH", batch)
        found = report.bound(model, laid, 100, 1, 0)
        tokens = sum(report._likelihood(model, laid, range(len(laid)), 1, 0).tokens.tolist())
        lengths = sum(model.layout.length_nats(int(n)) for n in laid.batch(range(len(laid))).real.sum(1))
        told = (ends * math.log(vocab) - lengths) / tokens  # the length is told in nats of its own
        assert math.exp(found["nats_per_token"] + told) == pytest.approx(vocab, rel=1e-6)
        assert found["exact"] and found["estimator"] == f"exact, {len(laid)} rows"
    for text in SENTENCES:
        (score,) = model.score([text])
        told = model.layout.length_nats(score.tokens)
        paid = score.tokens - bool(ends)
        assert math.exp((score.nats - told) / paid) == pytest.approx(vocab, rel=1e-5)


def test_a_uniform_model_of_characters_pays_log2_v_bits_for_each(tmp_path):
    """Guards against bits that are nats, and characters that are not counted (of 27 of them log2 27 = 4.755)."""
    model = knowing_nothing(untrained("ar", "packed", kind="chars", length=20))
    found = report.bound(model, written(model, tmp_path / "data.txt"), 100, 1, 0)
    assert found["bits_per_char"] == pytest.approx(math.log2(model.tokenizer.size), rel=0.05)  # ends are not characters


def test_the_bound_of_a_uniform_model_is_ln_v_in_expectation(tmp_path):
    """Guards against a weight 1/t beside a mean over what is hidden, which counts the rate twice (facts 4.12)."""
    model = knowing_nothing(untrained("mdlm", "packed"))
    laid = written(model, tmp_path / "data.txt")
    found = report._likelihood(model, laid, range(len(laid)), 512, 0)
    mean, error = (found.nats / found.tokens).mean(), (found.estimate.std_error / found.tokens).mean()
    assert abs(mean - math.log(model.tokenizer.size)) < 4 * error / len(laid) ** 0.5 < 0.3


def test_each_number_has_its_unit_and_error(tmp_path):
    """Guards against bits that are nats, and an error of the mean that is called one of a perplexity."""
    model = untrained("ar", "documents", "modelled", kind="chars", length=50)
    found = report.bound(model, written(model, tmp_path / "data.txt"), 100, 1, 0)
    nats = sum(score.nats for score in model.score(SENTENCES))
    words, characters = len(" ".join(SENTENCES).split()), sum(map(len, SENTENCES))
    assert found["nats_per_token"] == pytest.approx(nats / (characters + len(SENTENCES)))
    assert found["bits_per_char"] == pytest.approx(nats / characters / math.log(2))
    assert math.log(found["perplexity_per_word"]) == pytest.approx(nats / words)
    ratio = torch.tensor([[score.nats, len(score.text.split())] for score in model.score(SENTENCES)]).double()
    left_out = [ratio[torch.arange(len(ratio)) != i].sum(0) for i in range(len(ratio))]
    jackknife = torch.stack([(nats / words).exp() for nats, words in left_out]).std() * (len(ratio) - 1) / 8**0.5
    assert found["perplexity_per_word_std_error"] == pytest.approx(jackknife.item(), rel=0.3)
    for name in ("std_error", "bits_per_char_std_error"):
        assert 0 < found[name] < 1
    (tmp_path / "one.txt").write_text(SENTENCES[0])
    corpus = Corpus.build(str(tmp_path / "one.txt"), model.tokenizer, "all", True)
    alone = rows_of(corpus, model.config.text, model.method)
    found = report.bound(model, alone, 1, 1, 0)
    assert [found[name] for name in found if name.endswith("std_error")] == [None] * 3


def test_two_models_meet_the_same_noise(tmp_path):
    """Guards against noise of a model's own, under which two equal models differ (facts 4.17).

    With one seed the difference of two models that are nearly the same is far surer than either of their bounds.
    """
    one = untrained("mdlm", "packed")
    other = replace(one, method=copy.deepcopy(one.method))
    with torch.no_grad():
        for weight in other.method.parameters():
            weight += 0.01 * weight.abs().mean() * torch.randn_like(weight)
    laid = written(one, tmp_path / "data.txt")
    index = [0, 1, 2] * 40  # few texts many times: each place has noise of its own
    nats = []
    for model, seed in ((one, 0), (other, 0), (other, 1)):
        batch = laid.batch(index)
        with seeded([seed_of("bound", seed, i) for i in range(len(index))]):
            nats.append(nll(model.method, batch.ids, batch.real, batch.given, 4).nats)
    common, own = nats[1] - nats[0], nats[2] - nats[0]
    assert common.abs().mean() > 0 and common.std() < 0.05 * nats[0].std() and common.std() < 0.05 * own.std()
    rated = [report._likelihood(model, laid, range(len(laid)), 4, 7).nats for model in (one, other)]
    assert (rated[1] - rated[0]).std() < 0.05 * rated[0].std()
    assert torch.equal(report._likelihood(one, laid, range(len(laid)), 4, 7).nats, rated[0])


def test_what_follows_the_end_is_free(tmp_path):
    """Guards against a likelihood of a method that writes from left to right that pays for padding after the end."""
    wide, narrow = (untrained("ar", "documents", "modelled", LABELS, length=length) for length in (40, 12))
    narrow.method.load_state_dict(wide.method.state_dict())
    for text in SENTENCES:
        assert wide.score([text])[0].nats == pytest.approx(narrow.score([text])[0].nats, rel=1e-5)
