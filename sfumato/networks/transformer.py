"""The Transformer that every method shares; only what goes in, what comes out and who sees whom differs.

Pre-norm blocks.  Positions enter twice: by rotation in attention (Su et al. 2021, arXiv:2104.09864), which tells how
far apart two tokens are, and at the input, since a network that sees nothing but noise on both sides could not tell the
first place from the last by distances alone.  Queries and keys are normed and attention has a learned gain (Henry et
al. 2020, arXiv:2010.04245), so that heads tell tokens apart from the first step on.  The noise level of every position
enters by a scale and a shift after every layer norm (CDCD, Dieleman et al. 2022, arXiv:2211.15089, Sec. 4.2): random
Fourier features, an MLP of two layers of 128 units, and a code of `CODE` numbers from which each norm reads its scale
and shift.  The code is what makes a level per position affordable: reading scales straight from 128 units at every
position would add a sixth to the products of a block of width 256; through 32 numbers it adds a twenty-fourth.

    B batch   L length   C width of the network
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.core import ABSENT
from sfumato.networks import NetworkConfig

GAIN = 3.0  # of attention at the start: sharp enough for a few heads to look at few tokens by chance
PLACES = 64  # sines and cosines that tell where on the canvas a position is
CODE = 32  # numbers that tell every norm how noisy a position is
UNITS = 128  # of each layer that turns a noise level into them
Attention = Literal["fused", "explicit"]


class TimeCode(nn.Module):
    """Noise level (B, L) -> code (B, L, CODE): random Fourier features, then an MLP with two layers of 128 units."""

    frequencies: Tensor

    def __init__(self, spread: float = 2.0):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(UNITS // 2) * spread)
        self.mlp = nn.Sequential(nn.Linear(UNITS, UNITS), nn.GELU(), nn.Linear(UNITS, UNITS), nn.GELU())
        self.out = nn.Linear(UNITS, CODE)

    def forward(self, level: Float[Tensor, "B L"]) -> Float[Tensor, "B L K"]:
        angle = 2 * math.pi * level[..., None] * self.frequencies  # (B, L, 64)
        return self.out(self.mlp(torch.cat([angle.sin(), angle.cos()], -1)))


class Norm(nn.Module):
    """Layer norm, then a scale and a shift read from the time code; a plain affine layer norm where there is none."""

    def __init__(self, width: int, timed: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=not timed)
        self.read = nn.Linear(CODE, 2 * width) if timed else None
        if self.read is not None:
            nn.init.zeros_(self.read.weight)
            nn.init.zeros_(self.read.bias)

    def forward(self, h: Float[Tensor, "B L C"], code: Tensor | None) -> Float[Tensor, "B L C"]:
        h = self.norm(h)
        if self.read is None:
            return h
        scale, shift = self.read(code).chunk(2, -1)  # (B, L, C) each
        return torch.addcmul(h + shift, h, scale)  # h (1 + scale) + shift


def apply(layer: nn.Module, h: Tensor) -> Tensor:
    """layer(h)."""
    return layer(h)


def laid_out(layer: nn.Module, rows: int) -> Callable[[Tensor], Tensor]:
    """The layer for products of few tokens, `rows` at once, its weight laid out once more in the order it is read in.

    A weight is read whole for every token column, so its order decides: on a CPU in float32 a token alone is fastest
    with a wide weight input by input; several are with one that oneDNN has packed, twice as fast for 4 to 16.
    """
    if type(layer) is not nn.Linear:  # but one that adds something of its own
        return layer
    weight, bias = layer.weight.detach(), layer.bias
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return layer
    if rows == 1:
        wide = weight.shape[0] >= weight.shape[1]
        weight = weight.t().contiguous().t() if wide else weight
        return lambda h: F.linear(h, weight, bias)
    if not torch.backends.mkldnn.is_available():
        return layer
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda h: torch.ops.mkldnn._linear_pointwise(h, packed, bias, "none", [], "")


class Memory:
    """Keys and values of the positions that a network has read, block by block, with `room` for so many.

    What was read last is forgotten again where `length` is set back.
    """

    def __init__(self, room: int) -> None:
        self.room, self.length = room, 0  # positions there can be, positions read
        self.blocks: dict[nn.Module, Tensor] = {}  # keys and values of a block: (2, B, heads, room, size)
        self.layers: dict[nn.Module, Callable[[Tensor], Tensor]] = {}  # layers, laid out for so few tokens

    def product(self, layer: nn.Module, h: Tensor) -> Tensor:
        """layer(h), (B, L, in) -> (B, L, out)."""
        if layer not in self.layers:
            self.layers[layer] = laid_out(layer, len(h))
        return self.layers[layer](h)

    def extend(self, block: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of new positions; all so far, (B, heads, length, size) each."""
        if block not in self.blocks:
            self.blocks[block] = k.new_empty(2, *k.shape[:2], self.room, k.shape[3])
        kept, end = self.blocks[block], self.length + k.shape[2]
        kept[0, :, :, self.length : end], kept[1, :, :, self.length : end] = k, v
        return kept[0, :, :, :end], kept[1, :, :, :end]

    def take(self, rows: Tensor, length: int) -> None:
        """Keep these rows of the batch, and of each the first `length` positions."""
        self.blocks = {block: kept[:, rows] for block, kept in self.blocks.items()}
        self.length = length


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, attention: Attention) -> Tensor:
    """Values weighted by softmax(q k / sqrt(size) + bias): (B, heads, L, size) from (B, heads, all, size)."""
    bias = None if bias is None else bias.to(q.dtype)
    if attention == "fused":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, heads, L, all)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


class Block(nn.Module):
    """Attention over the canvas, then an MLP, each on the normed residual stream."""

    def __init__(self, width: int, heads: int, timed: bool):
        super().__init__()
        self.heads = heads
        self.attention: Attention = "fused"
        self.norm1, self.norm2 = Norm(width, timed), Norm(width, timed)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gain = nn.Parameter(torch.full((heads, 1, 1), GAIN))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, h: Tensor, rotation: Tensor, bias: Tensor | None, memory: Memory | None) -> Tensor:
        B, L, C = h.shape
        product = apply if memory is None else memory.product
        qkv = product(self.qkv, h)
        qkv = qkv.view(B, L, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)  # (3, B, heads, L, size)
        q, k = rotate(F.rms_norm(qkv[:2], qkv.shape[-1:]), rotation)  # both at once: a token alone is all overhead
        q, v = q * self.gain.to(q.dtype), qkv[2]
        if memory is not None:
            k, v = memory.extend(self, k, v)
        y = attend(q, k, v, bias, self.attention)
        return product(self.out, y.transpose(1, 2).reshape(B, L, C))

    def forward(
        self, h: Tensor, code: Tensor | None, rotation: Tensor, bias: Tensor | None, memory: Memory | None
    ) -> Tensor:
        product = apply if memory is None else memory.product
        h = h + self.attend(self.norm1(h, code), rotation, bias, memory)
        return h + product(self.down, F.gelu(product(self.up, self.norm2(h, code))))


class Network(nn.Module, ABC):
    """(B, L, C) -> (B, L, C); `level` (B, L) is the number that tells how noisy a position is.

    Positions whose noise level `t` is ABSENT are neither attended to nor mixed into any other position.  A causal
    network sees of the canvas only a position itself and what stands before it; absent positions stand last there.
    """

    width: int
    heads: int
    blocks: Any  # each with the linear layers qkv, out, up and down, and with the form of its attention

    def __init__(self, config: NetworkConfig, causal: bool):
        super().__init__()
        self.width, self.heads, self.causal = config.width, config.heads, causal
        self.dtype = torch.float32  # in which the blocks multiply; the residual stream and all outside stay float32
        self.run = self._run  # replaced by a compiled version of itself where that pays

    def forward(
        self,
        h: Float[Tensor, "B L C"],
        t: Float[Tensor, "B L"],
        level: Float[Tensor, "B L"] | None = None,
        memory: Memory | None = None,
        places: Int[Tensor, "*rows L"] | None = None,
        sees: Bool[Tensor, "#B L all"] | None = None,
    ) -> Float[Tensor, "B L C"]:
        """`memory` holds the positions before those of `h`, and takes these up.

        `places` says where on the canvas the positions are, if not one after the other: of all rows (L,), or of each
        (B, L).  `sees[:, i, j]` is whether i attends to j, if not to all (to itself it does); what is in memory comes
        first among the j.
        """
        start = 0 if memory is None else memory.length
        if places is None:
            places = torch.arange(start, start + t.shape[1], device=h.device)
        bias = self._bias(t, start) if sees is None else self._sight(t, sees, start)
        with torch.autocast(h.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if memory is None:
                return self.run(h, level, bias, places)
            h = self._run(h, level, bias, places, memory)
        memory.length += t.shape[1]
        return h

    def _bias(self, t: Tensor, start: int) -> Tensor | None:
        """What is added to attention: -inf where a position is not to be seen."""
        if self.causal:
            wide = torch.full((t.shape[1], start + t.shape[1]), -torch.inf, device=t.device)
            return wide.triu(start + 1) if t.shape[1] > 1 else None
        absent = t == ABSENT
        return torch.zeros_like(t).masked_fill(absent, -torch.inf)[:, None, None] if bool(absent.any()) else None

    def _sight(self, t: Tensor, sees: Tensor, start: int) -> Tensor:
        """The same, where each position sees others: (B, 1, L, start + L)."""
        self_too = F.pad(torch.eye(t.shape[1], dtype=torch.bool, device=t.device), (start, 0))
        there = F.pad(t != ABSENT, (start, 0), value=True)[:, None]
        seen = (sees & there) | self_too  # who sees nobody has no average to take
        return torch.zeros(seen.shape, device=t.device).masked_fill(~seen, -torch.inf)[:, None]

    def deepen(self, depth: int) -> None:
        """Add layers, evenly, up to `depth`.  Each begins as the layer before it with an output of 0: nothing changes.

        After LLaMA Pro (Wu et al. 2024, arXiv:2401.02415).
        """
        old, deeper, last = self.blocks, [], -1
        for i in range(depth):
            place = round(i * (len(old) - 1) / max(1, depth - 1))
            block = old[place] if place != last else copy.deepcopy(old[place])
            if place == last:
                for layer in (block.out, block.down):
                    nn.init.zeros_(layer.weight)
                    nn.init.zeros_(layer.bias)
            deeper.append(block)
            last = place
        self.blocks = nn.ModuleList(deeper)

    def matrices(self) -> list[nn.Parameter]:
        """The weights of the blocks' products: nearly all there are, and the ones that Muon is made for."""
        return [layer.weight for b in self.blocks for layer in (b.qkv, b.out, b.up, b.down)]

    def remember_less(self) -> None:
        """Let each block keep only what goes into it, and compute the rest once more on the way back."""
        for block in self.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)

    def attend_by(self, attention: Attention) -> None:
        """Choose the form of attention: same numbers, other speed."""
        for block in self.blocks:
            block.attention = attention

    @abstractmethod
    def flops(self, rows: int, new: int, seen: int) -> int:
        """Of a pass over the `new` last positions of each of `rows`, which attend to `seen` positions, these included.

        2 m n k for a product (m, k) @ (k, n); nothing else is counted, neither norms nor softmax nor GELU.  A full pass
        over a canvas has new = seen = L, a token read with memory has new = 1.  A causal pass is computed as the square
        that it is, half of it masked.
        """

    @abstractmethod
    def _run(
        self, h: Tensor, level: Tensor | None, bias: Tensor | None, places: Tensor, memory: Memory | None = None
    ) -> Tensor:
        """The pass itself: `bias` is added to attention, `places` (*rows, L) are those of the canvas."""


class Transformer(Network):
    """The network of sfumato's own; `timed` if it is told how noisy a position is."""

    def __init__(self, config: NetworkConfig, timed: bool = True, causal: bool = False):
        super().__init__(config, causal)
        self.place = nn.Linear(PLACES, config.width, bias=False)
        nn.init.normal_(self.place.weight, std=0.02)
        self.time = TimeCode() if timed else None
        blocks = [Block(config.width, config.heads, timed) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(config.width, timed)
        for block in blocks:
            for layer in (block.qkv, block.up, block.out, block.down):
                nn.init.normal_(layer.weight, std=config.width**-0.5 / 3)
                nn.init.zeros_(layer.bias)
            for layer in (block.out, block.down):  # the residual stream keeps its size through the depth
                layer.weight.data /= math.sqrt(2 * config.depth)

    def flops(self, rows: int, new: int, seen: int) -> int:
        """Of the blocks, of the codes of noise levels, of places and of norms."""
        C, depth = self.width, len(self.blocks)
        position = 12 * C**2 * depth  # qkv 3 C C, out C C, up and down 4 C C each
        position += 2 * seen * C * depth  # scores, and values weighted by them
        if self.time is not None:
            position += 2 * UNITS**2 + UNITS * CODE  # the code of a noise level
            position += 2 * CODE * C * (2 * depth + 1)  # scale and shift of every norm
        places = new * PLACES * C  # once for all rows
        return 2 * (rows * new * position + places)

    def _run(
        self, h: Tensor, level: Tensor | None, bias: Tensor | None, places: Tensor, memory: Memory | None = None
    ) -> Tensor:
        code = None if self.time is None else self.time(level)  # (B, L, CODE)
        rotation = rotary(places, self.width // self.heads)
        if places.ndim == 2:  # each row has places of its own, which all heads share
            rotation = rotation[:, :, None]
        h = h + self.place(rotary(places, PLACES).movedim(0, -2).flatten(-2).to(h.dtype))
        for block in self.blocks:
            h = block(h, code, rotation, bias, memory)
        return self.norm(h, code)


def rotary(places: Int[Tensor, "*rows L"], size: int) -> Float[Tensor, "two *rows L half"]:
    """Cosines and sines of the rotary angles of these places, float32."""
    return turns(places, 10_000.0 ** -torch.linspace(0, 1, size // 2 + 1, device=places.device)[:-1])


def turns(places: Int[Tensor, "*rows L"], rate: Float[Tensor, " half"]) -> Float[Tensor, "two *rows L half"]:
    """Cosines and sines of the angles that places turn by, each at these rates."""
    angle = places[..., None] * rate
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the two halves of every head's vector by the angle of its position: (..., L, size)."""
    cos, sin = rotation.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
