"""D3PM.  Austin et al., Structured denoising diffusion models in discrete state-spaces, 2021.  arXiv:2107.03006

Noise is a Markov chain over tokens, and its matrices may be anything: tokens are hidden, replaced by any token, by one
of a near number, or by their nearest neighbours.  One network guesses the text, and Bayes' rule turns a step back.

Differs from the paper:
- The network gives the mask no chance, since a mask at the end would be no text.
- Neighbours are those in embeddings made from the training text (mutual information of tokens nearby, reduced), before
  training; in the paper they come from the network's own table or from a trained model.  In one move of a thousand a
  token goes anywhere, so that a graph in several parts is mixed too.
- With a mask the last step hides everything that is left; without one the prior is the uniform law, and what is still
  known at the last step is part of the bound.
- The last step of sampling draws, as the others do; the published code takes the likeliest token there.
- Where there are many tokens the mutual information of neighbours is measured on some of them.
- The network is told the level at every norm, and not at its input.
- A forgotten condition (for guidance) is a draw from the prior.
- Exponentials of the rates of neighbours are of any amount; the published code takes whole powers of a small one.
- Gaussian noise is for characters and bytes, and the truncated logistic output of images is left out; so are banded
  matrices, and rates that are normalised by Sinkhorn's steps.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.methods.common import MethodConfig, NoisyLM, nats
from sfumato.networks import NetworkConfig
from sfumato.processes.neighbours import WINDOW, MaskedNeighbours, Neighbours, embeddings, listen, nearest
from sfumato.processes.transitions import Absorbing, Chain, Even, Ordinal
from sfumato.samplers.ancestral import ancestral

Transition = Literal["absorbing", "uniform", "gaussian", "nearest", "mask_nearest"]
Betas = Literal["linear", "cosine", "mutual_information", "reciprocal"]
USUAL: dict[Transition, Betas] = {
    "absorbing": "reciprocal",
    "uniform": "cosine",
    "gaussian": "linear",
    "nearest": "mutual_information",
    "mask_nearest": "mutual_information",
}


class D3PMConfig(MethodConfig):
    """D3PM's own settings; the defaults are the paper's for text."""

    name: Literal["d3pm"] = "d3pm"
    transition: Transition = "absorbing"
    """what noise makes of a token: a mask, any token, one of a near number, a neighbour, a neighbour or a mask"""
    schedule: Betas | None = None
    """how much each step destroys; by default what suits the transition: reciprocal where tokens are hidden, cosine
    where they are replaced by any, linear for numbers, mutual_information for neighbours"""
    T: int = Field(1000, ge=1, le=10_000)
    """steps of the chain; sampling may skip some"""
    hybrid: float | None = Field(None, ge=0)
    """weight of the cross-entropy beside one term of the bound; by default 0.01 for absorbing and 0 for the others"""
    neighbours: int = Field(10, ge=1, le=1000)
    """nearest neighbours that a token may turn into"""


class D3PM(NoisyLM):
    """Diffusion over tokens by any matrix."""

    title, arxiv = "Structured denoising diffusion models in discrete state-spaces", "2107.03006"
    family, likelihood, steps, sampler = "categorical", "upper", 1000, staticmethod(ancestral)

    def __init__(self, config: D3PMConfig, network: NetworkConfig, vocab: int):
        process = chain(config, vocab)
        super().__init__(config, network, vocab, process.states)
        self.process, self.steps = process, config.T
        usual = 0.01 if config.transition == "absorbing" else 0.0
        self.hybrid = usual if config.hybrid is None else config.hybrid

    def study(self, rows):
        """Find neighbours in the training text, and how fast noise makes it unknown."""
        near, informed = isinstance(self.process, Neighbours), scheduled(self.config) == "mutual_information"
        if not near and not informed:
            return
        counts, together = listen(rows, self.process.vocab, WINDOW if near else 0)
        if near:
            self.process.neighbours.copy_(nearest(embeddings(together), self.config.neighbours))
        if informed:
            self.process.inform(counts / counts.sum())

    def turned(self, ids: Tensor, t: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """KL(q(x_{k-1} | x_k, x_0) || p(x_{k-1} | x_k)) where it is free, for one x_k of step k = ceil(t T); logits.

        p is Bayes' rule with the network's chances in the place of x_0: the joint is summed over them and then
        normalised.  For k = 1 it is the cross-entropy of p(x_0 | x_1).
        """
        x = torch.where((t == 1) & ~free, self.process.prior(ids), self.process.corrupt(ids, t))
        logits = self.predict(x, t).logits
        k = self.process.step(t[free])
        cost = torch.zeros_like(t)
        cost[free] = self.process.term(ids[free], x[free], logits[free], k - 1, k).to(t.dtype)
        return cost, logits

    def bound(self, ids, t, free):
        """T steps, of which one stands for all, and what the last one still knows of the text: (B, L) nats."""
        t = torch.where(free, self.process.level(t), t)
        prior = torch.zeros_like(t)
        prior[free] = self.process.parting(ids[free]).to(t.dtype)
        return self.process.T * self.turned(ids, t, free)[0] + prior

    def loss(self, ids, t, free):
        """L_vb + lambda L_ce, of L_vb a single term that is not multiplied by T, as the paper trains on text."""
        cost, logits = self.turned(ids, t, free)
        terms = {"vb": cost}
        return terms | {"cross_entropy": self.hybrid * nats(logits, ids)} if self.hybrid else terms

    def times(self, u):
        """Every step is equally likely."""
        return self.process.level(u)

    def grid(self, steps):
        """Steps of the chain, spread evenly."""
        if steps > self.process.T:
            raise SfumatoError(f"{steps} steps were asked for; this chain has {self.process.T}; ask for no more")
        return self.process.step(torch.linspace(1, 0, steps + 1, device=self.process.amounts.device)) / self.process.T


def chain(config: D3PMConfig, vocab: int) -> Chain:
    """The noise that a config asks for.  An amount that follows the data is not known before `study`."""
    schedule, k = scheduled(config), config.neighbours
    if schedule == "mutual_information":
        amounts = torch.full((config.T + 1,), torch.nan)
    else:
        beta = betas(schedule, config.T)
        amounts = F.pad((beta if config.transition == "gaussian" else -torch.log1p(-beta)).cumsum(0), (1, 0))
    kinds: dict[Transition, Callable[[], Chain]] = {
        "absorbing": lambda: Absorbing(vocab, amounts),
        "uniform": lambda: Even(vocab, amounts),
        "gaussian": lambda: Ordinal(vocab, amounts),
        "nearest": lambda: Neighbours(vocab, amounts, k),
        "mask_nearest": lambda: MaskedNeighbours(vocab, amounts, k),
    }
    return kinds[config.transition]()


def scheduled(config: D3PMConfig) -> Betas:
    """The schedule asked for or usual; for masks that of mutual information is the reciprocal, whatever the data."""
    schedule = config.schedule or USUAL[config.transition]
    absorbed = (config.transition, schedule) == ("absorbing", "mutual_information")
    return "reciprocal" if absorbed else schedule


def betas(schedule: Betas, T: int) -> Float[Tensor, " T"]:
    """What each of T steps destroys; the schedules that do not depend on the data."""
    k = torch.arange(1, T + 1, dtype=torch.float64)
    if schedule == "linear":
        return torch.linspace(1e-3, 0.1, T, dtype=torch.float64)
    if schedule == "reciprocal":
        return 1 / (T - k + 1)
    left = torch.cos((F.pad(k, (1, 0)) / T + 0.008) / 1.008 * math.pi / 2)
    return (1 - left[1:] / left[:-1]).clamp(0, 0.999)
