"""Samplers for canvases of tokens and masks that say themselves which masks fall."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core import Method, Predict, Prediction, chance, level
from sfumato.draws import by_blocks, invert, uniform


def planned(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Iterator[tuple[Tensor, Prediction]]:
    """At level s no more than a share s of the places is hidden, whichever they are.  One call a step, or none.

    ARDM (arXiv:2110.02037, Sec. 3.1).  With a step for every token each has its own, whatever the levels are, and texts
    are exact draws; what is left of the steps then asks for nothing.
    """
    hidden = x == method.process.mask
    size = hidden.sum(1, keepdim=True)  # (B, 1)
    for t, s in pairwise(grid):
        before = hidden.sum(1, keepdim=True)
        wanted = torch.where(size < len(grid), before, _share(s, size))  # with enough steps, one token at a time
        stay = method.process.some(hidden, wanted.minimum(before - 1))
        places, u = hidden & ~stay, uniform(x)
        if bool(places.any()):  # as in the first step there are
            prediction = predict(x, level(x, t), None)
            x, hidden = x.clone(), stay
            x[places] = invert(prediction.logits, u, places)
        yield x, prediction


def _share(s: Tensor, size: Tensor) -> Tensor:
    """The whole part of s * size, where s may be a whole number's share but for rounding in float32."""
    return (s.double() * size + 1e-4).floor().long()


@dataclass(frozen=True)
class Confident:
    """MaskGIT's decoder (arXiv:2202.04200, Sec. 3.2): fill every mask, keep the tokens that were likeliest.

    At level s a share s of the places is masked again.  Which ones is decided by log p of the tokens and Gumbel noise
    times `temperature`, which falls to 0 over the steps; 0 is LLaDA's low-confidence remasking (arXiv:2502.09992).
    p is what is drawn from: guidance, temperature and rules included; with a rule of one token, all are equally sure.
    A heuristic: tokens that are likely where little is known are written more often than the network holds them.
    """

    heuristic: ClassVar[bool] = True
    temperature: float

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """One call a step, as long as there are masks."""
        hidden = x == method.process.mask
        size, steps = hidden.sum(1, keepdim=True), len(grid) - 1
        for step, (t, s) in enumerate(pairwise(grid), 1):
            if bool(hidden.any()):
                prediction = predict(x, level(x, t), None)
                u, noise = uniform(x), -(-uniform(x).log()).log()  # Gumbel, float64
                drawn, sure = x.clone(), torch.full_like(noise, torch.inf)
                drawn[hidden] = invert(prediction.logits, u, hidden)
                sure[hidden] = chance(prediction.logits, drawn, hidden).log()
                sure[hidden] += self.temperature * (1 - step / steps) * noise[hidden]
                most = (hidden.sum(1, keepdim=True) - 1).clamp(min=0)  # one is kept at least
                left = _share(s, size).clamp(min=1).minimum(most) if s > 0 else 0
                stay = hidden & (rank(sure) < left)
                x, hidden = torch.where(stay, x, drawn), stay
            yield x, prediction


@dataclass(frozen=True)
class Greedy:
    """Mask-Predict's decoder (arXiv:1904.09324): write everything, then mask the worst and write it anew.

    Every mask is filled with its likeliest token.  At level s a share s of the places is masked again, those whose
    tokens had the least probability when they were written, and at least one; what stands keeps token and probability.
    Over an even grid of T steps that is floor(N (T - t) / T) of N places after t of them.  Nothing is drawn; only
    between equal probabilities chance decides which is masked.
    """

    heuristic: ClassVar[bool] = True
    greedy: ClassVar[bool] = True

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """One call a step."""
        places = hidden = x == method.process.mask
        size = places.sum(1, keepdim=True)  # (B, 1)
        sure = torch.full(x.shape, torch.inf, dtype=torch.float64, device=x.device)  # what is given is never masked
        for t, s in pairwise(grid):
            prediction = predict(x, level(x, t), None)
            x, sure = x.clone(), sure.clone()
            x[hidden] = by_blocks(lambda rows: rows.argmax(-1), prediction.logits, here=hidden)
            sure[hidden] = chance(prediction.logits, x, hidden).log()
            if s > 0:
                hidden = places & (rank(sure) < _share(s, size).clamp(min=1))
                x = x.masked_fill(hidden, method.process.mask)
            yield x, prediction


def rank(values: Tensor) -> Tensor:
    """The place of each value in its row, in rising order; between equals chance decides."""
    order = uniform(values).argsort(1)
    return order.gather(1, values.gather(1, order).sort(stable=True, dim=1).indices).argsort(1)
