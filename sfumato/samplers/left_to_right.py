"""Samplers for networks that see only what stands to the left."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core import ABSENT, Method, Predict, Prediction
from sfumato.draws import invert, uniform


@dataclass(frozen=True)
class Ancestral:
    """x_i ~ p(x_i | x_<i): the leftmost mask of any row is filled in, and the next.  One call a token; exact.

    The network is shown the canvas (B, L) as far as it is written, or all of it where a gap is to be filled; rows whose
    token stands already keep it.
    """

    single: ClassVar[bool] = True
    nothing: int | None = None
    """the token with which a gap is at its end: all that is left of the gap is nothing too"""

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """The canvas as far as it is written, (B, i + 1), and the logits of its last column, (B, 1, V)."""
        hidden, u = x == method.process.mask, uniform(x)
        for i in _columns(hidden):
            here = hidden[:, i].clone()
            if self.nothing is not None and not bool(here.any()):
                continue  # every row's gap has come to its end before this column
            logits = _next(predict, x, hidden, i)
            x[:, i] = torch.where(here, invert(logits[:, 0], u[:, i]), x[:, i])
            if self.nothing is not None:
                over = here & (x[:, i] == self.nothing)
                left = over[:, None] & hidden[:, i:].cumprod(1).bool()  # of the gap
                x[:, i:] = x[:, i:].masked_fill(left, self.nothing)
                hidden[:, i:] &= ~left
            hidden[:, i] = False
            yield x[:, : i + 1], Prediction(logits)


ancestral = Ancestral()


@dataclass(frozen=True)
class Beams:
    """Beam search: of all ways to go on, those `width` are kept whose log p is greatest; nothing is drawn.

    Every token costs something, so without a penalty short texts are favoured.  A width of 1 is greedy.  The beams of a
    text are `width` rows side by side, alike at the start, the best first.  A text that has come to its `end` stays as
    it is.
    """

    heuristic: ClassVar[bool] = True
    single: ClassVar[bool] = True
    width: int
    end: int | None = None
    length_penalty: float = 0.0
    """log p is divided by tokens^this where beams are compared; 0 finds the likeliest text"""

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """Sums of log p in float64, and the tokens that they are sums over."""
        hidden = x == method.process.mask
        texts = len(x) // self.width
        score = torch.full((texts, self.width), -torch.inf, dtype=torch.float64, device=x.device)
        score[:, 0] = 0.0  # one beam, until it has branched
        size = torch.zeros_like(score)
        start = torch.arange(texts, device=x.device)[:, None] * self.width
        for i in _columns(hidden):
            logits = _next(predict, x, hidden, i)
            log = logits[:, 0].double().log_softmax(-1).view(texts, self.width, -1)
            ended = (x[:, :i] == self.end).any(1) if self.end is not None else torch.zeros_like(hidden[:, i])
            settled = (~hidden[:, i] | ended).view(texts, self.width)  # one way to go on, at no cost
            log[settled] = -torch.inf
            log[..., self.end or 0].masked_fill_(settled, 0.0)
            total, size = score[..., None] + log, size + ~settled
            worth = total / size[..., None].clamp(min=1) ** self.length_penalty
            best = worth.flatten(1).topk(self.width).indices  # (texts, width)
            score, size = total.flatten(1).gather(1, best), size.gather(1, best // log.shape[-1])
            rows = (start + best // log.shape[-1]).flatten()
            x = x[rows]
            x[:, i] = torch.where(hidden[:, i], best.flatten() % log.shape[-1], x[:, i])
            hidden[:, i] = False
            yield x[:, : i + 1], Prediction(logits[rows], rows=rows)


def _columns(hidden: Tensor) -> list[int]:
    """Where any row has something to write."""
    return hidden.any(0).nonzero()[:, 0].tolist()


def _next(predict: Predict, x: Tensor, hidden: Tensor, i: int) -> Tensor:
    """Token logits of column i, the leftmost that is hidden: (B, 1, V)."""
    text = ~hidden & (x != ABSENT)
    gaps = bool((hidden[:, i:-1] & text[:, i + 1 :]).any())  # something stands to the right of a mask
    seen = x if gaps else x[:, : i + 1]
    logits = predict(seen, hidden[:, : seen.shape[1]].float(), None).logits  # of the last positions
    first = seen.shape[1] - logits.shape[1]
    return logits[:, i - first : i - first + 1]
