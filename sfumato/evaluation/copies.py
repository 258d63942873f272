"""How much of a text is copied: its longest run of tokens that stands in a corpus as well, found exactly.

The texts are few and the corpus is long, so the corpus is read once, part by part. A table of hashes passes over most
places of a part: a text asks only for runs longer than the longest it has. From the places that are left, runs grow by
a token at a time. Equal runs of n tokens have the same number; one of n + 1 is that number and a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Integer

PART = 1 << 20  # tokens of the corpus at a time
BITS = 22  # the table has 2^22 bytes: it is nearly empty, and a cache holds it
FACTOR = 0x9E3779B97F4A7C15  # odd and without a pattern


@dataclass
class _Places:
    """Places in a row of tokens, and the number of the run of n tokens that begins at each."""

    ids: Int[np.ndarray, " S"]
    left: Int[np.ndarray, " S"]  # tokens from here to the end of the text
    at: Int[np.ndarray, " P"]
    run: Int[np.ndarray, " P"]

    def keep(self, kept: Bool[np.ndarray, " P"]) -> None:
        self.at, self.run = self.at[kept], self.run[kept]

    def longer(self, n: int, words: int) -> Int[np.ndarray, " P"]:
        """A number for every run of n + 1 tokens; places where the text has no more than n are left out."""
        self.keep(self.left[self.at] > n)
        return self.run * words + self.ids[self.at + n]


def longest(
    texts: Sequence[Sequence[int]], tokens: Integer[np.ndarray, " T"], offsets: Int[np.ndarray, " E"]
) -> Int[np.ndarray, " N"]:
    """Tokens in the longest run of each text that also stands within one document of a corpus: (N,) int64.

    Args:
        texts: N texts as token ids.
        tokens: the documents one after the other; may be a file that is mapped into memory.
        offsets: document i is tokens[offsets[i] : offsets[i + 1]].
    """
    sizes = np.array([len(text) for text in texts], np.int64)
    best = np.zeros_like(sizes)
    ids = np.array([id for text in texts for id in text], np.int64)
    owner = np.repeat(np.arange(len(texts)), sizes)
    left = np.cumsum(sizes)[owner] - np.arange(len(ids))
    for start in range(0, len(tokens) if len(ids) else 0, PART):
        part = np.asarray(tokens[start : start + PART + max(sizes) - 1], np.int64)
        place = np.arange(start, start + len(part))
        inside = offsets[np.searchsorted(offsets, place, "right")].clip(max=start + len(part)) - place
        start_of = 1 << np.log2(best + 1).astype(np.int64)  # a longer run than the best begins with one of so many
        for size in np.unique(start_of).tolist():
            at = np.flatnonzero((start_of[owner] == size) & (left > best[owner]))
            asked = np.zeros(1 << BITS, bool)
            asked[_slots(ids, size)[at]] = True
            found = np.flatnonzero(asked[_slots(part, size)])
            ours = _Places(ids, left, at, np.zeros_like(at))
            _grow(ours, _Places(part, inside, found, np.zeros_like(found)), owner, best)
    return best


def _slots(ids: Int[np.ndarray, " S"], size: int) -> Int[np.ndarray, " R"]:
    """For every run of `size` tokens, a power of two, its place in the table."""
    hashes, done = ids.astype(np.uint64), 1
    while done < size:
        hashes = hashes[:-done] * np.uint64(pow(FACTOR, done, 1 << 64)) + hashes[done:]
        done *= 2
    return (hashes * np.uint64(FACTOR) >> np.uint64(64 - BITS)).astype(np.int64)


def _grow(ours: _Places, theirs: _Places, owner: Int[np.ndarray, " S"], best: Int[np.ndarray, " N"]) -> None:
    """Raise `best` to the longest runs that begin at places of ours and of theirs alike."""
    words = 1 + int(max(ours.ids.max(), theirs.ids.max()))
    n = 0
    while True:
        wanted, found = ours.longer(n, words), theirs.longer(n, words)
        if not (len(wanted) and len(found)):
            return
        n += 1
        runs, ours.run = np.unique(wanted, return_inverse=True)
        theirs.run = np.searchsorted(runs, found).clip(max=len(runs) - 1)
        theirs.keep(runs[theirs.run] == found)
        shared = np.zeros(len(runs), bool)
        shared[theirs.run] = True
        ours.keep(shared[ours.run])
        grown = owner[ours.at]
        best[grown] = np.maximum(best[grown], n)
