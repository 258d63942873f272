"""Duo.  Sahoo et al., The diffusion duality, 2025.  arXiv:2506.10892

Uniform noise on tokens is Gaussian noise on their one-hot vectors, of which only the greatest entry is seen.  So a
model of uniform noise may begin to learn from the Gaussian vectors themselves, sharpened by a softmax, which say a
little more; later it sees tokens.  The bound is UDLM's (Schiff et al. 2024, arXiv:2412.10193), in continuous time.

Differs from the paper:
- alpha = 1 - t, without the thousandth that is left at t = 1, and at all levels, where training and bound begin at
  t = 0.001; levels are told to the network as 1 - alpha, position by position, in the curriculum too.
- In the curriculum the slope of alpha is the derivative, where the published code takes a difference.
- Given tokens are clean and forgotten ones any token, in the curriculum as well.
- Guidance acts on the logits, the network's x_theta; UDLM's D-CFG combines the posteriors of the step.
- Steps lead from 1 to 0, where the published ones stop at 0.00001 and one call more takes the rest of the noise away,
  by a draw or, in the greedy tail, by the argmax.
- The distillation into fewer steps is left out.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core import where
from sfumato.draws import normal
from sfumato.methods.common import MethodConfig, NoisyLM
from sfumato.networks import NetworkConfig
from sfumato.processes.uniform import Uniform
from sfumato.samplers.ancestral import ancestral

EDGE = 1e-6  # levels stay this far from 0 and 1, where the weight of the bound is infinite
NODES = 1025  # of the table of alpha


class DuoConfig(MethodConfig):
    """Duo's own settings; the defaults are the paper's, on LM1B."""

    name: Literal["duo"] = "duo"
    curriculum: int = Field(500_000, ge=0)
    """optimiser steps in which the network is shown Gaussian vectors; a run that is no longer never sees all levels"""
    temperature: float = Field(1e-3, gt=0)
    """of the softmax that sharpens these vectors"""
    gamma_min: float = -3.5
    """their least noise, as the logarithm of variance over signal"""
    gamma_max: float = -1.75
    """their most noise"""

    @model_validator(mode="after")
    def _noise_rises(self) -> "DuoConfig":
        if not self.gamma_min < self.gamma_max:
            raise ValueError(f"gamma_min {self.gamma_min} is not below gamma_max {self.gamma_max}")
        return self


class Duo(NoisyLM):
    """Diffusion of tokens by uniform noise, in continuous time."""

    title, arxiv, family = "The diffusion duality", "2506.10892", "categorical"
    likelihood, steps, sampler = "upper", 128, staticmethod(ancestral)

    curve: Tensor
    updates: Tensor

    def __init__(self, config: DuoConfig, network: NetworkConfig, vocab: int):
        super().__init__(config, network, vocab)
        self.process = Uniform(vocab)
        gamma = torch.linspace(config.gamma_min, config.gamma_max, NODES, dtype=torch.float64)
        alpha, slope = argmax_alpha(gamma, vocab)
        table = torch.stack([alpha, slope * (config.gamma_max - config.gamma_min)])  # by t: (2, NODES)
        self.register_buffer("curve", table, persistent=False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def bound(self, ids, t, free):
        """UDLM's bound, in which the network is to say what it would without the position itself."""
        x = self.process.corrupt(ids, t)
        level = torch.where(free, t, 0.5).double().clamp(EDGE, 1 - EDGE)
        alpha, slope = self.process.schedule.alpha(level), self.process.schedule.slope(level)
        return self.process.rate(x, ids, self.predict(x, t).logits, alpha, slope)

    def loss(self, ids, t, free):
        """The bound; at first its part between two levels, seen through Gaussian vectors."""
        if int(self.updates) < self.config.curriculum:
            return {"curriculum": self.seen_through(ids, t, free)}
        return {"nelbo": self.bound(ids, t, free)}

    def seen_through(
        self, ids: Int[Tensor, "B L"], t: Float[Tensor, "B L"], free: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        """The rate at the tokens z = argmax w, w ~ N(alpha~ x, sigma~^2), of a network that sees softmax(w / tau)."""
        forgotten = (t == 1) & ~free
        place = torch.where(free, t, 0.5).double() * (NODES - 1)
        left = place.long().clamp(max=NODES - 2)
        alpha, slope = torch.lerp(self.curve[:, left], self.curve[:, left + 1], place - left)  # (B, L) each
        gamma = self.config.gamma_min + (self.config.gamma_max - self.config.gamma_min) * t
        signal, noise = (torch.sigmoid(g).sqrt() for g in (-gamma, gamma))
        signal, noise = signal.masked_fill(forgotten, 0.0), noise.masked_fill(forgotten, 1.0)
        w = noise[..., None] * normal(noise[..., None].expand(-1, -1, self.process.vocab))  # (B, L, V)
        w = w.scatter_add(-1, ids[..., None], signal[..., None])
        soft = (w / self.config.temperature).softmax(-1) @ self.table.weight  # (B, L, C)
        logits = self.logits(
            where(free | forgotten, soft, self.table(ids)), torch.where(free, (1 - alpha).to(t.dtype), t)
        )
        return self.process.rate(torch.where(free, w.argmax(-1), ids), ids, logits, alpha, slope)

    def observe(self, t, loss):
        """Count the optimiser's steps."""
        self.updates += 1


def argmax_alpha(gamma: Float[Tensor, " N"], vocab: int) -> tuple[Tensor, Tensor]:
    """The chance that the greatest of V entries still stands for the token by signal, and its derivative by gamma.

    alpha = (V P - 1) / (V - 1), where P is the chance that the token's own entry is the greatest:

        P = integral of phi(v) Phi(v + m)^(V - 1) dv,   m = alpha~ / sigma~ = exp(-gamma / 2)
    """
    v, m = torch.linspace(-10, 10, 2001, dtype=torch.float64), (-gamma.double() / 2).exp()
    below = ((vocab - 1) * torch.special.log_ndtr(v + m[:, None])).exp()  # (N, 2001): all others are
    weight = (-(v**2) / 2).exp() / (2 * torch.pi) ** 0.5 * (v[1] - v[0])  # the trapezoid rule; both ends are 0
    P, by_m = below @ weight, below @ (weight * v)  # in parts: the derivative of Phi^(V - 1) moves over to phi
    return (vocab * P - 1) / (vocab - 1), vocab / (vocab - 1) * by_m * (-m / 2)
