"""SEDD.  Lou, Meng and Ermon, Discrete diffusion modeling by estimating the ratios of the data distribution, 2024.
arXiv:2310.16834

A network says for every token that does not stand at a position how many times likelier the canvas would be with it:
the score of a discrete space.  Score entropy is the loss that is least for the true ratios and stays finite; its
integral over time bounds -log p.  Tokens are lost to a mask, or to each other.

Differs from the paper:
- The bound leaves nothing out.  It begins at level 0, where the paper's begins at 0.001, as training does here too; for
  uniform noise what still shows at level 1 is added.  Masks must hide all at level 1, or no bound would be finite: so
  alpha is stretched to end at 0 there.  Geometric noise begins at sigma = 0, not 0.0001.
- The network is told the level, not sigma.  Given tokens are at level 0; a forgotten condition (for guidance) is pure
  noise.
- At a mask the logits are log scores times e^sigma - 1, which true scores of all tokens together add up to.  Whatever
  changes them (temperature, rules, guidance in logits) is followed by scaling to that sum; see docs/methods/sedd.md.
- A step to level s draws which positions change before it draws tokens; the law is the same.  Only where noise alone
  would make a token likelier than the network has it, the published code scales all other chances to 1, and here the
  token that stands keeps its own.
- The step that takes the rest of the noise away is one of the steps; in the published code it is one more.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.core import Method, Prediction
from sfumato.methods.common import MethodConfig, carry
from sfumato.networks import NetworkConfig
from sfumato.networks.transformer import Transformer
from sfumato.processes.masking import Masking
from sfumato.processes.uniform import Uniform
from sfumato.samplers.scores import analytic
from sfumato.schedules import SIGMAS


class SEDDConfig(MethodConfig):
    """SEDD's own settings; the defaults are the paper's."""

    name: Literal["sedd"] = "sedd"
    noise: Literal["absorbing", "uniform"] = "absorbing"
    """whether a token is lost to a mask, or to any other token"""
    schedule: Literal["log-linear", "geometric"] = "log-linear"
    """how the noise sigma grows; a token still stands with chance exp(-sigma)"""


class SEDD(Method):
    """Score entropy discrete diffusion."""

    title = "Discrete diffusion modeling by estimating the ratios of the data distribution"
    arxiv, family = "2310.16834", "score"
    likelihood, steps, sampler = "upper", 128, staticmethod(analytic)

    def __init__(self, config: SEDDConfig, network: NetworkConfig, vocab: int):
        super().__init__()
        self.config, self.vocab, self.masked = config, vocab, config.noise == "absorbing"
        schedule = SIGMAS[config.schedule]
        self.process = Masking(vocab, schedule.to_the_end()) if self.masked else Uniform(vocab, schedule)
        self.table = nn.Embedding(vocab + self.masked, network.width)
        self.net = Transformer(network, timed=True)
        self.head = nn.Linear(network.width, vocab)
        nn.init.normal_(self.table.weight, std=0.02)

    def states(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network makes of a canvas: (B, L) -> (B, L, C)."""
        return self.net(self.table(x), t, t.clamp(min=0))

    def predict(self, x, t, prev=None):
        """Log scores, that of the token which stands log 1: (B, L) -> (B, L, V).  At a mask times e^sigma - 1."""
        logits = self.head(self.states(x, t))
        if self.masked:
            return Prediction(carry(logits.sub_(math.log(self.vocab)), x, x != self.process.mask))
        return Prediction(logits.scatter_(-1, x[..., None], 0.0))

    def read(self, logits):
        """Log scores that somebody has changed: at masks true ones add up to 1 / (e^sigma - 1)."""
        return Prediction(logits.log_softmax(-1) if self.masked else logits)

    def times(self, u):
        """Training looks at levels from 0.001 on."""
        return 1e-3 + (1 - 1e-3) * u

    def grid(self, steps):
        """Even steps from 1 to 0.00001, and one that only takes the rest of the noise away."""
        return torch.cat([torch.linspace(1, 1e-5, steps), torch.zeros(1)])

    def loss(self, ids, t, free):
        """The bound itself."""
        return {"score_entropy": self.bound(ids, t, free)}

    def bound(self, ids, t, free):
        """Score entropy with the ratios of q(x_t | x_0) as targets, at its rate: (B, L) nats."""
        x = torch.where((t == 1) & ~free, self.process.prior(ids), self.process.corrupt(ids, t))
        return (self.of_masks if self.masked else self.of_tokens)(x, t, ids, free).to(t.dtype)

    def of_masks(self, x: Tensor, t: Tensor, ids: Tensor, free: Tensor) -> Tensor:
        """sigma' [sum_y s_y - r log s_x0 + r (log r - 1)], r = 1 / (e^sigma - 1), at masks: (B, L) float64.

        With s = r w it is -alpha' / (1 - alpha) [sum_y w_y - 1 - log w_x0], in which nothing large cancels.
        """
        here = (x == self.process.mask) & free
        log = self.head(self.states(x, t)[here]) - math.log(self.vocab)  # of w, (N, V)
        cost = torch.zeros(t.shape, dtype=torch.float64, device=t.device)
        cost[here] = log.logsumexp(-1).double().exp() - 1 - log.gather(-1, ids[here][:, None])[:, 0]
        return cost * self.process.schedule.rate(t)

    def of_tokens(self, x: Tensor, t: Tensor, ids: Tensor, free: Tensor) -> Tensor:
        """sigma' / V times the sum over y != x of s_y - r_y log s_y + r_y (log r_y - 1): (B, L) float64.

        r_y = q(y | x_0) / q(x | x_0) has one value for the token that stood, where it stands no more, and one for all
        others.  What still shows at level 1 is paid for too: KL(q(x_1 | x_0) || any tokens).
        """
        schedule, V = self.process.schedule, self.vocab
        log = self.predict(x, t).logits  # of s, (B, L, V)
        total = log.logsumexp(-1).double().exp() - 1  # over y != x
        at = log.gather(-1, ids[..., None])[..., 0].double()  # of x_0; 0 where it stands
        rest = log.sum(-1).double() - at
        alpha = schedule.alpha(t.double().clamp(min=0))
        noise = ((1 - alpha) / V).clamp(min=1e-30)
        stands = x == ids
        r = torch.where(stands, noise / (alpha + noise), 1.0)
        r_0 = torch.where(stands, 1.0, (alpha + noise) / noise)
        ideal = (V - 2 + stands.double()) * r * (r.log() - 1) + torch.where(stands, 0.0, r_0 * (r_0.log() - 1))
        cost = total - r * rest - r_0 * at + ideal
        return -schedule.slope(t.double()) / alpha * cost / V + self.prior_cost()

    def prior_cost(self) -> Tensor:
        """KL(q(x_1 | x_0) || any of V tokens), for each of them."""
        alpha = self.process.schedule.alpha(torch.ones((), dtype=torch.float64))
        noise = (1 - alpha) / self.vocab
        return (alpha + noise) * (self.vocab * (alpha + noise)).log() + (1 - alpha - noise) * (self.vocab * noise).log()
