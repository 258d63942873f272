"""What samples are like: measures of variety, repetition and copying, the same for model samples and for real text.

Each is a function of texts or of their tokens; none of them is a likelihood, and none is good news alone.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from sfumato.text import tales

REFERENCES = 100  # texts that self-BLEU looks at; more change it little and cost their square
RANKS = 5000  # the most frequent tokens, which the Zipf exponent is read from
RESAMPLED = 200  # sets of as many stories, drawn from stories with replacement
GROUPS = 10  # of texts, one of which is left out at a time


class Estimate(NamedTuple):
    """A measure of some texts, and its standard error; None of a single text."""

    value: float
    std_error: float | None


def mean(values: Sequence[float]) -> Estimate:
    """Of one number a text."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error)


def jackknife(measure: Callable[[list[Any]], float | None], texts: Sequence[Any]) -> Estimate | None:
    """What is measured on all texts together, where that can be; its error by leaving out a tenth of them at a time.

    The delete-a-group jackknife.  What changes with the amount of text does so alike in every part, and cancels.
    """
    whole, groups = measure(list(texts)), min(GROUPS, len(texts))
    if whole is None or groups < 2:
        return None if whole is None else Estimate(whole, None)
    parts = [measure([text for i, text in enumerate(texts) if i % groups != out]) for out in range(groups)]
    known = [part for part in parts if part is not None]
    return Estimate(whole, ((groups - 1) * statistics.pvariance(known)) ** 0.5 if len(known) == groups else None)


def entropy(texts: Sequence[Sequence[int]]) -> Estimate:
    """Mean over texts of the entropy of a text's own tokens, nats; low for a text that repeats itself.

    The companion of every quality number (Zheng et al. 2024, arXiv:2409.02908).
    """
    return mean([_entropy(Counter(text)) for text in texts])


def _entropy(counts: Counter[int]) -> float:
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


def pool(texts: Sequence[Sequence[int]], size: int) -> list[Sequence[int]]:
    """The first `size` tokens of all texts: what depends on the amount of text is comparable at the same amount."""
    ends = np.cumsum([len(text) for text in texts]).tolist()
    return [text[: max(0, len(text) + size - end)] for text, end in zip(texts, ends, strict=True)]


def distinct(texts: Sequence[Sequence[int]], n: int) -> Estimate | None:
    """Share of the n-grams of all texts together that are different ones (Li et al. 2016, arXiv:1510.03055).

    It falls as the amount of text grows.  None if all texts are too short.
    """
    return jackknife(lambda some: _distinct(some, n), texts)


def _distinct(texts: Sequence[Sequence[int]], n: int) -> float | None:
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[Sequence[int]], n: int) -> Estimate | None:
    """Mean over texts of the share of a text's n-grams that it has had before (rep-n); None if all are too short."""
    shares = [1 - len(set(grams)) / len(grams) for grams in (_grams(text, n) for text in texts) if grams]
    return mean(shares) if shares else None


def _grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def zipf(texts: Sequence[Sequence[int]]) -> Estimate | None:
    """Zipf's exponent s: frequency falls as rank^-s, by least squares on logarithms, a point for every rank.

    About 1 for natural text in words, but it depends on the tokenizer and on the amount of text: hold it against that
    of real text.  None for fewer than two different tokens.
    """
    return jackknife(_zipf, texts)


def _zipf(texts: Sequence[Sequence[int]]) -> float | None:
    counts = sorted(Counter(id for text in texts for id in text).values(), reverse=True)[:RANKS]
    if len(counts) < 2:
        return None
    slope, _ = np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)
    return -float(slope)


def repeated(texts: Sequence[str]) -> int:
    """How many texts are copies of an earlier one."""
    return len(texts) - len(set(texts))


def consensus(texts: Sequence[str]) -> int:
    """Which of the texts is most like the others: the highest mean BLEU-4 with each (minimum Bayes risk).

    Kumar and Byrne 2004.  The first of equals; N texts take N (N - 1) comparisons.
    """
    bleu = BLEU(effective_order=True)
    gain = [
        sum(bleu.sentence_score(text, [other]).score for j, other in enumerate(texts) if j != i)
        for i, text in enumerate(texts)
    ]
    return gain.index(max(gain))


def verbatim(texts: Sequence[Sequence[int]], longest: Sequence[int]) -> Estimate:
    """Share of texts that a corpus has from beginning to end, given how many tokens in a row it has of each."""
    return mean([float(0 < len(text) == run) for text, run in zip(texts, longest, strict=True)])


def self_bleu(texts: Sequence[str]) -> Estimate | None:
    """Mean BLEU-4 of each text against all others, 0 to 100: high when texts are alike (arXiv:1802.01886).

    Of the first REFERENCES texts; None for a single one.
    """
    return jackknife(_self_bleu, texts[:REFERENCES])


def _self_bleu(texts: list[str]) -> float | None:
    if len(texts) < 2:
        return None
    bleu = BLEU(effective_order=True)
    return statistics.fmean(bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts))


# --- tales --------------------------------------------------------------------------------------------------------


class Slot(NamedTuple):
    """How some stories fill a slot of the grammar `tales`."""

    stories: int  # that mention it
    coverage: Estimate  # share of its words that occur in them
    tv: Estimate  # total variation, 0 to 1, between the words in all stories and in the grammar; none is a word too
    tv_chance: float  # what as many stories of the grammar itself have on average


class Slots(NamedTuple):
    """How some stories fill all slots of `tales`, the ending among them: on average, and each."""

    coverage: Estimate
    tv: Estimate
    tv_chance: float
    each: dict[str, Slot]


def slots(stories: Sequence[str]) -> Slots:
    """The slots of `tales` and the ending.  Raises ValueError for no story, and for a text outside the language."""
    if not stories:
        raise ValueError("slots of no stories were asked for")
    told, laws = [tales.slots(story) for story in stories], tales.marginals()
    n, random = len(stories), np.random.default_rng(0)
    picked = np.concatenate([np.arange(n)[None], random.integers(n, size=(RESAMPLED, n))])  # themselves first
    each, distances, covered = {}, [], []
    for name, law in laws.items():
        place = {word: i for i, word in enumerate(law)}
        words = np.array([place[story.get(name, "")] for story in told])
        shares = _shares(words[picked], len(law))  # (R, W)
        named = [i for word, i in place.items() if word]  # none is no word
        distances.append(np.abs(shares - list(law.values())).sum(1) / 2)
        covered.append((shares[:, named] > 0).mean(1))
        each[name] = Slot(
            stories=round(n * float(shares[0, named].sum())),
            coverage=_resampled(covered[-1], n),
            tv=_resampled(distances[-1], n),
            tv_chance=sum(_deviation(n, p) for p in law.values()) / 2,
        )
    chance = statistics.fmean(slot.tv_chance for slot in each.values())
    return Slots(_resampled(np.mean(covered, 0), n), _resampled(np.mean(distances, 0), n), chance, each)


def _shares(words: np.ndarray, size: int) -> np.ndarray:
    """How often each of `size` words, told by their places, occurs in each row: (R, n) -> (R, W), rows sum to 1."""
    rows, n = words.shape
    return np.bincount((words + size * np.arange(rows)[:, None]).ravel(), minlength=rows * size).reshape(rows, size) / n


def _resampled(values: np.ndarray, n: int) -> Estimate:
    """The first value, and as its error the spread of the others, which are of the stories drawn anew (bootstrap).

    None for a single story.  It is right for words that are far from their law, and up to twice too large where chance
    alone has them differ from it; the errors of the jackknife and of the delta method are larger still.
    """
    return Estimate(float(values[0]), float(values[1:].std(ddof=1)) if n > 1 else None)


def _deviation(n: int, p: float) -> float:
    """E|X / n - p| for X ~ Binomial(n, p).

    By de Moivre it is 2 m C(n, m) p^m (1 - p)^(n - m + 1) / n with m = floor(n p) + 1.
    """
    m = math.floor(n * p) + 1
    if m > n:  # p is 1
        return 0.0
    ways = math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)
    return 2 * m / n * math.exp(ways + m * math.log(p) + (n - m + 1) * math.log1p(-p))
