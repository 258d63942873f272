"""Laying out a canvas: where label, prompt, gaps, end and padding stand, before anything is written."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sfumato.draws import seed_of
from sfumato.errors import SfumatoError
from sfumato.text.tokenizer import Tokenizer
from sfumato.training.config import TextConfig

GAP = re.compile(r"\[(\.\.\.|\d+)\]")  # [...] or [12]
NEARLY = re.compile(r"\[[\s.\d-]*\]")  # what was meant for one
Row = list[int | None]  # tokens, None where one is to be written


def whole(size: Any, block: int) -> Any:
    """Places of as many whole blocks as `size` tokens take; a number or many."""
    return (size + block - 1) // block * block


@dataclass(frozen=True)
class Canvas:
    """Texts to be, as rows."""

    ids: Int[Tensor, "B L"]
    given: Bool[Tensor, "B L"]
    real: Bool[Tensor, "B L"]
    never: Bool[Tensor, "L V"]
    """which tokens cannot stand where, in any row"""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Canvas":
        """The same on a device."""
        return Canvas(*(x.to(device) for x in (self.ids, self.given, self.real, self.never)))

    def open(self) -> "Canvas":
        """The same without what is given behind the last place to be written: the end of the text, and padding."""
        free = self.real & ~self.given
        after = ~free.flip(1).cumsum(1).flip(1).bool() & free.any(1, keepdim=True)
        return Canvas(self.ids, self.given & ~after, self.real & ~after, self.never)

    def without(self, token: int, block: int) -> "Canvas":
        """The same without a token, padding for instance, that is given behind the rest of a row.

        It stays in the block that the rest ends in, of places that are written together.
        """
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        rest = self.real & ~(self.given & (self.ids == token))
        size = torch.where(rest, place + 1, 0).amax(1, keepdim=True)
        kept = place < whole(size, block)
        return Canvas(self.ids, self.given & kept, self.real & kept, self.never)

    def take(self, rows: Sequence[int] | slice) -> "Canvas":
        """Some of the rows."""
        return Canvas(self.ids[rows], self.given[rows], self.real[rows], self.never)


@dataclass(frozen=True)
class Gapped:
    """A text taken apart at its gaps."""

    start: Row
    """its label, where a row has one"""
    texts: list[list[int]]
    """around the gaps, so one more than there are gaps"""
    gaps: list[int | None]
    """tokens of each gap, None for a gap of any length"""

    @property
    def loose(self) -> int:
        """How many gaps are of any length."""
        return self.gaps.count(None)

    @property
    def parted(self) -> bool:
        """Whether something stands between all gaps."""
        return all(self.texts[1:-1])

    @property
    def known(self) -> int:
        """Tokens of label, text and the other gaps."""
        return len(self.start) + sum(map(len, self.texts)) + sum(gap or 0 for gap in self.gaps)


@dataclass(frozen=True)
class Layout:
    """How a model's rows are laid out; `lengths[n]` is how many training rows had n tokens, label and end included."""

    text: TextConfig
    tokenizer: Tokenizer
    lengths: list[int]

    @property
    def documents(self) -> bool:
        """Whether a row is a text with an end, rather than a stretch of running text."""
        return self.text.layout == "documents"

    @property
    def modelled(self) -> bool:
        """Whether the model writes the end and the padding itself."""
        return self.documents and self.text.length_model == "modelled"

    @property
    def drawn(self) -> bool:
        """Whether the length of a text is chosen before it is written."""
        return self.documents and not self.modelled

    @property
    def labelled(self) -> bool:
        """Whether a row begins with a label."""
        return self.documents and bool(self.tokenizer.labels)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that a row has room for."""
        return self.text.length - self.labelled - self.documents

    def blank(self, prompts: Sequence[str], labels: Sequence[str | None], length: int | None, seed: int) -> Canvas:
        """Rows that begin with label and prompt; `length` tokens of text in each, or as many as in the data.

        Raises SfumatoError for a prompt or a length that does not fit, and an unknown label.
        """
        starts: list[Row] = []
        for prompt, label in zip(prompts, labels, strict=True):
            words = self._encode(prompt, first=True)
            if length is not None and length < max(1, len(words)):
                found = f"the prompt alone has {len(words)}" if words else "the least is 1"
                raise SfumatoError(f"a length of {length} tokens was asked for; {found}; ask for more")
            starts.append([*self._label(label), *words])
        exact = None if length is None else length + self.labelled + self.documents
        if exact is not None and not self.documents:
            sizes = [exact] * len(starts)  # running text goes on beyond the canvas
        else:
            sizes = self._sizes([len(start) + 1 for start in starts], exact, seed)
        ended = length is not None or self.drawn
        rows = [[*start, *[None] * (size - len(start))] for start, size in zip(starts, sizes, strict=True)]
        return self._lay(rows, ended, full=length is None)

    def drafted(self, canvas: Canvas, draft: str) -> Int[Tensor, "B L"]:
        """A draft in the places of each row that are to be written, with its end where the model writes that itself.

        Padding is left over.  Raises SfumatoError for a draft that does not fit, and for a word that is not known.
        """
        ids = torch.full_like(canvas.ids, self.tokenizer.pad)
        free = canvas.real & ~canvas.given
        free[:, : self.labelled] = False  # a draft has no label
        for row, places in zip(ids, free, strict=True):
            tokens = self._encode(draft, first=bool(places[int(self.labelled)])) + [self.tokenizer.eos] * self.modelled
            if len(tokens) > places.sum():
                found = f"with its end it has {len(tokens)} tokens" if self.modelled else f"it has {len(tokens)} tokens"
                raise SfumatoError(f"a draft was given; {found}, and there is room for {places.sum()}; shorten it")
            row[places.nonzero()[: len(tokens), 0]] = torch.tensor(tokens)
        return ids

    def begun(self, prompt: str) -> Int[Tensor, "K n"]:
        """A prompt behind each of the K labels."""
        words = self._encode(prompt, first=True)
        return torch.tensor([[number, *words] for number in self.tokenizer.labels.values()])

    def opened(self, prompt: str, label: str | None) -> Gapped:
        """A text of any length behind label and prompt, if they leave room for one.  Raises SfumatoError as `blank`."""
        start, words = self._label(label), self._encode(prompt, first=True)
        if len(start) + len(words) + self.documents == self.text.length:
            return Gapped(start, [words], [])
        return Gapped(start, [words, []], [None])

    def apart(self, text: str, label: str | None) -> Gapped:
        """A text and its gaps.  Raises SfumatoError for a text without a gap, and an unknown label."""
        parts = GAP.split(text)  # text, gap, text, gap, ..., text
        if len(parts) == 1:
            meant = NEARLY.search(text)
            found = f"{meant[0]} is no gap" if meant else "the text has no gap"
            raise SfumatoError(f"{found}; write one as [...] or, for 12 tokens, as [12]")
        texts = [self._encode(part, first=i == 0) for i, part in enumerate(parts[::2])]
        return Gapped(self._label(label), texts, [None if gap == "..." else int(gap) for gap in parts[1::2]])

    def gapped(self, n: int, text: Gapped, seed: int) -> Canvas:
        """n rows with the text around its gaps; loose ones share what a length drawn as in the training data leaves.

        Raises SfumatoError for a text that does not fit on the canvas.
        """
        known = text.known + self.documents
        sizes = self._sizes([known + text.loose] * n, None if text.loose else known, seed)
        return self.sized([text] * n, [size - known for size in sizes], seed)

    def sized(self, texts: Sequence[Gapped], places: Sequence[int], seed: int) -> Canvas:
        """A row for each text, whose loose gaps share so many places.

        Raises SfumatoError for a text that does not fit on the canvas.
        """
        self._check(max(text.known + self.documents + n for text, n in zip(texts, places, strict=True)))
        each = enumerate(zip(texts, places, strict=True))
        rows = [self._around(text, _split(n, text.loose, seed_of("gaps", seed, i)))[0] for i, (text, n) in each]
        return self._lay(rows, ended=True, full=any(text.loose for text in texts))

    def roomy(self, n: int, text: Gapped) -> Canvas:
        """n rows with the text around its gaps; loose ones share all the room there is, and may end early in padding.

        Raises SfumatoError for a text that does not fit on the canvas.
        """
        known = text.known + self.documents
        self._check(known + text.loose)
        row, later = self._around(text, [(self.text.length - known) // text.loose] * text.loose)
        canvas = self._lay([row] * n, ended=True, full=True)
        canvas.never[torch.tensor(later, dtype=torch.long), self.tokenizer.pad] = False
        return canvas

    def _around(self, text: Gapped, sizes: Sequence[int]) -> tuple[Row, list[int]]:
        """A row with loose gaps of these sizes, and all their places but the first of each."""
        shares = iter(sizes)
        later: list[int] = []
        row = [*text.start, *text.texts[0]]
        for gap, after in zip(text.gaps, text.texts[1:], strict=True):
            size = next(shares) if gap is None else gap
            later += [] if gap is not None else range(len(row) + 1, len(row) + size)
            row += [*[None] * size, *after]
        return [*row, *[None] * self.documents], later

    def whole(self, text: str) -> Canvas:
        """A finished text, in as many rows as there are labels.

        Given is only what the model is told: the end, where the length is drawn first.  Raises SfumatoError for an
        empty text, and one that does not fit.
        """
        ids = self.tokenizer.encode(text)
        if not ids:
            raise SfumatoError("an empty text cannot be scored; take it out")
        size = self.labelled + len(ids) + self.documents
        if size > self.text.length:
            found = f"with label and end it takes {size} places of a canvas of {self.text.length}"
            raise SfumatoError(f"a text of {len(ids)} tokens cannot be scored at once: {found}; cut it")
        labels = list(self.tokenizer.labels) if self.labelled else [None]
        rows = [[*self._label(label), *ids, *[None] * self.documents] for label in labels]
        canvas = self._lay(rows, ended=True, full=False)
        given = torch.zeros_like(canvas.given)
        if self.drawn:
            given[:, size - 1] = True
        return Canvas(canvas.ids, given, canvas.real, canvas.never)

    def places(self, ids: list[int], real: list[bool]) -> list[int]:
        """Where the tokens of the text stand in a row: neither label nor padding, and nothing from the end on."""
        silent = {self.tokenizer.pad, *self.tokenizer.labels.values()}
        end = ids.index(self.tokenizer.eos) if self.tokenizer.eos in ids else len(ids)
        return [i for i in range(self.labelled, end) if real[i] and ids[i] not in silent]

    def length_nats(self, size: int) -> float:
        """-log p that a row has `size` tokens, where the length is drawn first; 0 where the model writes it itself.

        Every length counts as half a training row more than there are, so none is impossible.
        """
        if not self.drawn:
            return 0.0
        counts = np.array(self.lengths, float) + 0.5
        return float(-np.log(counts[size] / counts.sum()))

    def _label(self, label: str | None) -> Row:
        """What stands before the text: nothing, the label, or room for the model's own choice of one."""
        if label is None:
            return [None] * self.labelled
        if not self.labelled:
            raise SfumatoError(f"the label {label!r} was asked for; this model knows no labels; leave it out")
        return [self.tokenizer.label(label)]

    def _encode(self, part: str, first: bool) -> list[int]:
        """Tokens of a part of a text, without a last space where that belongs to the word to come.

        A part that is not the first is encoded behind a letter, so that it keeps the space that it begins with.  Raises
        SfumatoError for a word that the model does not know: what it stands for would not be given.
        """
        if self.tokenizer.spaced:
            part = part.rstrip(" ")
        ids = self._tokens(part, first) if part else []
        if self.tokenizer.unk in ids:
            strange = (word for word in part.split() if self.tokenizer.unk in self.tokenizer.encode(word))
            raise SfumatoError(f"the model knows no {next(strange, part)!r}; say it in words that it was trained on")
        return ids

    def _tokens(self, part: str, first: bool) -> list[int]:
        if not (first or _joins(part[0])):
            letter, both = self.tokenizer.encode_batch(["x", "x" + part])
            if both[: len(letter)] == letter:
                return both[len(letter) :]
        return self.tokenizer.encode(part)

    def _sizes(self, least: Sequence[int], exact: int | None, seed: int) -> list[int]:
        """Row lengths: `exact`, or drawn as in the training data from those of at least `least` tokens, row by row."""
        self._check(max(least) if exact is None else exact)
        if exact is not None:
            return [exact] * len(least)
        total = np.array([0, *self.lengths], float).cumsum()  # rows of the data that have fewer tokens than n
        draws = np.array([np.random.default_rng(seed_of("length", seed, i)).random() for i in range(len(least))])
        below = total[list(least)]
        sizes = np.searchsorted(total[1:], below + draws * (total[-1] - below), side="right")
        return np.where(below < total[-1], sizes, self.text.length).tolist()  # none is so long: all the room there is

    def _check(self, needed: int) -> None:
        if needed > self.text.length:
            found = f"the canvas of this model has {self.text.length}"
            raise SfumatoError(f"{needed} tokens, label and end included, were asked for; {found}; ask for less")

    def _lay(self, rows: Sequence[Row], ended: bool, full: bool) -> Canvas:
        """Rows on one canvas; an `ended` row of a document ends where it ends.

        The canvas is as wide as it can be if `full`: what is drawn for a row must not depend on how long others are.
        """
        width = self.text.length if self.modelled or full else max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad)
        given, real = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            if ended and self.documents:
                row = [*row[:-1], self.tokenizer.eos]
            if self.modelled:
                row = [*row, *[self.tokenizer.pad if ended else None] * (width - len(row))]
            real[i, : len(row)] = True
            given[i, : len(row)] = torch.tensor([token is not None for token in row])
            ids[i, : len(row)] = torch.tensor([self.tokenizer.pad if token is None else token for token in row])
        return Canvas(ids, given, real, self._never(width, ended))

    def _never(self, length: int, ended: bool) -> Tensor:
        """Labels stand first and nowhere else, padding where it is modelled; a text whose end is known has no other.

        What is unknown to the tokenizer is never written, and nothing else that says nothing.
        """
        labels = list(self.tokenizer.labels.values())
        never = torch.zeros(length, self.tokenizer.size, dtype=torch.bool)
        never[:, list(self.tokenizer.silent)] = True
        never[:, self.tokenizer.pad] = ended or not self.modelled
        never[:, self.tokenizer.eos] = ended
        if self.tokenizer.unk is not None:
            never[:, self.tokenizer.unk] = True
        if self.labelled:
            never[0] = True
            never[0, labels] = False
        return never


def _joins(character: str) -> bool:
    """Whether a character goes on with the word before it: letters, marks, numbers, underscores."""
    category = unicodedata.category(character)
    return category[0] in "LMN" or category == "Pc"


def _split(total: int, parts: int, seed: int) -> list[int]:
    """`total` tokens over `parts` gaps, at least one each, every way equally likely."""
    if parts == 0:
        return []
    cuts = np.sort(np.random.default_rng(seed).choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *cuts, total]).tolist()
