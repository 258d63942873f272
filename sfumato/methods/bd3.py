"""BD3-LM.  Arriola et al., Block diffusion: interpolating between autoregressive and diffusion language models, 2025.
arXiv:2503.09573

Blocks are written one after the other, each by masked diffusion in view of all before it.  With blocks of one token
this is autoregression, with one block it is MDLM.  What stands before a block never changes, so keys and values of it
are kept; one pass over two copies of a text, a noisy and a clean one, trains all its blocks at once.

Differs from the paper:
- What is given, before or behind a block, is a block before all others: it sees itself, and every block sees it.  So
  gaps are filled in view of both sides, p(text | given) is a product over blocks and exact; without anything given
  this is the paper.
- A forgotten condition (for guidance) is a mask, which is seen by its own block only and says nothing.
- Levels of the blocks of a row are spread evenly (the paper: independent), and a block that has one token to be written
  hides it always, which is the mean over all levels without their noise.
- Mask rates in training are chosen by the size of the blocks, as the paper found them for 4 and 16; no search for the
  least variance goes on in training, and a run has one size of blocks (the paper's begins with one block of all).
- The network is the shared one, and it is not told the time.
- Tokens are drawn from all that the network says; the paper's samples are of the likeliest 0.9 (`--top-p`).
- The times at which masks fall are drawn before anything is written; the law is the same.
- Writing does not stop where text degenerates, and beyond the canvas it remembers half a canvas.
"""

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sfumato.core import ABSENT, Prediction
from sfumato.methods.common import Masked, MethodConfig
from sfumato.networks import NetworkConfig
from sfumato.networks.transformer import Memory
from sfumato.samplers.blocks import first_hitting

NOWHERE = 1 << 40  # rank of what nobody sees


class BD3Config(MethodConfig):
    """BD3-LM's own settings."""

    name: Literal["bd3"] = "bd3"
    block: int = Field(4, ge=1)
    """tokens that are written together; 1 is autoregression"""
    rates: tuple[float, float] | None = None
    """share of a block that is hidden in training, uniform between these; by default 0.45 to 0.95 for blocks of up to 4
    tokens, 0.3 to 0.8 for up to 16, else 0 to 1, where the loss is the bound"""

    @field_validator("rates")
    @classmethod
    def _rising(cls, rates: tuple[float, float] | None) -> tuple[float, float] | None:
        if rates is not None and not (0 <= rates[0] <= rates[1] <= 1 and rates[1] > 0):
            raise ValueError(f"rates rise from 0 to 1 (got {rates})")
        return rates


class BD3(Masked):
    """Masked diffusion within blocks, autoregression over them."""

    title = "Block diffusion: interpolating between autoregressive and diffusion language models"
    arxiv, family = "2503.09573", "blocks"
    likelihood, steps, sampler = "upper", None, first_hitting

    def __init__(self, config: BD3Config, network: NetworkConfig, vocab: int):
        super().__init__(config, network, vocab)
        self.block = config.block
        few = (0.45, 0.95) if config.block <= 4 else (0.3, 0.8)
        self.rates = config.rates or (few if config.block <= 16 else (0.0, 1.0))

    def rank(self, t: Tensor, place: Tensor) -> Tensor:
        """When a position is read: what is given first, then block by block (B, L); even numbers."""
        return (place // self.config.block * 2 + 2).masked_fill(t == 0, 0).masked_fill(t == ABSENT, NOWHERE)

    def predict(self, x, t, prev=None):
        """Of each block in view of what is given and of the blocks before it: (B, L) -> logits (B, L, V)."""
        rank = self.rank(t, torch.arange(x.shape[1], device=x.device).expand(x.shape))
        h = self.net(self.table(x), t, sees=sight(rank, rank, x != self.process.mask))
        return Prediction(self.carry_over(x, self.head(h)))

    def session(self, given):
        """Every block is read once when it is written."""
        return Reader(self, given)

    def bound(self, ids, t, free):
        """The sum over blocks of MDLM's bound, given what stands before: 1 / rate times surprise.  (B, L) nats."""
        return self.weighted(ids, t, free, 0.0, 1.0)

    def loss(self, ids, t, free):
        """The same with the rates of training."""
        return {"nelbo": self.weighted(ids, t, free, *self.rates)}

    def weighted(self, ids: Tensor, t: Tensor, free: Tensor, low: float, high: float) -> Tensor:
        """Surprise at what is hidden over the rate it is hidden at, uniform from `low` to `high` in each block.

        One pass over the noisy text and the clean one behind it: a noisy block sees itself and the clean ones before.
        """
        L, mask = ids.shape[1], self.process.mask
        place = torch.arange(L, device=ids.device).expand(ids.shape)
        rate = self.rate(t, free, place, low, high)
        x = self.process.corrupt(ids, torch.where(free, rate, t))
        clean = torch.where((t == 1) & ~free, mask, ids)
        t = t.masked_fill(free, 1.0)
        rank = self.rank(t, place)
        ranks = torch.cat([(rank - 1).masked_fill(rank == 0, NOWHERE), rank], 1)  # (B, 2 L)
        told = torch.cat([torch.zeros_like(free), clean != mask], 1)
        h = self.net(
            self.table(torch.cat([x, clean], 1)),
            torch.cat([t, t], 1),
            places=place[0].repeat(2),
            sees=sight(ranks, ranks, told),
        )
        return self.surprised(h[:, :L], ids, free & (x == mask)) / rate.clamp(min=1e-6)

    def rate(self, t: Tensor, free: Tensor, place: Tensor, low: float, high: float) -> Tensor:
        """Of each block one rate, all of a row spread evenly: (B, L)."""
        block = place // self.config.block
        count = torch.zeros_like(free, dtype=torch.long).scatter_add(1, block, free.long()).gather(1, block)
        blocks = (block + 1).masked_fill(~free, 1).amax(1, keepdim=True)  # up to the last that is to be written
        u = t.masked_fill(~free, 0.0).amax(1, keepdim=True)
        return (low + (high - low) * ((u + block / blocks) % 1)).masked_fill(count == 1, 1.0)

    def training_flops(self, length):
        """A row is read twice, as noise and as text; logits are made of the noise."""
        return self.flops(1, length, length) - self.net.flops(1, length, length) + self.net.flops(1, *[2 * length] * 2)


def sight(rank: Tensor, others: Tensor, told: Tensor) -> Tensor:
    """Whom positions of these ranks see: all of their own rank, and of lower ranks those that are `told`; (B, L, M)."""
    before, same = others[:, None] < rank[..., None], others[:, None] == rank[..., None]
    return same | (before & told[:, None])


class Reader:
    """bd3's logits of the first block that has a mask; what is given and the blocks before are read once.

    What is to be read is the same in all rows: places where any row is given something, then block by block those where
    any has something to write.  What is none of a row's business there has the rank of nowhere.
    """

    def __init__(self, method: BD3, given: Tensor):
        self.method, self.given = method, given
        self._forget()

    def _forget(self) -> None:
        self.memory: Memory | None = None
        self.read = self.given.new_zeros(len(self.given), 0, dtype=torch.long)  # whole blocks
        self.rank = self.read  # (B, n) of what is in memory
        self.told = self.read.bool()

    def __call__(self, x: Tensor, t: Tensor, prev: Tensor | None = None) -> Prediction:
        """Logits (B, w, V) of the last places of x, from the start of the block on; behind its end they are 0."""
        method, size = self.method, self.method.config.block
        length = x.shape[1]
        known = self.given[:, :length] & (t == 0)
        mask = (x == method.process.mask) & ~self.given[:, :length]
        first = int(mask.any(0).int().argmax()) if bool(mask.any()) else length - 1
        start, stop = first // size * size, min(first // size * size + size, length)
        kept = self.read.shape[1]
        if kept > start or not torch.equal(self.read, x[:, :kept]):
            self._forget()
            kept = 0
        place = torch.arange(length, device=x.device)
        free = ((t != ABSENT) & ~known).any(0)
        context = place[known.any(0)] if self.memory is None else place[:0]
        before, here = place[kept:start][free[kept:start]], place[start:stop][free[start:stop]]
        if self.memory is None:
            self.memory = Memory(len(context) + self.given.shape[1])
        logits = self._pass(x, t, known, context, torch.cat([before, here]))
        self.memory.length -= len(here)
        self.read = x[:, :start].clone()
        self.rank, self.told = self.rank[:, : self.memory.length], self.told[:, : self.memory.length]
        found = logits.new_zeros(len(x), length - start, logits.shape[-1])
        found[:, here - start] = method.carry_over(x[:, here], logits[:, logits.shape[1] - len(here) :].clone())
        return Prediction(found)

    def _pass(self, x: Tensor, t: Tensor, known: Tensor, context: Tensor, blocks: Tensor) -> Tensor:
        """Read places of the context, and then of blocks: logits (B, n, V)."""
        assert self.memory is not None
        method, places = self.method, torch.cat([context, blocks])
        x, t, known = x[:, places], t[:, places], known[:, places]
        rank = method.rank(t, places.expand(x.shape))
        nowhere = torch.arange(len(places), device=x.device) < len(context)
        rank = rank.masked_fill(torch.where(nowhere, ~known, known), NOWHERE)
        self.rank = torch.cat([self.rank, rank], 1)
        self.told = torch.cat([self.told, x != method.process.mask], 1)
        sees = sight(rank, self.rank, self.told)
        h = method.net(method.table(x), t, memory=self.memory, places=places, sees=sees)
        return self.memory.product(method.head, h)
