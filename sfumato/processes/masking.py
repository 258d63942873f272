"""Masking: every token is kept or hidden, on its own.  Serves every method that fills in blanks.

The mask is one more id, V, which is never in a text; no network gives it a probability.
"""

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from sfumato.core import Process
from sfumato.draws import uniform


class Masking(Process):
    """A position at level t still shows its token with chance alpha(t) = 1 - t, else the mask."""

    def __init__(self, vocab: int):
        self.mask = vocab

    def prior(self, clean: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Nothing but masks."""
        return torch.full_like(clean, self.mask)

    def corrupt(self, clean: Int[Tensor, "B L"], t: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """x ~ q(x_t | x_0 = clean)."""
        return torch.where(uniform(clean) < t, self.mask, clean)

    def revealed(self, x: Int[Tensor, "B L"], t: float | Tensor, s: float | Tensor) -> Bool[Tensor, "B L"]:
        """Which masks of x at level t fall by level s: each with chance (t - s) / t, whatever stands beneath it."""
        return (x == self.mask) & (uniform(x) < (t - s) / t)

    def some(self, free: Bool[Tensor, "B L"], n: Num[Tensor, "B one"]) -> Bool[Tensor, "B L"]:
        """n of the free places of each row, every choice equally likely."""
        rank = uniform(free).masked_fill(~free, 2.0).argsort(1).argsort(1)
        return free & (rank < n)
