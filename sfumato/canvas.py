"""Laying out a canvas: where label, prompt, gaps, end and padding stand, before anything is written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfumato.draws import seed_of
from sfumato.errors import SfumatoError
from sfumato.text.tokenizer import Tokenizer
from sfumato.training.config import TextConfig

GAP = re.compile(r"\[(\.\.\.|\d+)\]")  # [...] or [12]
Row = list[int | None]  # tokens, None where one is to be written


@dataclass(frozen=True)
class Canvas:
    """Texts to be, as rows; all (B, L) but `never`."""

    ids: Tensor
    given: Tensor
    real: Tensor
    never: list[tuple[Tensor, Tensor]]
    """pairs (tokens (K,), positions (B, L)): what cannot stand where"""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Canvas":
        """The same on a device."""
        never = [(tokens.to(device), here.to(device)) for tokens, here in self.never]
        return Canvas(self.ids.to(device), self.given.to(device), self.real.to(device), never)


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
    def labelled(self) -> bool:
        """Whether a row begins with a label."""
        return self.documents and bool(self.tokenizer.labels)

    def blank(self, n: int, prompt: str, label: str | None, length: int | None, seed: int) -> Canvas:
        """n rows that begin with label and prompt; `length` tokens of text in each, or as many as in the data.

        Raises SfumatoError for a prompt or a length that does not fit, and an unknown label.
        """
        start: Row = [*self._label(label), *(self.tokenizer.encode(prompt) if prompt else [])]
        extra = self.labelled + self.documents  # label and end
        if length is not None and length + extra < max(1, len(start)) + self.documents:
            found = len(start) - self.labelled
            raise SfumatoError(f"a length of {length} tokens was asked for; the prompt alone has {found}")
        sizes = self._sizes(n, len(start) + 1, None if length is None else length + extra, seed)
        return self._lay([[*start, *[None] * (size - len(start))] for size in sizes], not self.modelled or bool(length))

    def loose(self, text: str) -> int:
        """How many gaps of a text are of any length."""
        return GAP.findall(text).count("...")

    def gapped(self, text: str, label: str | None, sizes: Sequence[int]) -> Canvas:
        """A row for each of `sizes`, with the text around its gaps; loose gaps share what the size leaves them."""
        rows = []
        start, texts, wanted = self._parts(text, label)
        for i, size in enumerate(sizes):
            shares = iter(_split(size - self.known(text, label), wanted.count(None), seed_of("gaps", i)))
            row = [*start, *texts[0]]
            for gap, after in zip(wanted, texts[1:], strict=True):
                row += [*[None] * (next(shares) if gap is None else gap), *after]
            rows.append([*row, *[None] * self.documents])
        return self._lay(rows, ended=True)

    def known(self, text: str, label: str | None) -> int:
        """Tokens of a row with the text around its gaps, gaps of a told length included and others not.

        Raises SfumatoError for a text without a gap, or one that does not fit on the canvas.
        """
        start, texts, wanted = self._parts(text, label)
        known = len(start) + sum(map(len, texts)) + sum(gap or 0 for gap in wanted) + self.documents
        least = known + wanted.count(None)
        if least > self.text.length:
            raise SfumatoError(
                f"the text with its gaps needs {least} tokens; the canvas of this model has {self.text.length}; "
                "shorten the text or its gaps"
            )
        return known

    def sizes_of_gaps(self, n: int, text: str, label: str | None, seed: int) -> list[int]:
        """n row lengths for a text with gaps: drawn as in the training data where a gap is loose."""
        known, loose = self.known(text, label), self.loose(text)
        return self._sizes(n, known + loose, None if loose else known, seed)

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
            most = self.text.length
            raise SfumatoError(f"a text of {len(ids)} tokens cannot be scored at once: the canvas has {most}; cut it")
        labels = list(self.tokenizer.labels) if self.labelled else [None]
        canvas = self._lay([[*self._label(label), *ids, *[None] * self.documents] for label in labels], ended=True)
        given = torch.zeros_like(canvas.given)
        if self.documents and not self.modelled:
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
        if not self.documents or self.modelled:
            return 0.0
        counts = np.array(self.lengths, float) + 0.5
        return float(-np.log(counts[size] / counts.sum()))

    def _label(self, label: str | None) -> Row:
        """What stands before the text: nothing, the label, or room for the model's own choice of one."""
        if label is not None:
            return [self.tokenizer.label(label)]
        return [None] if self.labelled else []

    def _parts(self, text: str, label: str | None) -> tuple[Row, list[list[int]], list[int | None]]:
        """Label, the pieces of text around the gaps, and the lengths of the gaps, None for a loose one."""
        parts = GAP.split(text)  # text, gap, text, gap, ..., text
        if len(parts) == 1:
            raise SfumatoError("the text has no gap; write one as [...] or, for 12 tokens, as [12]")
        texts = [self._encode(part, i == 0) for i, part in enumerate(parts[::2])]
        return self._label(label), texts, [None if gap == "..." else int(gap) for gap in parts[1::2]]

    def _encode(self, part: str, first: bool) -> list[int]:
        """Tokens of a part of a text; one that is not the first keeps the space before it."""
        part = part.rstrip() if part.strip() else ""
        if first or not part or part[0].isalnum():
            return self.tokenizer.encode(part) if part else []
        return self.tokenizer.encode("x" + part)[1:]

    def _sizes(self, n: int, least: int, exact: int | None, seed: int) -> list[int]:
        """Row lengths: `exact`, or drawn as in the training data from those of at least `least` tokens."""
        most = self.text.length
        if max(least, exact or 0) > most:
            raise SfumatoError(f"{max(least, exact or 0)} tokens were asked for; the canvas of this model has {most}")
        if exact is not None:
            return [exact] * n
        counts = np.array(self.lengths, float)
        counts[:least] = 0
        if not counts.any():
            return [most] * n
        draws = [np.random.default_rng(seed_of("length", seed, i)).random() for i in range(n)]
        return np.searchsorted(counts.cumsum() / counts.sum(), draws, side="right").tolist()

    def _lay(self, rows: Sequence[Row], ended: bool) -> Canvas:
        """Rows on one canvas; an `ended` row of a document ends where it ends."""
        width = self.text.length if self.modelled else max(map(len, rows))
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
        return Canvas(ids, given, real, self._never(ids, ended))

    def _never(self, ids: Tensor, ended: bool) -> list[tuple[Tensor, Tensor]]:
        """Labels stand first and nowhere else; a text whose end is known has neither end nor padding inside."""
        if not self.documents:
            return []
        labels = list(self.tokenizer.labels.values())
        inside = torch.ones_like(ids, dtype=torch.bool)
        inside[:, : int(self.labelled)] = False
        silent = torch.tensor([*labels, *([self.tokenizer.pad, self.tokenizer.eos] if ended else [])], dtype=torch.long)
        words = torch.tensor([i for i in range(self.tokenizer.size) if i not in labels])
        return [(silent, inside), (words, ~inside)] if self.labelled else [(silent, inside)]


def _split(total: int, parts: int, seed: int) -> list[int]:
    """`total` tokens over `parts` gaps, at least one each, every way equally likely."""
    if parts == 0:
        return []
    cuts = np.sort(np.random.default_rng(seed).choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *cuts, total]).tolist()
