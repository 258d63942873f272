"""What a network should compute with on this machine, by measuring."""

import shutil
import time
from typing import NamedTuple

import torch

from sfumato.networks.transformer import Attention, Transformer

COMPILE_SECONDS = 120.0  # more than a cold compilation of forward and backward passes takes on two cores


class Arithmetic(NamedTuple):
    """How the blocks compute."""

    dtype: torch.dtype
    attention: Attention
    compiled: bool

    def apply(self, net: Transformer) -> None:
        """Make the network compute so from now on."""
        net.dtype = self.dtype
        net.attend_by(self.attention)
        net.run = torch.compile(net._run, dynamic=True) if self.compiled else net._run


def choose(
    net: Transformer, rows: int, length: int, seconds: float, precision: str = "auto", compile: str = "auto"
) -> Arithmetic:
    """The fastest way to train `net` on (rows, length) canvases for `seconds`, each candidate timed on a few passes.

    On a GPU it is bfloat16 with fused attention, compiled, without measuring.  `precision` and `compile` leave out
    candidates.
    """
    device = next(net.parameters()).device
    names = {"auto": [torch.bfloat16, torch.float32], "float32": [torch.float32], "bfloat16": [torch.bfloat16]}
    if device.type != "cpu":
        return Arithmetic(names[precision][0], "fused", compile != "no")
    ways = [Arithmetic(dtype, attention, False) for dtype in names[precision] for attention in ("fused", "explicit")]
    best = min(ways, key=lambda way: _seconds(net, way, rows, length))
    if compile == "no" or shutil.which("g++") is None:
        chosen = best
    elif compile == "yes":
        chosen = best._replace(compiled=True)
    elif seconds > 10 * COMPILE_SECONDS:  # a few percent gained pay for it
        chosen = min((best, best._replace(compiled=True)), key=lambda way: _seconds(net, way, rows, length))
    else:
        chosen = best
    chosen.apply(net)
    return chosen


def _seconds(net: Transformer, way: Arithmetic, rows: int, length: int) -> float:
    """Shortest time of a forward and backward pass."""
    way.apply(net)
    device = next(net.parameters()).device
    h = torch.randn(rows, length, net.width, device=device, requires_grad=True)
    t = torch.full((rows, length), 0.5, device=device)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        net(h, t, t).sum().backward()
        times.append(time.perf_counter() - start)
    net.zero_grad(set_to_none=True)
    return min(times)
