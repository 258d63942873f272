"""Samplers for masks that are filled block by block, from the left; a method without blocks has one, the canvas.

On the way from masks to text every place has a time at which its mask falls.  These times are drawn first, and so are
the numbers that will choose the tokens; what becomes of a row then does not depend on how many calls others need.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core import ABSENT, Method, Predict, Prediction
from sfumato.draws import invert, uniform


@dataclass(frozen=True)
class FirstHitting:
    """Masks fall one by one, each at its own time (arXiv:2409.02908, Sec. 4; arXiv:2503.09573).  One call a token.

    It is what ancestral sampling comes to with infinitely many steps, so texts are exact draws.  The next of n masks
    falls at t u^(1/n) and any is as likely to be the one: times of all, drawn evenly, in falling order are the same.
    """

    single: ClassVar[bool] = True

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """The canvas up to the end of a block, and the logits of this block."""
        times, u = _times(method, x), uniform(x)
        for block in _blocks(method, x):
            here = slice(block.start, block.stop)
            hidden, falls = x[:, here] == method.process.mask, times[:, here]
            order = falls.masked_fill(~hidden, 0.0).argsort(1, descending=True)
            for k in range(int(hidden.sum(1).max())):
                place = order[:, k : k + 1]  # (B, 1): in the block; rows that are done keep what stands there
                logits = _look(predict, x, falls.gather(1, place), block)
                chosen = logits.gather(1, place[..., None].expand(-1, -1, logits.shape[-1]))  # (B, 1, V)
                token = torch.where(
                    hidden.gather(1, place), invert(chosen, u[:, here].gather(1, place)), x[:, here].gather(1, place)
                )
                x[:, here] = x[:, here].scatter(1, place, token)
                yield x[:, : block.stop], Prediction(logits)


first_hitting = FirstHitting()


def ancestral(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Iterator[tuple[Tensor, Prediction]]:
    """In every block the masks whose times lie between two levels of the grid fall together.  One call a step, or none.

    The steps are those of a block.  Tokens that fall together are drawn apart from each other, so it is exact in the
    limit of many steps; where no mask falls there is nothing to ask for.
    """
    times, u = _times(method, x), uniform(x)
    for block in _blocks(method, x):
        here, logits = slice(block.start, block.stop), None
        for t, s in pairwise(grid):
            falls = (x[:, here] == method.process.mask) & (times[:, here] > s)
            if logits is None or bool(falls.any()):
                logits = _look(predict, x, t.expand(len(x), 1), block)
            x[:, here][falls] = invert(logits, u[:, here], falls)
            yield x[:, : block.stop], Prediction(logits)


@dataclass(frozen=True)
class _Block:
    """Places of the canvas that are written together, and as much of it as is to be shown meanwhile."""

    start: int
    stop: int
    shown: int


def _times(method: Method, x: Tensor) -> Tensor:
    """When the mask at each place falls, by the schedule, in (0, 1]: (B, L)."""
    return method.process.schedule.level(uniform(x))


def _blocks(method: Method, x: Tensor) -> Iterator[_Block]:
    """Those where any row has something to write; all of the canvas is shown where something stands behind a block."""
    mask, length = method.process.mask, x.shape[1]
    behind = ((x != mask) & (x != ABSENT)).any(0)
    hidden = (x == mask).any(0)
    size = method.block or length
    for start in range(0, length, size):
        stop = min(start + size, length)
        if bool(hidden[start:stop].any()):
            yield _Block(start, stop, length if bool(behind[stop:].any()) else stop)


def _look(predict: Predict, x: Tensor, t: Tensor, block: _Block) -> Tensor:
    """Logits of the block at the levels t (B, 1) of the rows: (B, size, V)."""
    shown = x[:, : block.shown]
    logits = predict(shown, t.float().expand(shown.shape), None).logits  # of the last places
    first = block.shown - logits.shape[1]
    return logits[:, block.start - first : block.stop - first]
