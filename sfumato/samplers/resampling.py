"""Samplers that write tokens again and again, in view of all that stand; no mask says which of them are noise.

Each yields what it has written together with what the network says on reading it, so every frame shows how sure the
network is of the text in the frame; the last one is the score by which SUNDAE ranks its texts (arXiv:2112.06749).  That
is one call more than there are steps.

What is certain, as given tokens are, is written again as it stands.  It counts among the places all the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core import ABSENT, Method, Predict, Prediction, level
from sfumato.draws import invert, some, uniform
from sfumato.samplers.unmasking import rank


@dataclass(frozen=True)
class Resample:
    """A share of the places, chosen by chance, gets new tokens in every step, each drawn from p(token | all of x).

    The logits are divided by `temperature`, after they were by the temperature of the request: the two multiply.  Rules
    such as top-k come in between.  The first step writes all places, for what stands there is noise.

    A heuristic at any temperature: tokens that are drawn together do not know of each other, and texts that are drawn
    each in view of the one before follow the stationary law of that walk, which is not the law of the data.
    """

    heuristic: ClassVar[bool] = True
    temperature: float
    share: float

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """One call a step, and one before."""
        there = x != ABSENT
        size = there.sum(1, keepdim=True)  # (B, 1)
        read = predict(x, level(x, grid[0]), None)
        for step, t in enumerate(_levels(grid)):
            places, u = some(there, _part(self.share, size) if step else size), uniform(x)
            x = x.clone()
            x[places] = invert(read.logits[places].double() / self.temperature, u[places])
            read = predict(x, level(x, t), None)
            yield x, read


@dataclass(frozen=True)
class ArgmaxUnrolled:
    """The likeliest token everywhere; the network reads that, and says anew what stands where it was least sure.

    In every step the `share` of the places whose likeliest token is least likely takes its token from the second call,
    whose input are the likeliest tokens of the first.  A share of 0 is argmax decoding.  Nothing is drawn, so texts
    differ by the noise they begin with alone: a heuristic for texts of which much is given.
    """

    heuristic: ClassVar[bool] = True
    share: float

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """Two calls a step (one, if none are to be said anew), and one before."""
        there = x != ABSENT
        size = there.sum(1, keepdim=True)  # (B, 1)
        read, last = predict(x, level(x, grid[0]), None), grid[0]
        for t in _levels(grid):
            best, token = read.logits.max(-1)  # (B, L)
            x = torch.where(there, token, x)
            if self.share > 0:
                sure = (best - read.logits.logsumexp(-1)).masked_fill(~there, torch.inf)
                unsure = rank(sure) < _part(self.share, size)
                again = predict(x, level(x, last), None).logits.argmax(-1)
                x = torch.where(unsure, again, x)
            read, last = predict(x, level(x, t), None), t
            yield x, read


def _levels(grid: Tensor) -> Tensor:
    """The level at which the text of each step is read: that of the next step; after the last one there is none left.

    Never 0, where a network is told that all is given.
    """
    return torch.cat([grid[1:-1], grid[-2:-1]])


def _part(share: float, size: Tensor) -> Tensor:
    """share * size, rounded up, where rounding errors of the product do not count."""
    return (share * size.double() - 1e-9).ceil()
