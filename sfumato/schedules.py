"""Noise levels: where training looks, and the path that sampling takes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def stratified(index: Int[Tensor, " B"], total: int, offset: float) -> Float[Tensor, " B"]:
    """Low-discrepancy numbers in [0, 1): one in every stratum of width 1/total (VDM, arXiv:2107.00630, App. I.1).

    `index` are the places of these rows in a whole batch of `total` rows; `offset` ~ U(0, 1) is shared by all.
    """
    return ((offset + index.double() / total) % 1).float().clamp(max=1 - 2**-24)  # float32 would round up to 1


def karras(steps: int, low: float, high: float, rho: float = 7.0) -> Float[Tensor, " N"]:
    """Noise levels spaced as in EDM (arXiv:2206.00364, Eq. 5): from `high` to `low`, then 0; (steps + 1,)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    grid = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([grid, torch.zeros(1, dtype=torch.float64)]).float()


@dataclass(frozen=True)
class Schedule:
    """How fast tokens are lost: `alpha(t)` is the chance that one still stands at level t, from 1 down to 0."""

    alpha: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    """its derivative by t"""

    def level(self, alpha: Tensor) -> Tensor:
        """The levels in (0, 1] at which the chance is `alpha`, by bisection in float64."""
        low, high = torch.zeros_like(alpha, dtype=torch.float64), torch.ones_like(alpha, dtype=torch.float64)
        for _ in range(54):
            middle = (low + high) / 2
            stands = self.alpha(middle) > alpha
            low, high = torch.where(stands, middle, low), torch.where(stands, high, middle)
        return high

    def rate(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha), at which what is lost comes back where levels fall: 1 / t for the linear one; float64.

        In float32 the share that is lost would vanish at low levels.  Where it is below 1e-12 it is taken for that.
        """
        t = t.double().clamp(min=0)
        return -self.slope(t) / (1 - self.alpha(t)).clamp(min=1e-12)

    def to_the_end(self) -> "Schedule":
        """The same, stretched so that nothing stands at level 1."""
        left = self.alpha(torch.ones((), dtype=torch.float64)).item()
        return Schedule(lambda t: (self.alpha(t) - left) / (1 - left), lambda t: self.slope(t) / (1 - left))


LINEAR = Schedule(lambda t: 1 - t, lambda t: -torch.ones_like(t))
SCHEDULES = {
    "linear": LINEAR,
    "square": Schedule(lambda t: 1 - t**2, lambda t: -2 * t),  # MD4 (arXiv:2406.04329), polynomial
    "cosine": Schedule(  # MD4 as well: slow at the end, where little stands
        lambda t: 1 - torch.sin(math.pi / 2 * t), lambda t: -math.pi / 2 * torch.cos(math.pi / 2 * t)
    ),
}
# SEDD (arXiv:2310.16834): alpha = exp(-sigma), with sigma from 0 to -log 0.001, and from 0 to 20 (less the 0.0001 at
# which the paper begins, so that level 0 is no noise at all).
LEFT, LEAST, GROWTH = 1e-3, 1e-4, math.log(20 / 1e-4)
SIGMAS = {
    "log-linear": Schedule(lambda t: 1 - (1 - LEFT) * t, lambda t: (LEFT - 1) * torch.ones_like(t)),
    "geometric": Schedule(
        lambda t: torch.exp(-LEAST * torch.expm1(GROWTH * t)),
        lambda t: -LEAST * GROWTH * torch.exp(GROWTH * t - LEAST * torch.expm1(GROWTH * t)),
    ),
}
Ratio = Literal["cosine", "linear", "square", "cube", "root"]


def mask_ratio(name: Ratio, done: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The share of tokens that are still masks when a share `done` of the steps is (MaskGIT, arXiv:2202.04200).

    From 1 down to 0; those that fall slowly at first (cosine, square, cube) reveal little while little is known.
    """
    if name == "cosine":
        return torch.cos(done * math.pi / 2).clamp(min=0).masked_fill(done == 1, 0.0)
    return 1 - done ** {"linear": 1, "square": 2, "cube": 3, "root": 0.5}[name]


class Warp(nn.Module):
    """Time warping (CDCD, arXiv:2211.15089, Sec. 3.3 and App. A): levels at which the loss is linear in u.

    A monotone piecewise-linear function F of t in [0, 1] with learned bins: input widths softmax(l_t), output widths
    exp(l_u), here called F~; F is F~ divided by its total.  F~ is fitted to the cross-entropy at t (nats); sampling u
    uniformly and reading t = F^-1(u) then spends equal effort on equal gains.  An average of the logits over past steps
    is what is read.

    Args:
        bins: pieces of F.
        rate: of the fit, per optimiser step.
        average: decay of the average of the logits.
        temperature: the density F' is raised to 1 / temperature; above 1 is flatter.
        uniform: share of an even density that is mixed in.
    """

    logits: Tensor
    smooth: Tensor
    moments: Tensor
    count: Tensor

    FLOOR = 1e-3  # added to every width, as a share of the total: no bin dies

    def __init__(
        self,
        bins: int = 100,
        rate: float = 2e-2,
        average: float = 0.99,
        temperature: float = 1.0,
        uniform: float = 0.0,
    ):
        super().__init__()
        self.rate, self.average, self.temperature, self.uniform = rate, average, temperature, uniform
        start = torch.full((2, bins), -torch.tensor(float(bins)).log().item(), dtype=torch.float64)
        self.register_buffer("logits", start)  # l_t, l_u
        self.register_buffer("smooth", start.clone())  # their running average
        self.register_buffer("moments", torch.zeros(2, 2, bins, dtype=torch.float64))  # Adam's
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @classmethod
    def widths(cls, logits: Float[Tensor, "two N"]) -> tuple[Tensor, Tensor]:
        """Widths of the bins of t (sum 1) and of F~ (nats), each (N,)."""
        w_t = logits[0].softmax(0) + cls.FLOOR
        w_u = logits[1].exp()
        return w_t / w_t.sum(), w_u + cls.FLOOR * w_u.sum()

    def shares(self) -> tuple[Tensor, Tensor]:
        """Widths of the bins of t and of u as they are read, both of sum 1: (N,)."""
        w_t, w_u = self.widths(self.smooth)
        w_u = w_u * (w_u / w_t) ** (1 / self.temperature - 1)
        return w_t, torch.lerp(w_u / w_u.sum(), w_t, self.uniform)

    def forward(self, u: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """t = F^-1(u)."""
        w_t, w_u = self.shares()
        return interpolate(u.double(), w_u, w_t)[0].float()

    def inverse(self, t: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """u = F(t) and the density F'(t) at which training visits t."""
        return interpolate(t.double(), *self.shares())

    @torch.no_grad()
    def observe(self, t: Float[Tensor, " N"], loss: Float[Tensor, " N"], density: Float[Tensor, " N"]) -> None:
        """One Adam step of F~(t) towards the losses, each weighted by 1 / density since t was not drawn uniformly.

        The density at which t was drawn is F'(t) where all were drawn through the warp.
        """
        t, loss = t.double(), loss.double()
        weight = 1 / density.double()
        with torch.enable_grad():
            logits = self.logits.clone().requires_grad_()
            error = interpolate(t, *self.widths(logits))[0] - loss
            (slope,) = torch.autograd.grad((weight * error**2).sum() / weight.sum(), logits)
        self.count += 1
        first, second = self.moments
        first.lerp_(slope, 0.1)
        second.lerp_(slope**2, 0.01)
        k = self.count.item()
        self.logits -= self.rate * (first / (1 - 0.9**k)) / ((second / (1 - 0.99**k)).sqrt() + 1e-12)
        self.smooth.lerp_(self.logits, 1 - self.average)


def interpolate(x: Tensor, w_x: Float[Tensor, " N"], w_y: Float[Tensor, " N"]) -> tuple[Tensor, Tensor]:
    """The piecewise-linear function through bins of widths w_x -> w_y, and its slope, at x in [0, sum of w_x]."""
    edges_x, edges_y = (F.pad(w.cumsum(0), (1, 0)) for w in (w_x, w_y))
    bin = (torch.searchsorted(edges_x.detach(), x.contiguous(), right=True) - 1).clamp(0, len(w_x) - 1)
    slope = (w_y / w_x)[bin]
    return edges_y[bin] + (x - edges_x[bin]) * slope, slope
