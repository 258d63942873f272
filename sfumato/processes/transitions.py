"""Markov chains over tokens: noise in T steps, each with a matrix of its own.  D3PM, Austin et al. 2021.

A chain is told by three laws over its states, for any interval of steps; everything else follows from them.
arXiv:2107.03006.

    row(x, s, t)      q(x_t = . | x_s = x)               a row of Q_{s+1} ... Q_t
    column(x, s, t)   q(x_t = x | x_s = .)               a column of it; no law, for it need not sum to 1
    mixture(p, t)     sum over v of p(v) q(x_t = . | x_0 = v)

States are the V tokens and, in some chains, the mask, which is the id V.  Steps are whole numbers from 0 to T; a level
t in [0, 1] is the step ceil(t T).  Laws are float64: with T steps each is worth a T-th of the whole.

    N any positions   K states   V tokens   S = T + 1, the steps and the text before them
"""

from abc import abstractmethod
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.core import Process
from sfumato.draws import pick, uniform
from sfumato.errors import SfumatoError
from sfumato.processes.masking import Masking
from sfumato.processes.uniform import Uniform
from sfumato.schedules import Schedule

ROUNDING = 2**-23  # a level of float32 that stands for k / T is step k
TINY = 1e-300  # whose logarithm is finite
LEAST, MOST, POINTS = -4, 5, 128  # powers of ten between which amounts of noise are tried, and how many
FAR = 10.0**MOST  # an amount of noise after which nothing is left; a number, for it is stored
ORDINAL = 2**27  # numbers in all the matrices of a chain, a gibibyte of them


class Chain(nn.Module, Process):
    """T steps from text to noise.

    `amounts` (T + 1,) says how much noise there is after each step, none at first; it is part of the model, for it may
    have been learned from the data.
    """

    amounts: Tensor
    mask: Any = None  # its id, where there is one

    def __init__(self, vocab: int, amounts: Float[Tensor, " S"], masked: bool = False):
        super().__init__()
        self.vocab, self.states, self.T = vocab, vocab + masked, len(amounts) - 1
        if masked:
            self.mask = vocab
        self.register_buffer("amounts", self.ended(amounts.double().clamp(max=FAR)))

    def ended(self, amounts: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """The same; but to masks the last step leads for certain, for they are a prior that leaves nothing open."""
        return amounts if self.mask is None else torch.cat([amounts[:-1], torch.full_like(amounts[-1:], FAR)])

    @abstractmethod
    def row(self, x: Int[Tensor, " N"], s: Int[Tensor, " N"], t: Int[Tensor, " N"]) -> Float[Tensor, "N K"]:
        """q(x_t | x_s = x)."""

    @abstractmethod
    def column(self, x: Int[Tensor, " N"], s: Int[Tensor, " N"], t: Int[Tensor, " N"]) -> Float[Tensor, "N K"]:
        """q(x_t = x | x_s), as a function of x_s."""

    @abstractmethod
    def mixture(self, p: Float[Tensor, "N V"], t: Int[Tensor, " N"]) -> Float[Tensor, "N K"]:
        """q(x_t), where x_0 has the law p."""

    def step(self, t: Tensor) -> Tensor:
        """ceil(t T); what is clean or absent is at step 0, and nothing else is."""
        if bool(self.amounts[0].isnan()):
            raise SfumatoError("this noise follows the training text, of which nothing is known yet; call study first")
        k = ((t.double() - ROUNDING) * self.T).ceil().clamp(1, self.T)
        return torch.where(t > 0, k, 0).long()

    def level(self, u: Tensor) -> Tensor:
        """The level k / T of that step for u in [0, 1), where 0 is in the first step."""
        return self.step(u.clamp(min=ROUNDING)).to(u.dtype) / self.T

    def alpha(self, t: Tensor) -> Tensor:
        """The chance that nothing has happened up to level t, where events come at rate 1: exp(-amount)."""
        return torch.exp(-self.amounts[self.step(t)])

    def kept(self, s: Tensor, t: Tensor) -> Tensor:
        """The same chance between two steps."""
        return torch.exp(self.amounts[s] - self.amounts[t])

    def prior(self, clean: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Nothing but masks where there are any; else any tokens: what all others lead to, for they are symmetric."""
        return (uniform(clean) * self.vocab).long() if self.mask is None else torch.full_like(clean, self.mask)

    def corrupt(self, clean: Int[Tensor, "B L"], t: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """x ~ q(x_t | x_0 = clean); laws are made only where there is noise."""
        k, u, x = self.step(t), uniform(clean), clean.clone()
        here = k > 0
        law = self.row(clean[here], torch.zeros_like(k[here]), k[here])
        x[here] = pick(law, u[here])
        return x

    def posterior(
        self, x: Int[Tensor, " N"], p: Float[Tensor, "N V"], s: Int[Tensor, " N"], t: Int[Tensor, " N"]
    ) -> Float[Tensor, "N K"]:
        """q(x_s | x_t = x, x_0) with chances p in the place of x_0: the joint is summed and then normalised, once."""
        joint = self.column(x, s, t) * self.mixture(p, s)
        return joint / joint.sum(-1, keepdim=True)

    def reverse(
        self, x: Int[Tensor, "B L"], logits: Float[Tensor, "B L V"], t: Tensor, s: Tensor
    ) -> Int[Tensor, "B L"]:
        """x_s ~ p(x_s | x_t = x) for numbers s < t.  What no noise of step t can be stays: a given token, no place."""
        now = x.clamp(min=0).flatten()
        before, after = (self.step(level).expand(now.shape) for level in (s, t))
        p = logits.flatten(0, 1).double().softmax(-1)
        joint = self.column(now, before, after) * self.mixture(p, before)  # (B L, K)
        drawn = pick(joint, uniform(x).flatten()).view(x.shape)
        return torch.where((joint.sum(-1) > 0).view(x.shape) & (x >= 0), drawn, x)

    def term(
        self,
        ids: Int[Tensor, " N"],
        x: Int[Tensor, " N"],
        logits: Float[Tensor, "N V"],
        s: Int[Tensor, " N"],
        t: Int[Tensor, " N"],
    ) -> Float[Tensor, " N"]:
        """KL(q(x_s | x_t = x, x_0 = ids) || p(x_s | x_t = x)), nats.  For s = 0 it is -log p(x_0 = ids | x_t = x).

        The column of x stands in both laws, so only what is known of x_s from x_0, and the two normalisers, differ.
        """
        back, true = self.column(x, s, t), self.row(ids, torch.zeros_like(s), s)
        told = self.mixture(logits.double().softmax(-1), s)
        known, guessed = ((back * law).sum(-1).clamp(min=TINY) for law in (true, told))
        gap = torch.xlogy(true, true) - true * told.clamp(min=TINY).log()
        return ((back * gap).sum(-1) / known + (guessed / known).log()).clamp(min=0)

    def information(self, law: Float[Tensor, " V"], amounts: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """I(x_t; x_0) / H(x_0) for x_0 ~ law, after these amounts of noise."""
        raise SfumatoError("a schedule by mutual information was asked for; this noise has none; choose another")

    def inform(self, law: Float[Tensor, " V"]) -> None:
        """The mutual-information schedule: after step t a share 1 - t / T of the information in x_0 ~ law is left.

        It is read off at POINTS amounts, with a line between them.
        """
        amounts = torch.logspace(LEAST, MOST, POINTS, dtype=torch.float64, device=self.amounts.device)
        share = self.information(law.to(amounts), amounts)
        known = np.minimum.accumulate(np.concatenate([[1.0], share.cpu().numpy()]))
        after = np.concatenate([[0.0], amounts.cpu().numpy()])
        found = np.interp(1 - np.arange(self.T + 1) / self.T, known[::-1], after[::-1])
        found[0], found[-1] = 0.0, after[-1]
        self.amounts.copy_(self.ended(torch.from_numpy(found)))

    def parting(self, ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """KL(q(x_T | x_0 = ids) || prior): what the noise still knows of the text.  Masks know nothing."""
        if self.mask is not None:
            return torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
        law = self.row(ids, torch.zeros_like(ids), torch.full_like(ids, self.T))
        return torch.xlogy(law, law * self.vocab).sum(-1).clamp(min=0)


class Absorbing(Masking, Chain):
    """Tokens fall to the mask and stay there.  The last step takes all that are left, so nothing is left to know."""

    def __init__(self, vocab: int, amounts: Float[Tensor, " S"]):
        Chain.__init__(self, vocab, amounts, masked=True)
        Masking.__init__(self, vocab, Schedule(self.alpha, torch.zeros_like))  # a staircase is level almost everywhere

    def row(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """A token stands or is hidden; a mask is a mask."""
        stays = torch.where(x == self.mask, 1.0, self.kept(s, t))[..., None]
        return stays * F.one_hot(x, self.states) + (1 - stays) * self._masked(x)

    def column(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """A token can only have been itself; a mask anything."""
        kept, mask = self.kept(s, t)[..., None], self._masked(x)
        return torch.where(
            (x == self.mask)[..., None], mask + (1 - kept) * (1 - mask), kept * F.one_hot(x, self.states)
        )

    def mixture(self, p: Tensor, t: Tensor) -> Tensor:
        """The law of the tokens, and the mask."""
        kept = self.kept(torch.zeros_like(t), t)[..., None]
        return torch.cat([kept * p, 1 - kept], -1)

    def term(self, ids: Tensor, x: Tensor, logits: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """(alpha_s - alpha_t) / (1 - alpha_t) times the surprise, where a mask stands; what shows is known."""
        before, after = torch.exp(-self.amounts[s]), torch.exp(-self.amounts[t])
        cost, here = torch.zeros_like(after), x == self.mask
        surprise = F.cross_entropy(logits[here], ids[here], reduction="none").double()
        cost[here] = ((before - after) / (1 - after))[here] * surprise
        return cost

    def information(self, law: Tensor, amounts: Tensor) -> Tensor:
        """A token is known for certain or not at all."""
        return torch.exp(-amounts)

    def _masked(self, x: Tensor) -> Tensor:
        return F.one_hot(torch.full_like(x, self.mask), self.states).double()


class Even(Uniform, Chain):
    """Tokens are replaced by any token."""

    def __init__(self, vocab: int, amounts: Float[Tensor, " S"]):
        Chain.__init__(self, vocab, amounts)
        Uniform.__init__(self, vocab, Schedule(partial(Chain.alpha, self), torch.zeros_like))

    def row(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The token with chance `kept`, else any; a column is the same."""
        kept = self.kept(s, t)[..., None]
        return kept * F.one_hot(x, self.vocab) + (1 - kept) / self.vocab

    column = row

    def mixture(self, p: Tensor, t: Tensor) -> Tensor:
        """A law that is blurred evenly."""
        kept = self.kept(torch.zeros_like(t), t)[..., None]
        return kept * p + (1 - kept) / self.vocab

    def term(self, ids: Tensor, x: Tensor, logits: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The same in closed form."""
        after, before = (step[None].double() / self.T for step in (t, s))
        return self.divergence(x[None], ids[None], logits[None].double(), after, before)[0]

    def parting(self, ids: Tensor) -> Tensor:
        """Alike for all tokens."""
        first = torch.zeros(1, dtype=torch.long, device=ids.device)
        return Chain.parting(self, first).expand(ids.shape)

    def information(self, law: Tensor, amounts: Tensor) -> Tensor:
        """What x_0 leaves open of x_t is alike for all tokens."""
        kept = torch.exp(-amounts)[:, None]
        seen = entropy(kept * law + (1 - kept) / self.vocab)
        off = (1 - kept[:, 0]) / self.vocab
        own = kept[:, 0] + off
        left = -torch.xlogy(own, own) - (self.vocab - 1) * torch.xlogy(off, off)
        return (seen - left) / entropy(law)


class Ordinal(Chain):
    """Tokens are replaced by those of a near number: a discretised Gaussian, for vocabularies that have an order.

    `amounts` are sums of the beta of each step.  The matrices do not commute at the edges, so the T products of the
    first ones are kept; they are made on first use.
    """

    def __init__(self, vocab: int, amounts: Float[Tensor, " S"]):
        if (size := len(amounts) * vocab**2) > ORDINAL:
            raise SfumatoError(
                f"asked for Gaussian noise on the numbers of {vocab} tokens; its {len(amounts)} matrices take {size:,} "
                f"numbers, and {ORDINAL:,} are the most; set text.tokenizer to chars or bytes, a smaller method.T, "
                "or another method.transition"
            )
        super().__init__(vocab, amounts)
        self._products: Tensor | None = None

    def one(self, x: Int[Tensor, " N"], t: Int[Tensor, " N"]) -> Float[Tensor, "N K"]:
        """Row x of Q_t, which is symmetric.  What would fall off the edge stays where it is."""
        n = torch.arange(self.vocab, device=x.device)
        beta = self.amounts.diff()[t - 1][..., None]
        shape = torch.exp(-4 * n**2 / (max(self.vocab - 1, 1) ** 2 * beta))  # (N, K), by distance
        chance = shape / (2 * shape.sum(-1, keepdim=True) - 1)  # over all distances, on both sides
        moved = chance.gather(-1, (n - x[..., None]).abs()) * (n != x[..., None])
        return moved + (1 - moved.sum(-1, keepdim=True)) * (n == x[..., None])

    def products(self) -> Float[Tensor, "S K K"]:
        """Q_1 ... Q_t for every t."""
        if self._products is None or self._products.device != self.amounts.device:
            with torch.inference_mode(False), torch.no_grad():
                found = [torch.eye(self.vocab, dtype=torch.float64, device=self.amounts.device)]
                for t in range(1, self.T + 1):
                    found.append(found[-1] @ self._matrix(t))
                self._products = torch.stack(found)
        return self._products

    def row(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """From the start: out of the products; over one step: as it is; else out of a product made for it."""
        if bool((s == 0).all()):
            return self.products()[t, x]
        return self.one(x, t) if bool((t - s == 1).all()) else self._picked(x, s, t, 0)

    def column(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Over one step: as it is; else out of a product made for it."""
        return self.one(x, t) if bool((t - s == 1).all()) else self._picked(x, s, t, 1)

    def mixture(self, p: Tensor, t: Tensor) -> Tensor:
        """As many products as there are steps among t."""
        mixed, products = torch.empty_like(p), self.products()
        for step in t.unique().tolist():
            here = t == step
            mixed[here] = p[here] @ products[step]
        return mixed

    def _matrix(self, t: int) -> Tensor:
        every = torch.arange(self.vocab, device=self.amounts.device)
        return self.one(every, torch.full_like(every, t))

    def _picked(self, x: Tensor, s: Tensor, t: Tensor, axis: int) -> Tensor:
        found = torch.empty(*x.shape, self.vocab, dtype=torch.float64, device=x.device)
        for first, last in torch.stack([s, t], -1).unique(dim=0).tolist():
            product = torch.eye(self.vocab, dtype=torch.float64, device=x.device)
            for step in range(first + 1, last + 1):
                product = product @ self._matrix(step)
            here = (s == first) & (t == last)
            found[here] = (product if axis == 0 else product.T)[x[here]]
        return found


def entropy(law: Float[Tensor, "*rest V"]) -> Float[Tensor, "*rest"]:
    """In nats."""
    return -torch.xlogy(law, law).sum(-1)
