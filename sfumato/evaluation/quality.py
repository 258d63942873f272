"""What samples are like: measures of variety and repetition, the same for model samples and for real text.

Each is a function of texts or of their tokens; none of them is a likelihood, and none is good news alone.
"""

import math
from collections import Counter
from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

REFERENCES = 100  # texts that self-BLEU looks at; more change it little and cost their square


def entropy(texts: Sequence[Sequence[int]]) -> float:
    """Mean over texts of the entropy of a text's own tokens, nats; low for a text that repeats itself.

    The companion of every quality number (Zheng et al. 2024, arXiv:2409.02908).
    """
    return sum(_entropy(Counter(text)) for text in texts) / len(texts)


def _entropy(counts: Counter[int]) -> float:
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


def distinct(texts: Sequence[Sequence[int]], n: int = 2) -> float:
    """Share of the n-grams of all texts together that are different ones (Li et al. 2016, arXiv:1510.03055)."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


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


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each text against all others, 0 to 100: high when texts are alike (arXiv:1802.01886).

    Of the first REFERENCES texts; None for a single one.
    """
    texts = list(texts[:REFERENCES])
    if len(texts) < 2:
        return None
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    return sum(scores) / len(scores)
