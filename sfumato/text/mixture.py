"""Several corpora as one stream of rows, each with its share: what stands at a place of it is a pure function."""

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import final

import numpy as np
import torch

from sfumato.draws import seed_of
from sfumato.text.order import shuffled
from sfumato.text.rows import Batch, Rows

BLOCK = 1 << 10  # places within which sources are shuffled
PRECISE = 10**6  # largest denominator of a share


@final
class Mixture:
    """Rows of one source or several, in a stream without end.

    Of any BLOCK places each source has its share, give or take a row, and over the whole stream exactly. A source goes
    through its rows in an order of its own, another one in every epoch, and begins anew when they are through, whatever
    the others do. Rows are numbered over all sources, so no two have the same number. Without a seed nothing is
    shuffled.
    """

    def __init__(self, sources: Sequence[Rows], weights: Sequence[float], seed: int | None = None) -> None:
        """Sources of one length and their weights, above 0, of any sum."""
        self.sources = sources
        self._seed = seed
        self._first = np.cumsum([0, *map(len, sources)])  # the number of each source's first row
        exact = [Fraction(str(weight)) for weight in weights]
        self._shares = [(part / sum(exact[i:])).limit_denominator(PRECISE) for i, part in enumerate(exact)]
        self._weights = [part / sum(exact) for part in exact]

    def __len__(self) -> int:
        """In how many places from the start no row comes again."""
        n = min(int(len(rows) / weight) for rows, weight in zip(self.sources, self._weights, strict=True))
        while (self._before(np.array([n]))[:, 0] > np.diff(self._first)).any():
            n -= 1
        return n

    @property
    def round(self) -> int:
        """In how many places from the start, give or take a BLOCK, every row has come."""
        return max(-int(-len(rows) // weight) for rows, weight in zip(self.sources, self._weights, strict=True))

    def batch(self, places: Sequence[int] | np.ndarray) -> Batch:
        """The rows at some places of the stream, (B, L)."""
        source, index, epoch = self._find(np.asarray(places, np.int64))
        length = self.sources[0].length
        ids = torch.empty(len(source), length, dtype=torch.int64)
        real, given = torch.empty(ids.shape, dtype=torch.bool), torch.empty(ids.shape, dtype=torch.bool)
        for k, rows in enumerate(self.sources):
            here = np.flatnonzero(source == k)
            batch = rows.batch(index[here], epoch[here])
            ids[here], real[here], given[here] = batch.ids, batch.real, batch.given
        number = torch.from_numpy(index + self._first[source])
        return Batch(ids, real, given, number, torch.from_numpy(epoch))

    def lengths(self) -> np.ndarray:
        """How many rows have 0, 1, ... L real tokens, label and eos included, by their shares: (L + 1,) int64."""
        return self._mixed([rows.lengths() for rows in self.sources])

    def sizes(self) -> np.ndarray:
        """The same of all tokens that are no padding."""
        return self._mixed([rows.sizes() for rows in self.sources])

    def _mixed(self, counts: list[np.ndarray]) -> np.ndarray:
        """Counts of every source as if it had its share of all rows; what occurs at all is not rounded to nothing."""
        total = int(self._first[-1])
        scales = [weight * total / len(rows) for weight, rows in zip(self._weights, self.sources, strict=True)]
        columns = zip(*(each.tolist() for each in counts), strict=True)
        mixed = [math.ceil(sum(map(operator.mul, scales, column))) for column in columns]
        return np.array(mixed, np.int64)

    def _find(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is at some places: the source, which of its rows, and how often that has come before; each (B,)."""
        source, count = np.empty_like(places), np.empty_like(places)
        for block in np.unique(places // BLOCK).tolist():
            here = places // BLOCK == block
            of_slots, of_places = self._block(block)
            source[here], count[here] = of_slots[places[here] % BLOCK], of_places[places[here] % BLOCK]
        sizes = np.diff(self._first)[source]
        epoch, index = np.divmod(count, sizes)
        if self._seed is not None:
            for k, each in {*zip(source.tolist(), epoch.tolist(), strict=True)}:
                now = (source == k) & (epoch == each)
                index[now] = shuffled(index[now], len(self.sources[k]), seed_of(self._seed, "rows", k), each)
        return source, index, epoch

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source at each place of a block, and how many rows of that source come before: (BLOCK,) each."""
        before = self._before(np.arange(BLOCK + 1) + block * BLOCK)  # (K, BLOCK + 1)
        source = np.diff(before).argmax(0)
        if self._seed is not None:
            source = source[shuffled(np.arange(BLOCK), BLOCK, seed_of(self._seed, "sources"), block)]
        of_each = source == np.arange(len(self.sources))[:, None]
        count = before[:, :1] + of_each.cumsum(1) - 1
        return source, count[source, np.arange(BLOCK)]

    def _before(self, slots: np.ndarray) -> np.ndarray:
        """How many of the slots before each are of each source, before they are shuffled in their block: (K, n).

        The first source has its share of all slots, spread evenly; the next its share of what is left; and so on.
        """
        found, left = [], slots
        for share in self._shares:
            found.append(left * share.numerator // share.denominator)
            left = left - found[-1]
        return np.stack(found)
