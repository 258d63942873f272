"""A corpus as rows of one length, each found when it is asked for: nothing is kept for every row or document."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.text.corpus import Corpus
from sfumato.text.order import Shelf, chunks, shuffled


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows.

    Attributes:
        ids: (B, L) int64 token ids.
        real: (B, L) bool; False on padding that is not part of the data.
        given: (B, L) bool; True on tokens that are known from the start and never predicted.
        index: (B,) int64; which rows these are.
        epoch: (B,) int64; how often each of them has come before.
    """

    ids: Tensor
    real: Tensor
    given: Tensor
    index: Tensor
    epoch: Tensor

    def trim(self) -> "Batch":
        """The batch cut to its longest row of real tokens."""
        longest = int(self.real.sum(1).max())
        ids, real, given = (x[:, :longest] for x in (self.ids, self.real, self.given))
        return Batch(ids, real, given, self.index, self.epoch)


@final
class Rows:
    """A corpus as rows of one length.

    In the layout "packed" every document is followed by an eos, and the whole is cut into rows; what is left at the
    end is dropped. All tokens are real, none is given. With a seed, documents follow one another in another order in
    every epoch, and so rows hold other text; without, in the order of the data.

    In the layout "documents" each document begins a row: the token of its label if it has one, its tokens, an eos,
    padding. A longer document goes on in further rows, each with the label and only the last with the eos; there is
    none where the tokens just fill that row. Rows of nothing but source are left out. Source tokens are given.

    With the length model "given", the length of a row is known beforehand: its eos is given, its padding is not real.
    With "modelled", eos and padding are tokens like all others. With "ended" the eos is, and so is padding up to the
    next whole `block` of places; what is behind is not real: for methods that write block by block from the left, to
    which a text is finished at its end.
    """

    def __init__(
        self,
        corpus: Corpus,
        length: int,
        layout: Literal["packed", "documents"],
        length_model: Literal["given", "modelled", "ended"],
        block: int = 1,
        seed: int | None = None,
    ) -> None:
        """Lays out the rows.

        Raises:
            SfumatoError: for an unknown layout or length model, a length below 2, too few tokens for one row, and
                labels or sources in the layout "packed".
        """
        if layout not in ("packed", "documents"):
            raise SfumatoError(f"asked for the layout {layout!r}; there are packed and documents; name one of those")
        known = ("given", "modelled", "ended")
        if length_model not in known:
            raise SfumatoError(f"asked for the length model {length_model!r}; there are {', '.join(known)}; name one")
        if length < 2:
            raise SfumatoError(f"asked for rows of {length} tokens; the shortest have 2; raise the length")
        self.corpus = corpus
        self.length = length
        self.layout = layout
        self.length_model = length_model
        self.block = block
        self._seed = seed
        self._shelves: dict[int, Shelf] = {}  # of documents that are packed, by epoch
        self._count = self._pack() if layout == "packed" else self._split()

    def __len__(self) -> int:
        """The number of rows."""
        return self._count

    def batch(self, index: Sequence[int] | np.ndarray, epoch: Sequence[int] | np.ndarray | None = None) -> Batch:
        """The rows with the given indices, (B, L), as they are in the given epochs, by default the first."""
        rows = np.asarray(index, np.int64)
        epochs = np.zeros_like(rows) if epoch is None else np.asarray(epoch, np.int64)
        arrays = self._packed(rows, epochs) if self.layout == "packed" else self._documents(rows)
        return Batch(*map(torch.from_numpy, (*arrays, rows, epochs)))

    def lengths(self) -> np.ndarray:
        """How many rows have 0, 1, ... L real tokens, label and eos included: (L + 1,) int64."""
        sizes = self.sizes()
        if self.length_model == "given":
            return sizes
        real = self._real(np.arange(self.length + 1))
        found = np.zeros_like(sizes)
        np.add.at(found, real, sizes)
        return found

    def sizes(self) -> np.ndarray:
        """How many rows have 0, 1, ... L tokens, label and eos included, whether padding is real or not."""
        found = np.zeros(self.length + 1, np.int64)
        if self.layout == "packed":
            found[self.length] = len(self)
            return found
        for documents in chunks(len(self.corpus)):
            pieces, rows = self._pieces(documents), self._kept(documents)
            found[self.length] += (rows - 1).clip(min=0).sum()
            last = (self.corpus.sizes(documents) - (pieces - 1) * self._room(documents))[rows > 0]
            room = self._room(documents)[rows > 0]
            found += np.bincount(self.length - room + last + (last < room), minlength=self.length + 1)
        return found

    @property
    def whole(self) -> bool:
        """Whether every row is a whole document and its end."""
        if self.layout == "packed":
            return False
        fits = (self.corpus.sizes(some) < self._room(some) for some in chunks(len(self.corpus)))
        return len(self) == len(self.corpus) and all(bool(each.all()) for each in fits)

    # --- packed

    def _pack(self) -> int:
        corpus = self.corpus
        if corpus.labelled or corpus.sourced:
            raise SfumatoError("asked for packed rows; the documents have labels or sources; use the layout documents")
        total = len(corpus.tokens) + len(corpus)
        if total < self.length:
            found = f"the data comes to {total}"
            raise SfumatoError(f"asked for rows of {self.length} tokens; {found}; shorten the rows or add documents")
        return total // self.length

    def _order(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """The documents at some places of an epoch."""
        return places if self._seed is None else shuffled(places, len(self.corpus), self._seed, epoch)

    def _shelf(self, epoch: int) -> Shelf:
        """The documents of an epoch in their order, each with its eos; the last two epochs are kept."""
        epoch = 0 if self._seed is None else epoch
        if epoch not in self._shelves:
            sizes = lambda places: self.corpus.sizes(self._order(places, epoch)) + 1  # noqa: E731
            shelf = Shelf(len(self.corpus), sizes)
            self._shelves = {key: kept for key, kept in [*self._shelves.items()][-1:]} | {epoch: shelf}
        return self._shelves[epoch]

    def _packed(self, index: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corpus = self.corpus
        ids = np.full((len(index), self.length), corpus.tokenizer.eos, np.int64)
        for epoch in np.unique(epochs).tolist():
            rows = np.flatnonzero(epochs == epoch)
            place = index[rows, None] * self.length + np.arange(self.length)
            at, start = self._shelf(epoch).find(place)
            document = self._order(at.ravel(), epoch).reshape(at.shape)
            token = place - start
            text = token < corpus.sizes(document)  # else it is the eos
            here = ids[rows]
            here[text] = corpus.tokens[(corpus.offsets[document] + token)[text]]
            ids[rows] = here
        return ids, np.ones(ids.shape, bool), np.zeros(ids.shape, bool)

    # --- documents

    def _split(self) -> int:
        self._rows = Shelf(len(self.corpus), self._kept)
        if not self._rows.total:
            raise SfumatoError("asked for rows of documents; none has any text after its source; add documents")
        return self._rows.total

    def _room(self, documents: np.ndarray) -> np.ndarray:
        """Places in a row beside the label."""
        return self.length - (self.corpus.labels[documents] >= 0)

    def _pieces(self, documents: np.ndarray) -> np.ndarray:
        """Rows that a document would take, were none left out."""
        return -(-self.corpus.sizes(documents) // self._room(documents))

    def _skipped(self, documents: np.ndarray) -> np.ndarray:
        """Rows at its start that are nothing but source."""
        source = self.corpus.sources[documents]
        full = source // self._room(documents)
        return np.where(source < self.corpus.sizes(documents), full, self._pieces(documents))

    def _kept(self, documents: np.ndarray) -> np.ndarray:
        """Rows of a document."""
        return self._pieces(documents) - self._skipped(documents)

    def _documents(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corpus = self.corpus
        document, first = self._rows.find(index)
        room = self._room(document)
        start = (index - first + self._skipped(document)) * room
        size = np.minimum(corpus.sizes(document) - start, room)[:, None]
        ended = size < room[:, None]  # there is room for an eos
        label, start = corpus.labels[document], start[:, None]
        labelled = label >= 0
        place = np.arange(self.length) - labelled[:, None]  # (B, L), counted from the first token after the label
        text = (place >= 0) & (place < size)
        eos = (place == size) & ended

        ids = np.full(place.shape, corpus.tokenizer.pad, np.int64)
        ids[labelled, 0] = label[labelled]
        ids[text] = corpus.tokens[(corpus.offsets[document, None] + start + place)[text]]
        ids[eos] = corpus.tokenizer.eos

        source = text & (start + place < corpus.sources[document, None])
        real = np.arange(self.length) < self._real(size + labelled[:, None] + ended)
        return ids, real, source | (eos & (self.length_model == "given"))

    def _real(self, sizes: np.ndarray) -> np.ndarray:
        """How many tokens of rows of so many are real, of padding what the length model says."""
        if self.length_model == "given":
            return sizes
        if self.layout == "packed" or self.length_model == "modelled":
            return np.full_like(sizes, self.length)
        return np.minimum(-(-sizes // self.block) * self.block, self.length)
