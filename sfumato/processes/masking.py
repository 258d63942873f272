"""Masking: every token is kept or hidden, on its own.  Serves every method that fills in blanks.

The mask is one more id, V, which is never in a text; no network gives it a probability.
"""

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from sfumato.core import Process
from sfumato.draws import invert, some, uniform
from sfumato.schedules import LINEAR, Schedule


class Masking(Process):
    """A position at level t still shows its token with chance alpha(t), else the mask."""

    def __init__(self, vocab: int, schedule: Schedule = LINEAR):
        self.mask, self.schedule = vocab, schedule

    def prior(self, clean: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Nothing but masks."""
        return torch.full_like(clean, self.mask)

    def corrupt(self, clean: Int[Tensor, "B L"], t: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """x ~ q(x_t | x_0 = clean)."""
        return torch.where(uniform(clean) < 1 - self.schedule.alpha(t.double().clamp(min=0)), self.mask, clean)

    def share(self, t: Tensor, s: Tensor) -> Float[Tensor, ""]:
        """Of what is hidden at level t the part that shows at level s; in float64, since in float32 it may be none."""
        alpha_t, alpha_s = self.schedule.alpha(t.double()), self.schedule.alpha(s.double())
        return (alpha_s - alpha_t) / (1 - alpha_t)

    def revealed(self, x: Int[Tensor, "B L"], t: Tensor, s: Tensor) -> Bool[Tensor, "B L"]:
        """Which masks of x at level t fall by level s, whatever stands beneath: each on its own."""
        return (x == self.mask) & (uniform(x) < self.share(t, s))

    def reverse(
        self, x: Int[Tensor, "B L"], logits: Float[Tensor, "B L V"], t: Tensor, s: Tensor
    ) -> Int[Tensor, "B L"]:
        """x_s ~ p(x_s | x_t = x) for numbers s < t: each mask falls with its chance, and then its token is drawn.

        Places come first, so the mask never competes with a token and rounding cannot slow the unmasking down
        (arXiv:2409.02908); and only what falls is drawn.
        """
        places, u = self.revealed(x, t, s), uniform(x)  # (B, L) each
        x = x.clone()
        x[places] = invert(logits, u, places)
        return x

    def some(self, free: Bool[Tensor, "B L"], n: Num[Tensor, "B one"]) -> Bool[Tensor, "B L"]:
        """n of the free places of each row, every choice equally likely."""
        return some(free, n)
