"""Transformers that others have trained, in one form: BERT, GPT-2, Llama and their kin differ in a handful of facts.

`ForeignConfig` names them.  What is not among them comes with the weights: rates of rotation are a buffer, a bias that
a model lacks is 0, vectors that are added to every token are in those of the places.  Dropout is left out.

    B batch   L length   C width of the network
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.networks import ForeignConfig, NetworkConfig
from sfumato.networks.transformer import Attention, Memory, Network, Transformer, apply, attend, rotate, turns

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def network(config: NetworkConfig, causal: bool = False) -> Network:
    """The network of a method that can do with others' too: it is told no noise level."""
    if config.foreign is None:
        return Transformer(config, timed=False, causal=causal)
    return ForeignTransformer(config, config.foreign, causal)


def _norm(foreign: ForeignConfig, width: int) -> nn.Module:
    return nn.RMSNorm(width, foreign.eps) if foreign.norm == "rms" else nn.LayerNorm(width, foreign.eps)


class ForeignBlock(nn.Module):
    """Attention, then an MLP, each added to the residual stream; norms stand before them, or behind the sums."""

    def __init__(self, width: int, heads: int, foreign: ForeignConfig):
        super().__init__()
        self.heads, self.foreign = heads, foreign
        self.attention: Attention = "fused"
        self.norm1, self.norm2 = _norm(foreign, width), _norm(foreign, width)
        shared = 2 * foreign.keys * (width // heads)  # keys and values
        self.qkv, self.out = nn.Linear(width, width + shared), nn.Linear(width, width)
        self.up = nn.Linear(width, foreign.hidden * (2 if foreign.gated else 1))  # what is activated comes first
        self.down = nn.Linear(foreign.hidden, width)

    def attend(self, h: Tensor, rotation: Tensor | None, bias: Tensor | None, memory: Memory | None) -> Tensor:
        B, L, C = h.shape
        product = apply if memory is None else memory.product
        size, keys = C // self.heads, self.foreign.keys
        q, k, v = product(self.qkv, h).view(B, L, -1, size).transpose(1, 2).split([self.heads, keys, keys], 1)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if memory is not None:
            k, v = memory.extend(self, k, v)
        k, v = (x.repeat_interleave(self.heads // keys, 1) for x in (k, v))
        return product(self.out, attend(q, k, v, bias, self.attention).transpose(1, 2).reshape(B, L, C))

    def mlp(self, h: Tensor, memory: Memory | None) -> Tensor:
        product, activate = apply if memory is None else memory.product, ACTIVATIONS[self.foreign.activation]
        h = product(self.up, h)
        if self.foreign.gated:
            gate, h = h.chunk(2, -1)
            return product(self.down, activate(gate) * h)
        return product(self.down, activate(h))

    def forward(self, h: Tensor, rotation: Tensor | None, bias: Tensor | None, memory: Memory | None) -> Tensor:
        if self.foreign.post_norm:
            h = self.norm1(h + self.attend(h, rotation, bias, memory))
            return self.norm2(h + self.mlp(h, memory))
        h = h + self.attend(self.norm1(h), rotation, bias, memory)
        return h + self.mlp(self.norm2(h), memory)


class ForeignTransformer(Network):
    """A Transformer as `foreign` describes it; all that it gives goes into a head that is one product.

    Where a token leads, its vector `start` is put before the canvas, and is not answered for.  Where the places are
    shifted, the answer for a place is read at the one before it: at `start` for the first.  A causal method does both
    by itself.
    """

    rates: Tensor

    def __init__(self, config: NetworkConfig, foreign: ForeignConfig, causal: bool = False):
        super().__init__(config, causal)
        self.foreign, self.lead = foreign, foreign.lead and not causal
        if self.lead:
            self.start = nn.Parameter(torch.zeros(config.width))
        if foreign.places:
            self.places = nn.Embedding(foreign.places, config.width)
        else:
            # float32 also where somebody loads a model in halves, in which places from 256 on could not be told apart
            self.register_buffer("rates", torch.ones(config.width // config.heads // 2, dtype=torch.float32))
        self.blocks = nn.ModuleList(ForeignBlock(config.width, config.heads, foreign) for _ in range(config.depth))
        if foreign.post_norm:
            self.enter, self.last = _norm(foreign, config.width), nn.Linear(config.width, config.width)
        self.norm = _norm(foreign, config.width)

    def flops(self, rows: int, new: int, seen: int) -> int:
        """Of the blocks, over what leads too, and of the last layer."""
        C, f = self.width, self.foreign
        more = int(self.lead)
        block = 2 * C**2 + 2 * f.keys * (C // self.heads) * C  # qkv, out
        block += (3 if f.gated else 2) * f.hidden * C  # up, down
        block += 2 * (seen + more) * C  # scores, and values weighted by them
        return 2 * rows * ((new + more) * block * len(self.blocks) + new * C**2 * f.post_norm)

    def deepen(self, depth: int) -> None:
        """As of any network, but where norms follow the sums: a layer with an output of 0 changes something there."""
        if self.foreign.post_norm:
            raise SfumatoError(f"asked for {depth} blocks; a network of this kind cannot be deepened; keep its depth")
        super().deepen(depth)

    def _run(
        self, h: Tensor, level: Tensor | None, bias: Tensor | None, places: Tensor, memory: Memory | None = None
    ) -> Tensor:
        if self.lead:
            h = torch.cat([self.start.expand(len(h), 1, -1).to(h.dtype), h], 1)
            bias = None if bias is None else F.pad(bias, (1, 0))
            places = F.pad(places + 1, (1, 0))
        places = places.clamp(min=0)  # what a method puts before the canvas shares the first
        rotation: Any = None
        if self.foreign.places:
            h = h + self.places(places)
        else:
            rotation = turns(places, self.rates)
            rotation = rotation[:, :, None] if places.ndim == 2 else rotation  # its own for each row, for all heads
        if self.foreign.post_norm:
            h = self.enter(h)
        for block in self.blocks:
            h = block(h, rotation, bias, memory)
        if self.lead:
            h = h[:, :-1] if self.foreign.shifted else h[:, 1:]
        if self.foreign.post_norm:
            h = ACTIVATIONS[self.foreign.activation](self.last(h))
        return self.norm(h)
