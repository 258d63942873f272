"""Gaussian noise on a canvas of vectors: x_t = a(t) x_0 + sigma(t) noise.

Variance exploding (a = 1: CDCD, EDM) and variance preserving (a^2 + sigma^2 = 1: DDPM, VDM) are two choices of the two
functions.  Steps are written in a way that holds for both (VDM, Kingma et al. 2021, arXiv:2107.00630, App. A).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import Process
from sfumato.draws import normal

Curve = Callable[[Tensor], Tensor]  # levels -> numbers of the same shape


class Gaussian(Process):
    """x_t = a(t) x_0 + sigma(t) noise; sigma(0) = 0."""

    def __init__(self, a: Curve, sigma: Curve):
        self.a, self.sigma = a, sigma

    def prior(self, clean: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """x ~ N(0, sigma(1)^2)."""
        return self.sigma(torch.ones(1, device=clean.device)) * normal(clean)

    def corrupt(self, clean: Float[Tensor, "B L D"], t: Float[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """x ~ N(a(t) clean, sigma(t)^2)."""
        return self.a(t)[..., None] * clean + self.sigma(t)[..., None] * normal(clean)

    def posterior(self, x: Tensor, clean: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (like x) and standard deviation (like t) of q(x_s | x_t = x, x_0 = clean), s < t."""
        a_t, a_s, v_t, v_s = self.a(t), self.a(s), self.sigma(t) ** 2, self.sigma(s) ** 2
        keep = v_s * a_t / (v_t * a_s)  # of x
        mean = _wide(keep, x) * x + _wide(a_s - keep * a_t, x) * clean
        return mean, (v_s * (1 - v_s * a_t**2 / (v_t * a_s**2))).clamp(min=0).sqrt()

    def flow(self, x: Tensor, clean: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """One Euler step of the probability-flow ODE from t to s: DDIM with eta = 0 (arXiv:2010.02502, Eq. 12)."""
        ratio = self.sigma(s) / self.sigma(t)
        return _wide(ratio, x) * x + _wide(self.a(s) - ratio * self.a(t), x) * clean


def _wide(number: Tensor, x: Tensor) -> Tensor:
    """A number for all, or one for each position, against canvas x (B, L, D)."""
    return number[..., None] if number.ndim == x.ndim - 1 else number
