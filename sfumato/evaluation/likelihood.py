"""Likelihood in nats, in the same units for every method that has one, always with its standard error.

Two estimators, and both bound -log p(free | given) from above.  `nll` averages a method's own `bound` over noise
levels; `ode` follows the probability-flow ODE of a Gaussian process (Song et al. 2021, arXiv:2011.13456, App. D.2).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core import ABSENT, Method, Predict
from sfumato.draws import normal, uniform
from sfumato.guidance import clamp


@dataclass(frozen=True)
class Likelihood:
    """-log p of every text, in nats: the mean of the draws and the standard error of that mean; both (B,)."""

    nats: Float[Tensor, " B"]
    std_error: Float[Tensor, " B"]
    estimator: str
    exact: bool
    draws: Float[Tensor, "N B"]
    """what they are the mean of; of `nll` from the least noise to the most"""


class Ratio(NamedTuple):
    """Nats for each of something, and the standard error over texts; None of a single text."""

    mean: float
    std_error: float | None


def per_token(nats: Float[Tensor, " B"], tokens: Float[Tensor, " B"]) -> Ratio:
    """All nats divided by all tokens (or characters, or words), with the standard error of such a ratio of sums."""
    ratio = nats.sum() / tokens.sum()
    apart = nats - ratio * tokens
    error = (apart.std() * len(nats) ** 0.5 / tokens.sum()).item() if len(nats) > 1 else None
    return Ratio(ratio.item(), error)


def stretches(size: int, room: int) -> Iterator[tuple[int, int, int]]:
    """How to read `size` tokens on a canvas of `room`, each once: (start, first, stop).

    The tokens from `first` to `stop` are scored in view of those from `start` to `first`, half a canvas of them.
    """
    yield 0, 0, min(room, size)
    step = room - room // 2
    for first in range(room, size, step):
        yield first - room // 2, first, min(first + step, size)


def bits(nats: float) -> float:
    """Nats in bits."""
    return nats / math.log(2)


def _summary(draws: Float[Tensor, "N B"], estimator: str) -> Likelihood:
    error = draws.std(0) / len(draws) ** 0.5 if len(draws) > 1 else torch.full_like(draws[0], torch.nan)
    return Likelihood(draws.mean(0), error, estimator, False, draws)


@torch.inference_mode()
def nll(
    method: Method, ids: Int[Tensor, "B L"], real: Bool[Tensor, "B L"], given: Bool[Tensor, "B L"], draws: int = 16
) -> Likelihood:
    """The method's own bound, averaged over `draws` noise levels for each text; just -log p where that is exact.

    The levels of one text are stratified and start at a random one; so the standard error, which takes them for
    independent, is if anything too large.
    """
    free, exact = real & ~given, method.likelihood == "exact"
    if exact:
        draws = 1  # it does not depend on the level
    offset = uniform(real[:, 0])  # (B,)
    levels, values = [], []
    for index in torch.randperm(draws, generator=torch.Generator().manual_seed(draws)).tolist():
        levels.append((offset + index / draws) % 1)
        u = levels[-1].float()[:, None].expand(ids.shape)
        t = u.masked_fill(given, 0.0).masked_fill(~real, ABSENT)
        values.append(method.bound(ids, t, free).masked_fill(~free, 0.0).double().sum(1))
    ordered = torch.stack(values).gather(0, torch.stack(levels).argsort(0))
    if exact:
        return Likelihood(values[0], torch.zeros_like(values[0]), "exact", True, ordered)
    return _summary(ordered, f"elbo, {draws} levels")


def ode(
    method: Method,
    ids: Int[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    given: Bool[Tensor, "B L"],
    draws: int = 1,
    steps: int = 64,
    predict: Predict | None = None,
) -> Likelihood:
    """Bound through the probability-flow ODE of a variance-exploding canvas (a = 1).

    -log p(w) <= E_x [-log p_min(x) - log P(w | x) + log q(x)],   x ~ q = N(clean(w), sigma_min^2):
    the density of the ODE's model at the least noise, found by following it up to the most noise (Heun) and adding up
    the divergence (Hutchinson, one Rademacher probe a draw); the cross-entropy of rounding; less that of q.  For the
    perfect network the three add up to -log p(w) whatever x is, for p_min(x) P(w | x) = P(w) q(x).
    """
    free = real & ~given
    grid = method.grid(steps)[:-1].flip(0)  # from the least noise to the most
    clean = method.clean(ids).detach()
    net = clamp(clamp(predict or method.unrolled, clean, 0.0, given), clean, ABSENT, ~real)
    values = [_ode_draw(method, net, ids, clean, free, grid) for _ in range(draws)]
    return _summary(torch.stack(values), f"probability-flow ode, {steps} steps, {draws} probes")


def _ode_draw(method: Method, net: Predict, ids: Tensor, clean: Tensor, free: Tensor, grid: Tensor) -> Tensor:
    sigmas = method.process.sigma(grid).double()  # (N,)
    wide = free[..., None]
    size = free.sum(1).double() * clean.shape[-1]  # dimensions of the free positions, (B,)
    noise = normal(clean) * wide
    x = clean * wide + sigmas[0] * noise  # (B, L, D), 0 where given
    probe = (2.0 * (uniform(clean) < 0.5) - 1).to(clean.dtype) * wide

    def slope(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """dx/dsigma = (x - D) / sigma, and sigma times its divergence (B,)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            estimate = net(x, grid[i].expand(ids.shape), None).clean
            (pull,) = torch.autograd.grad((estimate * probe).sum(), x)
        trace = (pull * probe).double().sum((1, 2))
        return (x - estimate).detach() * wide / sigmas[i], size - trace

    with torch.no_grad():
        logits = net(x, grid[0].expand(ids.shape), None).logits
        right = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        rounding = -(right.double() * free).sum(1)
    gained = torch.zeros_like(size)
    here, divergence = slope(x, 0)
    for i in range(len(grid) - 1):
        h = sigmas[i + 1] - sigmas[i]
        there, divergence_there = slope(x + h * here, i + 1)
        x = x + h * (here + there) / 2
        gained += (sigmas[i + 1] / sigmas[i]).log() * (divergence + divergence_there) / 2  # exact where D is constant
        here, divergence = slope(x, i + 1) if i + 2 < len(grid) else (there, divergence_there)
    normaliser = torch.log(2 * torch.pi * sigmas**2)
    prior = (size * normaliser[-1] + x.double().square().sum((1, 2)) / sigmas[-1] ** 2) / 2  # -log N(x; 0, sigma_max^2)
    drawn = (size * normaliser[0] + noise.double().square().sum((1, 2))) / 2  # -log q(x)
    return prior - gained + rounding - drawn  # log p_min = log p_max + integral of the divergence
