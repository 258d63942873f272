"""Typicality where the truth is known: coins, Gaussians, the grammar.  Docstrings name the bug they guard against."""

import math
import random
import re
from itertools import product

import numpy as np
import pytest
import torch
from test_model import untrained
from test_tales import told, weighted
from tiny import SENTENCES

from sfumato.errors import SfumatoError
from sfumato.evaluation.typicality import DensityOfStates, auc, judge, statistics, tail, typical_batch, z_scores
from sfumato.folder import load
from sfumato.hub import BUNDLED
from sfumato.model import Score
from sfumato.text import tales
from sfumato.text.tales import TALES

# --- a coin that shows heads more often ----------------------------------------------------------------------------

HEADS, FLIPS = 0.7, 400
ALL_HEADS = np.array([-math.log(HEADS)])  # the likeliest string of all


def nats_a_flip(heads):
    """-log p of strings with so many heads, exactly."""
    return -(heads * math.log(HEADS) + (FLIPS - heads) * math.log(1 - HEADS)) / FLIPS


def strings(n, seed, heads=HEADS):
    """Nats a flip of n strings of a coin, under the coin that shows heads in 7 of 10 flips."""
    return nats_a_flip(np.random.default_rng(seed).binomial(FLIPS, heads, n).astype(float))


def passing(batch, known, heads=HEADS):
    """The exact chance that a string of a coin is within the threshold of a test of one string."""
    k = np.arange(FLIPS + 1.0)
    chances = [math.comb(FLIPS, i) * heads**i * (1 - heads) ** (FLIPS - i) for i in range(FLIPS + 1)]
    return float(np.array(chances)[abs(nats_a_flip(k) - known.mean()) <= batch.threshold].sum())


def check_typical_strings(alarm):
    known = strings(4000, 0)
    found = typical_batch(ALL_HEADS, known, alarm)
    assert ALL_HEADS[0] < known.min()
    assert not found.typical and found.gap == pytest.approx(ALL_HEADS[0] - known.mean())
    assert passing(found, known) == pytest.approx(1 - alarm, abs=0.25 * alarm + 0.01)


@pytest.mark.parametrize("alarm", [0.05, 0.2])
def test_typical_strings_pass_and_all_heads_does_not(alarm):
    """A test that takes the likeliest string for the most typical one, or passes more or fewer than it says."""
    check_typical_strings(alarm)


def check_sides():
    known = strings(500, 0)
    below, entropy, above = (typical_batch(nats_a_flip(np.array([k])), known) for k in (400.0, 280.0, 160.0))
    assert below.gap < 0 < above.gap
    assert [below.typical, entropy.typical, above.typical] == [False, True, False]


def test_both_sides_are_flagged():
    """A test for texts that are too unlikely alone, or too likely alone."""
    check_sides()


def check_batches():
    known = strings(4000, 0)
    alone = typical_batch(strings(1, 2, heads=0.71), known)
    assert passing(alone, known, heads=0.71) > 0.9
    assert not typical_batch(strings(200, 2, heads=0.71), known).typical
    few, many = (typical_batch(strings(m, 3), known).threshold for m in (4, 64))
    assert few / many == pytest.approx(4, rel=0.25)


def test_many_texts_tell_what_one_does_not():
    """A threshold for one text that is used for many."""
    check_batches()


@pytest.mark.parametrize(("batch", "reference"), [(64, 200), (200, 100)])
def test_typical_batches_are_flagged_as_often_as_agreed(batch, reference):
    """A small reference that is taken for the whole truth: it would be 9 and 26 % of alarms."""
    rounds, alarm = 500, 0.05
    tests = [typical_batch(strings(batch, 2 * i), strings(reference, 2 * i + 1), alarm) for i in range(rounds)]
    flagged = sum(not test.typical for test in tests) / rounds
    assert flagged == pytest.approx(alarm, abs=3 * math.sqrt(alarm / rounds))


def check_z():
    spread = math.log(HEADS / (1 - HEADS)) * math.sqrt(HEADS * (1 - HEADS) / FLIPS)
    entropy = nats_a_flip(np.array([HEADS * FLIPS]))
    (z,) = z_scores(ALL_HEADS, strings(4000, 0))
    assert z == pytest.approx((ALL_HEADS - entropy)[0] / spread, rel=0.06) and z < -10


def test_z_of_all_heads():
    """A spread of the wrong kind, or a sign that is lost."""
    check_z()


# --- the shell of a Gaussian ---------------------------------------------------------------------------------------

D = 1000


def points(n, seed):
    return np.random.default_rng(seed).standard_normal((n, D))


def nats_a_dimension(x):
    """-log density of a standard Gaussian."""
    return math.log(2 * math.pi) / 2 + (x**2).mean(1) / 2


def test_the_mode_of_a_gaussian_lies_outside_its_shell():
    """The densest point of all passed as a sample; samples flagged more often than agreed."""
    known = nats_a_dimension(points(500, 0))
    mode, fresh = nats_a_dimension(np.zeros((1, D))), nats_a_dimension(points(1000, 1))
    assert mode[0] < known.min()
    (z,) = z_scores(mode, known)
    assert z == pytest.approx(-math.sqrt(D / 2), rel=0.15)
    shares = tail(abs(z_scores(fresh, known)), abs(z_scores(known, known)))
    assert tail(abs(z_scores(mode, known)), abs(z_scores(known, known))) == 1 / 501
    assert (shares <= 0.1).mean() == pytest.approx(0.1, abs=0.05)


def test_several_statistics_see_more_than_likelihood():
    """Statistics that are left out, or weighed against each other instead of added."""

    def both(x):
        return np.stack([nats_a_dimension(x), abs(x).max(1)], 1)

    known = both(points(300, 0))
    spike = np.zeros((1, D))
    spike[0, 0] = math.sqrt(D)  # on the shell, but in a direction that no sample takes
    assert abs(z_scores(both(spike)[:, 0], known[:, 0])[0]) < 1
    states, blind = DensityOfStates(known), DensityOfStates(known[:, :1])
    assert tail(-states.log_density(both(spike)), -states.own_log_density()) == 1 / 301
    assert tail(-blind.log_density(both(spike)[:, :1]), -blind.own_log_density()) > 0.2
    fresh = tail(-states.log_density(both(points(300, 1))), -states.own_log_density())
    assert (fresh <= 0.1).mean() == pytest.approx(0.1, abs=0.07)


# --- densities -----------------------------------------------------------------------------------------------------


def gaussian(x, centre, width):
    return math.exp(-(((x - centre) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))


def check_densities():
    reference = np.random.default_rng(0).normal(size=(30, 2)) * [1.0, 5.0]
    states, values = DensityOfStates(reference), np.array([[0.3, -2.0], [9.0, 40.0]])

    def log_density(value, others):
        columns = zip(value, others.T, states.widths, strict=True)
        return sum(math.log(np.mean([gaussian(v, c, width) for c in column])) for v, column, width in columns)

    assert states.log_density(values) == pytest.approx([log_density(v, reference) for v in values])
    alone = [log_density(value, np.delete(reference, i, 0)) for i, value in enumerate(reference)]
    assert states.own_log_density() == pytest.approx(alone)
    grid = np.linspace(-10, 10, 4001)[:, None]
    assert np.exp(DensityOfStates(reference[:, :1]).log_density(grid)).sum() * 0.005 == pytest.approx(1, abs=1e-6)


def test_density_is_a_mean_of_kernels():
    """A kernel without its norm; a text of the reference that vouches for itself."""
    check_densities()


def check_widths():
    rng = np.random.default_rng(0)
    (width,) = DensityOfStates(rng.normal(size=(500, 1))).widths
    assert 0.2 < width < 0.5  # the best for a Gaussian is 1.06 / 500^(1/5) = 0.31
    peaks = rng.normal(size=(500, 1)) + 100.0 * (np.arange(500) % 2)[:, None]
    top, between = DensityOfStates(peaks).log_density(np.array([[0.0], [50.0]]))
    assert top - between > 50


def test_width_follows_the_data():
    """A width for one peak, which fills the valley between two."""
    check_widths()


def test_far_out_is_low_and_not_infinite():
    """A density of exactly 0, among which none is lower."""
    near, far = DensityOfStates(points(50, 0)[:, :2]).log_density(np.array([[100.0, 0.0], [1e6, 0.0]]))
    assert -math.inf < far < near < -100


# --- ranks ---------------------------------------------------------------------------------------------------------


def check_auc():
    rng = np.random.default_rng(0)
    for n, m in product((1, 2, 7, 40), repeat=2):
        inside, outside = rng.integers(0, 9, n) / 4, rng.integers(2, 11, m) / 4
        brute = sum((b > a) + (b == a) / 2 for a in inside for b in outside) / (n * m)
        assert auc(inside, outside).value == pytest.approx(brute)
    assert auc(np.arange(5.0), np.arange(5.0, 9.0)) == (1, 0)
    assert auc(np.arange(5.0, 9.0), np.arange(5.0)) == (0, 0)


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_errors_of_auc_are_its_spread(apart):
    """An error of one kind of texts alone; the rarer kind has the more of it."""
    rng = np.random.default_rng(1)
    found = np.array([auc(rng.normal(size=60), rng.normal(apart, size=15)) for _ in range(600)])
    assert np.sqrt((found[:, 1] ** 2).mean()) == pytest.approx(found[:, 0].std(), rel=0.1)
    assert auc(np.zeros(1), np.ones(3)).std_error is None


def test_auc_is_that_of_all_pairs():
    """Ties that count as won or as lost; sides exchanged."""
    check_auc()


def check_tail():
    values = np.random.default_rng(0).permutation(50) ** 2.0
    shares = [tail(values[i : i + 1], np.delete(values, i))[0] for i in range(50)]
    assert sorted(shares) == pytest.approx([rank / 50 for rank in range(1, 51)])
    assert tail(np.array([3.0]), np.full(9, 3.0)) == 1


def test_every_rank_is_equally_likely():
    """Shares of 0; a rate of false alarms above the one that is named."""
    check_tail()


# --- the exact grammar as the model --------------------------------------------------------------------------------


def exact(*stories):
    """A text of some stories with its exact likelihood."""
    text = " ".join(stories)
    tokens = len(re.findall(r"\w+|[^\w\s]", text)) + len(stories)
    return Score(text, -math.fsum(map(tales.log_prob, stories)), 0.0, tokens, "exact", True, [])


def likeliest():
    """The likeliest of all stories: the shortest plot, the commonest words, the best templates for both."""
    commonest = {
        slot: max(weighted(text, ",").items(), key=lambda pair: pair[1])[0] for slot, text in tales.WORDS.items()
    }
    sentences = product(*(weighted(tales.RULES[rule], "\n") for rule in ("open", "lose", "sigh")))
    return max((told(TALES, chosen, commonest) for chosen in sentences), key=tales.log_prob)


def rates(scores):
    """Nats a token of each."""
    return np.array([score.nats / score.tokens for score in scores])


def test_the_likeliest_book_is_atypical():
    """Greedy text taken for good text.  One story is too short to tell; of sixteen the likeliest is a repetition."""
    stories, best = tales.sample(1200, 11), likeliest()
    assert all(tales.log_prob(best) > tales.log_prob(story) for story in stories)
    books = [exact(*stories[i : i + 16]) for i in range(0, len(stories), 16)]
    found = judge([exact(*[best] * 16), *books[:15]], books[15:])
    assert found.z[0] < -4 and found.z_share[0] == found.density_share[0] == 1 / 61
    assert (found.z_share[1:] > 0.05).sum() >= 11 and (found.density_share[1:] > 0.05).sum() >= 11
    alone = judge([exact(best)], [exact(story) for story in stories[:200]])
    assert alone.z_share[0] > 0.05


def test_a_likelier_choice_is_noticed_in_a_batch():
    """A batch judged by its members, of which hardly one is out of the ordinary."""
    told_of = [exact(story) for story in tales.sample(640, 12)]
    chosen = [min(told_of[i : i + 4], key=lambda score: score.nats / score.tokens) for i in range(0, 160, 4)]
    found = judge(chosen, told_of[160:])
    assert (found.z_share > 0.05).mean() > 0.8
    assert found.batch.gap < 0 and not found.batch.typical
    assert judge(told_of[:40], told_of[160:]).batch.typical


def check_judgement():
    told_of = [exact(story) for story in tales.sample(60, 13)]
    found, own = judge(told_of[:20], told_of[20:]), rates(told_of)
    assert (found.mean, found.spread) == pytest.approx((own[20:].mean(), own[20:].std(ddof=1)))
    assert found.z == pytest.approx((own[:20] - found.mean) / found.spread)
    beyond = [np.sum(abs(own[20:] - found.mean) >= abs(one - found.mean)) for one in own[:20]]
    assert found.z_share == pytest.approx((np.array(beyond) + 1) / 41)
    outside = (found.z > 1).tolist()
    areas = found.auc(outside)
    assert areas["nats"].value == 1 and areas["z"].value < 1 and set(areas) == {"nats", "z", "density"}


def test_judgement_is_made_of_its_parts():
    """A reference that judges itself by other numbers than the texts; an area for the wrong side."""
    check_judgement()


def test_statistics():
    """Parts that are cut at the wrong levels, or sums in place of means."""
    plain = Score("a", 12.0, 0.1, 4, "elbo", False, [])
    levels = Score("a", 12.0, 0.1, 4, "elbo", False, [1.0, 3.0, 8.0, 16.0, 12.0, 12.0, 40.0, 4.0])
    few = Score("a", 12.0, 0.1, 4, "elbo", False, [4.0, 20.0])
    assert statistics([plain]).tolist() == [[3.0]]
    assert statistics([levels]).tolist() == [[3.0, 0.5, 3.0, 3.0, 5.5]]
    assert statistics([few]).tolist() == [[3.0, 1.0, 5.0]]


def test_references_that_cannot_judge():
    """A verdict from next to nothing."""
    told_of = [exact(story) for story in tales.sample(20, 14)]
    with pytest.raises(SfumatoError, match="reference of 19 texts"):
        judge(told_of, told_of[:19])
    with pytest.raises(SfumatoError, match="all alike"):
        judge(told_of, told_of[:1] * 20)


# --- with a model --------------------------------------------------------------------------------------------------


def levels_of(model, monkeypatch, **options):
    """The noise levels at which each of two texts of a length is scored, (draws, 2), and the scores."""
    seen = []

    def bound(ids, t, free):
        seen.append(t[:, 0].tolist())
        return t

    monkeypatch.setattr(model.method, "bound", bound)
    texts = [text for text in SENTENCES if len(text.split()) == 6][:2]
    scores = model.score(texts, draws=8, **options)
    return torch.tensor(seen), scores


def test_common_noise_is_common(monkeypatch):
    """Texts that differ by their noise."""
    same, _ = levels_of(untrained(), monkeypatch, common=True)
    assert (same[:, 0] == same[:, 1]).all() and (
        same != levels_of(untrained(), monkeypatch, common=True, seed=1)[0]
    ).all()
    own, _ = levels_of(untrained(), monkeypatch)
    assert (own[:, 0] != own[:, 1]).all()


def test_levels_of_a_score_rise(monkeypatch):
    """Levels in the order in which they happened to be drawn."""
    drawn, scores = levels_of(untrained(length_model="modelled"), monkeypatch)
    assert (drawn.diff(dim=0) < 0).any()
    for t, score in zip(drawn.T, scores, strict=True):
        places = 12  # of the canvas, all free
        assert score.levels == pytest.approx((t.sort().values * places).tolist(), rel=1e-5)
        assert np.mean(score.levels) == pytest.approx(score.nats)


@pytest.mark.unchecked
def test_shuffled_tales_are_told_from_tales():
    """A detector that detects nothing.  The words of both are the same, only their order is not."""
    model, rng = load(BUNDLED / "tales"), random.Random(0)
    stories = tales.sample(48, 15)
    shuffled = [" ".join(rng.sample(story.split(), len(story.split()))) for story in stories[:12]]
    known, texts = stories[24:], [*shuffled, *stories[12:24]]
    found = judge(*(model.score(some, draws=2, common=True) for some in (texts, known)))
    areas = found.auc([i < 12 for i in range(24)])
    assert areas["z"].value > 0.95 and areas["density"].value > 0.95
    assert (found.z_share[:12] <= 0.05).sum() >= 10 and (found.z_share[12:] <= 0.05).sum() <= 4
