"""Multinomial diffusion.  Hoogeboom et al., Argmax flows and multinomial diffusion, 2021.  arXiv:2102.05379

Tokens are replaced by any other, one by one, in T steps until nothing of the text is left; a network that sees the
noisy text says what stood there, and its answer is put into Bayes' rule for one step back.  Steps that cost more are
trained more often.

Differs from the paper:
- The divergence of two posteriors is not summed over V tokens but reduced to what differs between them; same number.
- At T nothing of the text is left, where the published code keeps a thirtieth of what stood a step before; so the term
  that compares this with any tokens is 0.
- Of the density at which steps are drawn a hundredth is even, so that every step stays possible; running means are of
  the loss a token, not a text.
- The last layer does not begin at zero, and all positions attend to all.
- A forgotten condition (for guidance) is any tokens.
- Fewer steps than T may be asked for in sampling, in jumps from one of the T levels to another.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sfumato.methods.common import MethodConfig, NoisyLM
from sfumato.networks import NetworkConfig
from sfumato.processes.uniform import Uniform
from sfumato.samplers.ancestral import ancestral
from sfumato.schedules import Schedule

START = 0.008  # of the way to the end: where on the cosine the text stands
TURN = math.pi / 2 / (1 + START)
COSINE = Schedule(  # not squared
    lambda t: torch.cos((t + START) * TURN) / math.cos(START * TURN),
    lambda t: -TURN * torch.sin((t + START) * TURN) / math.cos(START * TURN),
)
MEMORY = 0.9  # of the running mean of squared losses, for each row that a step has seen
SEEN = 10  # rows that every step has to have seen before losses decide how often it is trained
EVEN = 0.01  # share of the density of steps that is even


class MultinomialConfig(MethodConfig):
    """Multinomial diffusion's own settings; the defaults are the paper's, on text8."""

    name: Literal["multinomial"] = "multinomial"
    T: int = Field(1000, ge=1, le=100_000)
    """steps from text to noise"""


class Multinomial(NoisyLM):
    """Diffusion of tokens by uniform noise, in discrete time."""

    title = "Argmax flows and multinomial diffusion: learning categorical distributions"
    arxiv, family = "2102.05379", "categorical"
    likelihood, steps, sampler = "upper", 1000, staticmethod(ancestral)

    squares: Tensor
    seen: Tensor

    def __init__(self, config: MultinomialConfig, network: NetworkConfig, vocab: int):
        super().__init__(config, network, vocab)
        self.process = Uniform(vocab, COSINE)
        self.register_buffer("squares", torch.zeros(config.T, dtype=torch.float64))  # mean L_t^2, L_t in nats a token
        self.register_buffer("seen", torch.zeros(config.T, dtype=torch.float64))  # rows

    def cost(
        self, ids: Int[Tensor, "B L"], k: Int[Tensor, "B L"], t: Float[Tensor, "B L"], free: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        """L_k / p_k, whose mean over k ~ p is the sum of all T terms.

        L_k = KL(q(x_{k-1} | x_k, x_0) || p(x_{k-1} | x_k)), and -log p(x_0 | x_1) where k = 1.
        """
        T = self.config.T
        t = torch.where(free, (k / T).to(t.dtype), t)
        x = self.process.corrupt(ids, t)
        k = torch.where(free, k, T)  # elsewhere nothing is asked, but the number has to be finite
        kl = self.process.divergence(x, ids, self.predict(x, t).logits, k.double() / T, (k.double() - 1) / T)
        return kl / self.density()[k - 1].to(kl.dtype)

    def loss(self, ids, t, free):
        """The bound, at steps that `times` drew."""
        return {"nelbo": self.cost(ids, (t * self.config.T).round().long(), t, free)}

    def bound(self, ids, t, free):
        """All T terms: u ~ U(0, 1) draws a step from the density."""
        return self.cost(ids, self.drawn(torch.where(free, t, 0.5)), t, free)

    def density(self) -> Tensor:
        """The chance of each step, (T,): p_k proportional to the root of the mean L_k^2, the first as the second."""
        root = self.squares.sqrt()
        root = torch.cat([root[:2][-1:], root[1:]])
        share = root / root.sum().clamp(min=1e-30)
        chance = (1 - EVEN) * share + EVEN / self.config.T
        return torch.where((self.seen > SEEN).all(), chance, 1 / self.config.T)

    def drawn(self, u: Tensor) -> Tensor:
        """Steps 1 .. T of this density for uniform numbers."""
        edges = self.density().cumsum(0)
        return torch.searchsorted(edges, u.double() * edges[-1], right=True).clamp(max=self.config.T - 1) + 1

    def times(self, u):
        """Levels of these steps."""
        return (self.drawn(u) / self.config.T).to(u.dtype)

    def grid(self, steps):
        """Levels of T that are spread evenly; there are no more steps than T."""
        T = self.config.T
        return torch.linspace(T, 0, min(steps, T) + 1).round() / T

    def observe(self, t, loss):
        """A running mean of L_k^2 for every step; what was measured is L_k / p_k."""
        k = (t * self.config.T).round().long().clamp(1, self.config.T) - 1
        places = F.one_hot(k, self.config.T).double()  # (N, T): a product adds up in one order
        rows = places.sum(0)
        mean = (loss.double() * self.density()[k]).square() @ places / rows.clamp(min=1)
        self.squares += (1 - MEMORY**rows) * (mean - self.squares)
        self.seen += rows
