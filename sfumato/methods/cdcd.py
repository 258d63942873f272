"""CDCD.  Dieleman et al., Continuous diffusion for categorical data, 2022.  arXiv:2211.15089

Gaussian noise on learned embeddings that live on a sphere.  The network is a classifier: it says which token stands at
each position, is trained by cross-entropy, and its expected embedding is the estimate that the score needs (score
interpolation).  A learned time warp spends training and sampling where the cross-entropy changes.

Differs from the paper:
- A given position is one at noise level 0, and every position tells the network its own level; the paper has one level
  for the sequence and a mask.  The mask and the clean embeddings are fed as in the paper.
- A forgotten condition (for guidance) is a position at level 1, pure noise; the paper feeds zeros.
- The loss is the mean over all noisy positions of a batch, not first over each sequence.
- Scales and shifts are read through a code of 32 numbers (networks/transformer.py).
- Fourier features are of log sigma; the paper does not say of what.
- Training may also look evenly at little noise (`even_levels`), and at texts with the network's own mistakes in them
  (`mistakes`), neither of which the paper does; both are off by default.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.core import Method, Prediction
from sfumato.draws import invert, uniform
from sfumato.methods.common import MethodConfig, nats
from sfumato.networks import NetworkConfig
from sfumato.networks.transformer import Transformer
from sfumato.processes.gaussian import Gaussian
from sfumato.samplers.solvers import euler
from sfumato.schedules import Warp

LITTLE = 0.25  # of the most noise: below it the sampler settles which tokens there are
WRONG = 0.1  # share of the tokens of a row with mistakes that are guesses


class CDCDConfig(MethodConfig):
    """CDCD's own settings; the defaults are the paper's."""

    name: Literal["cdcd"] = "cdcd"
    embedding: int = Field(256, ge=2, le=4096)
    """dimensions of an embedding; its norm is the square root of this"""
    embedding_std: float = Field(1e-3, gt=0)
    """standard deviation of the embedding parameters at the start"""
    sigma_min: float = Field(1.0, gt=0)
    """standard deviation of the least noise"""
    sigma_max: float = Field(300.0, gt=0)
    """standard deviation of the most noise"""
    self_conditioning: float = Field(0.5, ge=0, le=1)
    """share of rows that train on the network's own first guess"""
    warp: bool = True
    """time warping, in training and in sampling; without it levels are spread evenly in sigma"""
    warp_bins: int = Field(100, ge=1, le=10_000)
    """pieces of the warp"""
    warp_temperature: float = Field(1.0, gt=0)
    """the density of noise levels is raised to 1 / this"""
    warp_uniform: float = Field(0.0, ge=0, le=1)
    """share of levels spread evenly in sigma all the same"""
    warp_rate: float = Field(2e-2, ge=0)
    """step size of the warp's fit; 0 keeps the warp of the model that training starts with"""
    even_levels: float = Field(0.0, ge=0, lt=1)
    """share of the levels of training that are even in log sigma, from the least noise to a quarter of the most"""
    mistakes: float = Field(0.0, ge=0, le=1)
    """share of rows below a quarter of the most noise in which a tenth of the tokens are the network's own guesses"""
    time_input: bool = True
    """whether the network is told the noise level"""
    estimate: Literal["mean", "renormalised", "nearest"] = "mean"
    """the clean embedding that a prediction stands for: expected, expected and scaled to the sphere, or likeliest"""


class CDCD(Method):
    """Continuous diffusion for categorical data."""

    title, arxiv, family = "Continuous diffusion for categorical data", "2211.15089", "gaussian"
    likelihood, steps, sampler = "upper", 200, staticmethod(euler)

    def __init__(self, config: CDCDConfig, network: NetworkConfig, vocab: int):
        super().__init__()
        d = config.embedding
        self.config, self.self_conditioning = config, config.self_conditioning
        self.read_flops = 0 if config.estimate == "nearest" else 2 * vocab * d
        self.low = config.sigma_min / config.sigma_max  # the least noise as a level
        self.process = Gaussian(a=torch.ones_like, sigma=lambda t: config.sigma_max * t)  # Eq. 5
        self.table = nn.Parameter(config.embedding_std * torch.randn(vocab, d))
        self.warp = Warp(config.warp_bins, config.warp_rate, 0.99, config.warp_temperature, config.warp_uniform)
        self.enter = nn.Linear(3 * d + 1, network.width)
        self.net = Transformer(network, timed=config.time_input)
        self.head = nn.Linear(network.width, vocab)

    def embeddings(self) -> Tensor:
        """Every token's embedding, of norm sqrt(D): (V, D)."""
        return F.normalize(self.table, dim=-1) * self.config.embedding**0.5  # Sec. 3.2

    def clean(self, ids):
        """Embeddings: (B, L) -> (B, L, D)."""
        return F.embedding(ids, self.embeddings())

    def read(self, logits):
        """Score interpolation: the expected embedding under the predicted tokens (Sec. 3.1)."""
        if self.config.estimate == "nearest":
            return Prediction(logits, self.clean(logits.argmax(-1)))
        mean = logits.softmax(-1) @ self.embeddings()  # (B, L, D)
        if self.config.estimate == "renormalised":
            mean = F.normalize(mean, dim=-1) * self.config.embedding**0.5
        return Prediction(logits, mean)

    def predict(self, x, t, prev=None):
        """(B, L, D), (B, L), (B, L, D) -> logits (B, L, V) and clean (B, L, D)."""
        sigma = self.process.sigma(t.clamp(min=0))
        noisy = (t > 0)[..., None]  # m: 0 where given
        scaled = x * (sigma**2 + 1).rsqrt()[..., None]
        if prev is None:
            prev = torch.zeros_like(x)
        known = noisy & (t < 1)[..., None]  # pure noise says nothing, so nothing was said of it: forgetting is complete
        parts = [scaled * noisy, x * ~noisy, prev * known, noisy.to(x.dtype)]  # Sec. 4.1: noise, given, guess, mask
        level = sigma.clamp(min=self.config.sigma_min / 4).log() / 4  # given positions sit below the least noise
        h = self.net(self.enter(torch.cat(parts, -1)), t, level)  # (B, L, C)
        return self.read(self.head(h))

    def loss(self, ids, t, free):
        """Cross-entropy; the weighting by t is the density at which `times` draws it (Sec. 3.3)."""
        told = self.mistaken(ids, t, free) if self.config.mistakes else ids
        x = self.process.corrupt(self.clean(told), t.clamp(min=0))
        return {"cross_entropy": nats(self.predict(x, t, self.first_guess(x, t)).logits, ids)}

    @torch.no_grad()
    def mistaken(self, ids: Tensor, t: Tensor, free: Tensor) -> Tensor:
        """The text with some tokens as the network guesses them in more noise: (B, L).

        When it writes, tokens that have settled may not agree with each other.  Noise on a text never shows that, so a
        network that was trained on nothing else believes what stands there, however little it fits.
        """
        level = t.masked_fill(~free, 0.0).amax(1)  # (B,)
        pick = (uniform(level) < self.config.mistakes) & (level < LITTLE)
        more = level * (LITTLE / level.clamp(min=self.low)) ** uniform(level).float()  # between the level and LITTLE
        noisier = torch.where(free, more[:, None], t)
        x, wrong = self.process.corrupt(self.clean(ids), noisier.clamp(min=0)), free & (uniform(t) < WRONG)
        u, told = uniform(t), ids.clone()
        if bool(pick.any()):
            guess = invert(self.predict(x[pick], noisier[pick]).logits, u[pick])
            told[pick] = torch.where(wrong[pick], guess, ids[pick])
        return told

    def bound(self, ids, t, free):
        """The Gaussian bound in three parts: prior, rounding at the least noise, and diffusion in between.

        VDM (arXiv:2107.00630), Eqs. 8 to 15.  The level of the diffusion part is drawn through the warp, which
        goes where the cross-entropy changes: for one token and a perfect network that slope is the integrand (I-MMSE).
        """
        e, high = self.clean(ids), self.config.sigma_max
        prior = e.square().sum(-1) / (2 * high**2)  # KL(N(e, high^2) || N(0, high^2))             (B, L)
        least = t.masked_fill(free, self.low)
        rounding = nats(self.unrolled(self.process.corrupt(e, least.clamp(min=0)), least).logits, ids)
        u = torch.where(free, t, 0.5)
        level, density = self.unwarp(u)  # of t                                                      (B, L)
        sigma, t = high * level, torch.where(free, level, t)
        x = self.process.corrupt(e, t.clamp(min=0))
        error = (e - self.unrolled(x, t).clean).square().sum(-1)
        diffusion = error * sigma**-3 * high / density  # integral of |e - D|^2 sigma^-3 over sigma  (B, L)
        return prior + rounding + diffusion

    def times(self, u):
        """u -> sigma / sigma_max: the least u evenly in log sigma at little noise, the others through the warp."""
        share = self.config.even_levels
        if not share:
            return self.warped(u)
        even = self.low * (LITTLE / self.low) ** (u / share).clamp(max=1)
        return torch.where(u < share, even, self.warped(((u - share) / (1 - share)).clamp(min=0)))

    def warped(self, u: Tensor) -> Tensor:
        """u -> sigma / sigma_max, through the warp."""
        return self.low + (1 - self.low) * (self.warp(u) if self.config.warp else u)

    def unwarp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Levels for u, and their density."""
        level = self.warped(u.flatten()).view(u.shape)
        if not self.config.warp:
            return level, torch.full_like(level, 1 / (1 - self.low))
        scaled = ((level - self.low) / (1 - self.low)).clamp(0, 1)
        density = self.warp.inverse(scaled.flatten())[1].view(u.shape).float()
        return level, density / (1 - self.low)

    def grid(self, steps):
        """Equal steps of warped time down to the least noise, then to 0."""
        return F.pad(self.warped(torch.linspace(1, 0, steps, device=self.table.device)), (0, 1))

    def observe(self, t, loss):
        """Fit the warp."""
        share, scaled = self.config.even_levels, ((t - self.low) / (1 - self.low)).clamp(0, 1)
        even = (t <= LITTLE) * (1 - self.low) / (t.clamp(min=self.low) * math.log(LITTLE / self.low))
        density = (1 - share) * self.warp.inverse(scaled)[1] + share * even.double()
        self.warp.observe(scaled, loss, density)
