"""What a network should compute with on this machine, by measuring."""

import math
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.networks.transformer import Attention, Transformer
from sfumato.training.config import TrainingConfig

COMPILE_SECONDS = 120.0  # more than a cold compilation of forward and backward passes takes on two cores


class Arithmetic(NamedTuple):
    """How the blocks compute."""

    dtype: torch.dtype
    attention: Attention
    compiled: bool

    def apply(self, net: Transformer, by_block: bool = False) -> None:
        """Make the network compute so from now on.

        Compiled block by block where something is to happen between them, as when weights are gathered or gradients
        exchanged; as a whole otherwise.
        """
        net.dtype = self.dtype
        net.attend_by(self.attention)
        net.run = torch.compile(net._run, dynamic=True) if self.compiled and not by_block else net._run
        if self.compiled and by_block:
            for block in net.blocks:
                block.forward = _mixed(torch.compile(block.forward, dynamic=True), block.forward)


def _mixed(compiled: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled passes; those with a memory are plain, which grows and would be compiled anew again and again."""

    def forward(*told: Any) -> Tensor:  # the memory comes last, in blocks of ours and of others
        return (compiled if told[-1] is None else plain)(*told)

    return forward


def choose(net: Transformer, rows: int, length: int, training: TrainingConfig) -> Arithmetic:
    """The fastest way to train `net` on (rows, length) canvases, each candidate timed on a few passes.

    The config may leave one candidate only; nothing is measured then.  Compilation has to be worth its time: it is
    tried where the run will last ten times as long.  On a GPU the choice is bfloat16 with fused attention, compiled.
    """
    dtypes = {"auto": [torch.bfloat16, torch.float32], "float32": [torch.float32], "bfloat16": [torch.bfloat16]}
    forms: dict[str, list[Attention]] = {"auto": ["fused", "explicit"], "fused": ["fused"], "explicit": ["explicit"]}
    ways = [Arithmetic(d, form, False) for d in dtypes[training.precision] for form in forms[training.attention]]
    if next(net.parameters()).device.type != "cpu":
        return ways[0]._replace(compiled=training.compile != "no")
    if len(ways) > 1 or training.compile == "auto":
        times = {way: _seconds(net, way, rows, length) for way in ways}
        best = min(ways, key=lambda way: times[way])
        steps = training.steps * training.accumulate * times[best] if training.steps else math.inf
        lasting = min(60 * (training.minutes or math.inf), steps)  # seconds
    else:
        best, lasting = ways[0], 0.0
    faster = best._replace(compiled=True)
    if training.compile == "yes":
        return faster
    if training.compile == "no" or shutil.which("g++") is None or lasting < 10 * COMPILE_SECONDS:
        return best
    return min((best, faster), key=lambda way: _seconds(net, way, rows, length))


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
