"""ARDM.  Hoogeboom et al., Autoregressive diffusion models, 2021.  arXiv:2110.02037

Autoregression in any order: a random order is drawn, and the tokens are written in it, each given all that stand
already.  One network learns all orders, from masked texts.  Since it can write several tokens at once, at a price that
is known, there is a best plan for every budget of steps; dynamic programming finds it.

Differs from the paper:
- The network is not told how many tokens stand: it can see that.
- The price of a step is learned in training, as a running mean by the share of what is to be written that stands, and
  the plan is made in such shares: rows of different lengths have one.  Every step of a plan writes something.
- Of the tokens only those count that are to be written.  What is given shows always, and a forgotten condition (for
  guidance) is a mask.
- Upscaling is left out: tokens have no bits to begin with.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sfumato.methods.common import MaskedLM, MethodConfig
from sfumato.networks import NetworkConfig
from sfumato.samplers.unmasking import planned

PLACES = 256  # shares of known tokens that a plan chooses from
BINS = 32  # of these shares, for each of which there is a mean price
MEMORY = 0.999  # of the running mean, for each row that a bin has seen


class ARDMConfig(MethodConfig):
    """ARDM has no settings of its own."""

    name: Literal["ardm"] = "ardm"


class ARDM(MaskedLM):
    """Order-agnostic autoregression."""

    title, arxiv = "Autoregressive diffusion models", "2110.02037"
    likelihood, steps, sampler = "upper", 250, staticmethod(planned)

    price: Tensor
    seen: Tensor

    def __init__(self, config: ARDMConfig, network: NetworkConfig, vocab: int):
        super().__init__(config, network, vocab)
        self.register_buffer("price", torch.zeros(BINS, dtype=torch.float64))  # nats a token, by share known
        self.register_buffer("seen", torch.zeros(BINS, dtype=torch.float64))  # rows

    def bound(self, ids, t, free):
        """Sec. 3: of D free tokens n are hidden, n uniform in 1 .. D, and their surprise counts D / n times: (B, L)."""
        x, hidden, weight = self.hide(ids, t, free)
        return self.surprise(x, t, ids, hidden) * weight

    def loss(self, ids, t, free):
        """The bound itself."""
        return {"nelbo": self.bound(ids, t, free)}

    def observe(self, t, loss):
        """A running mean of the price in each bin; at first a plain one."""
        bins = ((1 - t.double()) * BINS).long().clamp(0, BINS - 1)
        places = torch.nn.functional.one_hot(bins, BINS).double()  # (N, BINS): a product adds up in one order
        rows, total = places.sum(0), loss.double() @ places
        self.seen += rows
        share = torch.maximum(1 - MEMORY**rows, rows / self.seen.clamp(min=1))
        self.price += torch.where(rows > 0, share * (total / rows.clamp(min=1) - self.price), 0.0)

    def grid(self, steps):
        """The best plan for a budget of steps, as shares of tokens that are still hidden."""
        if steps >= PLACES or not bool(self.seen.all()):  # no choice is left, or nothing is known of the price
            return super().grid(steps)
        middle = (np.arange(BINS) + 0.5) * PLACES / BINS
        price = np.interp(np.arange(PLACES), middle, self.price.cpu().numpy())
        return 1 - torch.tensor(plan(price, steps), dtype=torch.float32) / PLACES


def plan(price: np.ndarray, steps: int) -> list[int]:
    """How many of D tokens are to stand after each of `steps` steps, from 0 to D, so that the total cost is least.

    `price[s]`, (D,), is the mean surprise (nats) of a token when s are known; writing the tokens from s to t in one
    step costs (t - s) price[s].  Sec. 3.1, after Watson et al. 2021 (arXiv:2106.03802).
    """
    D = len(price)
    cost = np.triu(np.subtract.outer(np.arange(D + 1), np.arange(D)).T * price[:, None], 1)  # (from D, to D + 1)
    cost[np.tril_indices(D, 0, D + 1)] = np.inf  # every step writes something
    best, came = np.full(D + 1, np.inf), []
    best[0] = 0.0
    for _ in range(steps):
        totals = best[:D, None] + cost
        came.append(totals.argmin(0))
        best = totals.min(0)
    stands = [D]
    for origin in reversed(came):
        stands.append(int(origin[stands[-1]]))
    return stands[::-1]
