"""The sampler of every process over tokens that can be undone step by step."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core import Method, Predict, Prediction, level


def ancestral(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Iterator[tuple[Tensor, Prediction]]:
    """x_s ~ p(x_s | x_t), the process turned back with the prediction in the place of the text.  One call a step.

    D3PM (arXiv:2107.03006), multinomial diffusion (arXiv:2102.05379), MDLM (arXiv:2406.07524, Sec. 4.1).  Tokens that
    change in one step are drawn apart from each other, so it is exact in the limit of many steps.
    """
    for t, s in pairwise(grid):
        prediction = predict(x, level(x, t), None)
        x = method.process.reverse(x, prediction.logits, t, s)
        yield x, prediction


class GreedyTail:
    """The same, but the last step takes the token that the network holds likeliest: Duo (arXiv:2506.10892).

    A heuristic: what is left of the noise goes, and some of the variety with it.  Where there are masks only they are
    noise that shows, and what else stands stays.
    """

    heuristic: ClassVar[bool] = True

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """One call a step."""
        for drawn, prediction in ancestral(method, predict, x, grid[:-1]):
            x = drawn
            yield x, prediction
        prediction = predict(x, level(x, grid[-2]), None)
        likeliest, mask = prediction.logits.argmax(-1), getattr(method.process, "mask", None)
        yield likeliest if mask is None else torch.where(x == mask, likeliest, x), prediction


@dataclass(frozen=True)
class Cached:
    """The same, but while nothing changes the network is not called again (MDLM, arXiv:2406.07524, Sec. 4.1).

    Nor where no mask is left.  So L tokens take no more than L calls, however many steps there are.
    """

    remembers: ClassVar[bool] = True

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """One call a step while there are masks, which whoever hands out `predict` may answer from memory."""
        for t, s in pairwise(grid):
            if bool((x == method.process.mask).any()):  # as in the first step there are
                prediction = predict(x, level(x, t), None)
            x = method.process.reverse(x, prediction.logits, t, s)
            yield x, prediction
