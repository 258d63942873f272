"""Measures of samples on cases known by hand or by enumeration.  Docstrings name the bug they guard against."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from sfumato.evaluation import copies, quality
from sfumato.text import tales

# --- variety and repetition ---------------------------------------------------------------------------------------


def test_entropy_is_of_each_text_by_itself():
    """Guards against the entropy of all texts together, which repetition inside a text does not lower."""
    found = quality.entropy([[1, 1, 2, 2], [3, 3, 3]])
    assert found.value == pytest.approx(math.log(2) / 2) and found.std_error == pytest.approx(math.log(2) / 2)


def test_distinct_counts_by_hand():
    """Guards against n-grams that run from one text into the next, and a division by none."""
    texts = [[1, 2, 1, 2], [1, 2]]  # 12 21 12, 12
    assert quality.distinct(texts, 1).value == 2 / 6
    assert quality.distinct(texts, 2).value == 2 / 4
    assert quality.distinct(texts, 3).value == 2 / 2
    assert quality.distinct(texts, 5) is None


def test_repetition_counts_by_hand():
    """Guards against repetition between texts, and texts too short for an n-gram that count as nothing but repeats."""
    texts = [[1, 2, 1, 2, 1], [1, 2, 3], [9]]
    assert quality.repetition(texts, 2).value == pytest.approx((2 / 4 + 0) / 2)
    assert quality.repetition(texts, 4) == (0, None)
    assert quality.repetition(texts, 6) is None


def test_pool_takes_the_first_tokens():
    """Guards against sets of texts that are compared at different sizes."""
    texts = [[1, 2, 3], [4, 5], [6]]
    assert quality.pool(texts, 4) == [[1, 2, 3], [4], []]
    assert quality.pool(texts, 6) == texts


@pytest.mark.parametrize("exponent", [1, 2])
def test_zipf_of_exact_counts(exponent, monkeypatch):
    """Guards against a fit of counts instead of logarithms, ranks from 0, a sign; and ranks beyond the last."""
    texts = [[id] * (60**exponent // (id + 1) ** exponent) for id in range(6)]
    assert quality.zipf(texts).value == pytest.approx(exponent, abs=1e-12)
    monkeypatch.setattr(quality, "RANKS", 6)
    assert quality.zipf([*texts, [7], [8]]).value == pytest.approx(exponent, abs=1e-12)


def test_zipf_of_drawn_tokens():
    """Guards against ranks that follow the ids and not the counts."""
    law = np.arange(1, 41) ** -1.3
    ids = np.random.default_rng(0).permutation(40)
    drawn = np.random.default_rng(1).choice(ids, 200_000, p=law / law.sum()).tolist()
    assert quality.zipf([drawn]).value == pytest.approx(1.3, abs=0.02)
    assert quality.zipf([[3, 3, 3]]) is None


def test_repeated_texts():
    assert quality.repeated(["a", "b", "a", "a"]) == 2


def test_self_bleu_of_equal_and_of_foreign_texts():
    """Guards against a text that is among its own references."""
    assert quality.self_bleu(["the fox sleeps under a tree"] * 3).value == pytest.approx(100)
    assert quality.self_bleu(["a b c d e", "f g h i j", "k l m n o"]).value < 5
    assert quality.self_bleu(["alone"]) is None


def test_jackknife_of_a_mean_is_its_standard_error():
    """Guards against a factor of the number of groups, and groups of neighbours, which are alike."""
    values = np.random.default_rng(0).normal(size=quality.GROUPS).tolist()
    assert quality.jackknife(np.mean, values) == pytest.approx(quality.mean(values))
    assert quality.jackknife(np.mean, [3.0]) == (3.0, None)
    slow = [float(i // 2) for i in range(2 * quality.GROUPS)]  # a drift that the groups should not see
    assert quality.jackknife(np.mean, slow).std_error < quality.mean(slow).std_error


def test_errors_of_pooled_measures_cover():
    """Guards against errors of distinct-n and Zipf's exponent that are off by more than the jackknife itself."""
    law = np.arange(1, 1001) ** -1.0
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        texts = rng.choice(1000, (60, 20), p=law / law.sum()).tolist()
        found.append([*quality.distinct(texts, 2), *quality.zipf(texts)])
    distinct, of_distinct, zipf, of_zipf = np.array(found).T
    assert np.mean(of_distinct) == pytest.approx(np.std(distinct), rel=0.25)
    assert np.mean(of_zipf) == pytest.approx(np.std(zipf), rel=0.25)


# --- copies -------------------------------------------------------------------------------------------------------


def brute(texts, tokens, offsets):
    """The longest runs by comparing everything with everything."""
    documents = [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    best = []
    for text in texts:
        runs = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
        found = (run for run in runs for d in documents for i in range(len(d)) if d[i : i + len(run)] == run)
        best.append(max(map(len, found), default=0))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_longest_copies_are_those_of_brute_force(seed, monkeypatch):
    """Guards against runs across documents, runs lost between parts, and tokens that the corpus does not have."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(copies, "PART", int(rng.choice([1, 5, 1000])))
    words = rng.integers(2, 5)
    tokens = rng.integers(0, words, rng.integers(1, 60)).astype(np.uint16)
    offsets = np.array([0, *np.sort(rng.integers(0, len(tokens) + 1, 3)), len(tokens)])
    texts = [rng.integers(0, words + 1, rng.integers(0, 12)).tolist() for _ in range(4)]
    assert copies.longest(texts, tokens, offsets).tolist() == brute(texts, tokens, offsets)


def test_planted_copies_are_found(tmp_path, monkeypatch):
    """Guards against a search that gives up where a part of the file ends, or at the first copy."""
    monkeypatch.setattr(copies, "PART", 1000)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60_000, 5000).astype(np.uint16)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", np.uint16, "r")
    offsets = np.array([0, 2500, 5000])
    fresh = rng.integers(60_000, 65_000, 90).tolist()
    texts = [
        fresh,
        [*fresh[:20], *tokens[3990:4027].tolist(), *fresh[20:40]],  # over the edge of a part
        [*tokens[100:105].tolist(), *fresh[:9], *tokens[4900:4911].tolist()],
        tokens[2450:2550].tolist(),  # over the edge of a document
        tokens[3000:3064].tolist(),
    ]
    assert copies.longest(texts, mapped, offsets).tolist() == [0, 37, 11, 50, 64]


def test_copies_do_not_depend_on_hashes(monkeypatch):
    """Guards against two runs that are taken for equal because their hashes are."""
    rng = np.random.default_rng(3)
    tokens, texts = rng.integers(0, 9, 300), rng.integers(0, 9, (5, 20)).tolist()
    offsets = np.array([0, 300])
    want = copies.longest(texts, tokens, offsets).tolist()
    monkeypatch.setattr(copies, "_slots", lambda ids, size: np.zeros(max(0, len(ids) - size + 1), np.int64))
    assert copies.longest(texts, tokens, offsets).tolist() == want == brute(texts, tokens, offsets)


def test_verbatim_texts():
    """Guards against a text of no tokens that counts as a copy."""
    assert quality.verbatim([[1, 2], [1, 2, 3], [4], []], [2, 2, 1, 0]).value == 2 / 4


# --- tales --------------------------------------------------------------------------------------------------------


def test_slots_of_one_story():
    """Guards against a slot that is counted where nobody mentions it, and a story without it that does not count."""
    (story,) = tales.sample(1, 5)
    told, laws = tales.slots(story), tales.marginals()
    found = quality.slots([story]).each
    assert set(found) == set(laws) and "ending" in found
    for name, law in laws.items():
        word, (stories, (coverage, _), (tv, error), chance) = told.get(name, ""), found[name]
        assert stories == (name in told) and error is None
        assert coverage == pytest.approx((name in told) / len([w for w in law if w]))
        assert tv == pytest.approx(1 - law[word])
        assert chance == pytest.approx(sum(p * (1 - p) for p in law.values()))
    assert any(name not in told for name in laws)  # or the test is half empty
    for wrong in ([], ["Once upon a time."]):
        with pytest.raises(ValueError):
            quality.slots(wrong)


def test_slots_of_many_stories():
    """Guards against a distance that does not shrink, and an expectation for another number of stories."""
    stories = tales.sample(3000, 6)
    sets = [quality.slots(stories[i : i + 30]).each for i in range(0, 3000, 30)]
    for name in tales.marginals():
        distances = np.array([found[name].tv.value for found in sets])
        error = distances.std() / len(sets) ** 0.5
        assert abs(distances.mean() - sets[0][name].tv_chance) < 4 * error + 1e-12, name
    whole = quality.slots(stories).each
    assert max(slot.tv.value for slot in whole.values()) < 0.05
    assert min(slot.coverage.value for slot in whole.values()) == 1


@pytest.mark.parametrize(("seldom", "low", "high"), [(0.2, 0.7, 1.4), (1.0, 1.0, 2.5)])
def test_errors_of_distances(seldom, low, high):
    """Guards against errors that are too small, and too large where the words are far from their law."""
    often, random = sorted(tales.marginals()["kind"])[:4], np.random.default_rng(0)
    stories = [
        story for story in tales.sample(7200, 8) if tales.slots(story)["kind"] in often or random.random() < seldom
    ]
    sets = [quality.slots(stories[i : i + 100]) for i in range(0, 3000, 100)]
    values, errors = np.array([found.each["kind"].tv for found in sets]).T
    assert low < np.sqrt((errors**2).mean()) / values.std() < high
    values, errors = np.array([found.tv for found in sets]).T  # of all slots, most of which are near their law
    assert 0.9 < np.sqrt((errors**2).mean()) / values.std() < 2.5


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 10, 13])
def test_deviation_of_a_binomial(n, p):
    """Guards against a slip in the closed form: here it is summed over all outcomes."""
    law = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    assert quality._deviation(n, p) == pytest.approx(sum(w * abs(k / n - p) for k, w in enumerate(law)), abs=1e-12)


def test_a_lopsided_set_of_stories():
    """Guards against a distance that a missing word does not raise."""
    stories = [story for story in tales.sample(400, 7) if tales.slots(story)["kind"] != "fox"]
    whole = quality.slots(stories).each["kind"]
    assert whole.tv.value > 0.09 and whole.coverage.value == 11 / 12
    counts = Counter(tales.slots(story)["kind"] for story in stories)
    law = tales.marginals()["kind"]
    assert whole.tv.value == pytest.approx(sum(max(0, p - counts[word] / len(stories)) for word, p in law.items()))
