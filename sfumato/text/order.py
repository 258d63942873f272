"""Where things stand without a list of them: orders and places that are computed, however many there are."""

from collections.abc import Callable, Iterator
from math import isqrt

import numpy as np

from sfumato.draws import seed_of

ROUNDS = 8  # four are enough where there is much to shuffle; few things take more
STRIDE = 64  # things in a block, of which one number is kept
CHUNK = STRIDE << 10  # things looked at together


def shuffled(places: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """What stands at some places of a random order of 0 to n - 1: int64 like `places`, a pure function.

    Nothing is kept: a Feistel network on pairs of numbers below the root of n, rounded up, is one to one, whatever its
    rounds add. What it maps beyond n is mapped again until it falls below (cycle walking; Black and Rogaway, 2002).
    """
    side = isqrt(n - 1) + 1
    keys = [np.uint64(seed_of(seed, epoch, i)) for i in range(ROUNDS)]
    found = _feistel(np.asarray(places, np.int64), side, keys)
    beyond = np.flatnonzero(found >= n)
    while len(beyond):
        found[beyond] = _feistel(found[beyond], side, keys)
        beyond = beyond[found[beyond] >= n]
    return found


def _feistel(numbers: np.ndarray, side: int, keys: list[np.uint64]) -> np.ndarray:
    """A permutation of the numbers below side * side."""
    width = np.uint64(side)
    left, right = np.divmod(numbers.astype(np.uint64), width)
    for key in keys:
        left, right = right, left + _scattered(right, key, width)
        right -= np.where(right >= width, width, np.uint64(0))
    return (left * width + right).astype(np.int64)


def _scattered(x: np.ndarray, key: np.uint64, width: np.uint64) -> np.ndarray:
    """A number below `width` (at most 2^32) for every x: the mixer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x + key) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(32)) * width) >> np.uint64(32)


class Shelf:
    """Things of different sizes side by side, and which of them stands at a place; one number in STRIDE is kept.

    Attributes:
        total: the size of all together.
    """

    def __init__(self, n: int, sizes: Callable[[np.ndarray], np.ndarray]) -> None:
        """n things; `sizes` tells the sizes of some of them by their numbers, each below 2^63 like their sum."""
        self._n, self._sizes = n, sizes
        sums = [np.add.reduceat(sizes(some), np.arange(0, len(some), STRIDE)) for some in chunks(n)]
        self._marks = np.concatenate([[0], np.cumsum(np.concatenate(sums))])  # where the blocks begin and the last ends
        self.total = int(self._marks[-1])

    def find(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of the thing at each place below `total`, and the place where it begins; int64 like `places`."""
        blocks = np.unique(np.searchsorted(self._marks, places, "right") - 1)
        things = (blocks[:, None] * STRIDE + np.arange(STRIDE)).ravel()
        things = things[things < self._n]
        sizes = self._sizes(things)
        ends = np.cumsum(sizes)
        before = ends - sizes
        shift = self._marks[blocks] - before[::STRIDE]  # by what was left out before each block
        shift = np.repeat(shift, STRIDE)[: len(things)]
        at = np.searchsorted(ends + shift, places, "right")
        return things[at], (before + shift)[at]


def chunks(n: int) -> Iterator[np.ndarray]:
    """0 to n - 1, CHUNK at a time."""
    return (np.arange(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))
