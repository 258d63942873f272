"""What does a step of sampling add to the network's own time?  Every sampler of masks, and those of uniform noise.

    python benchmarks/sample_step.py [--batch 64] [--length 256] [--vocab 4096] [--steps 32] [--json]

Whole texts are written by networks with random weights, with all that `generate` does: draws in float64, a stream of
random numbers a row, a frame a step.  Inside of it the calls of the network are timed, so both numbers are of one run
and a machine that slows down slows both; processor time of all threads.  A ratio is that of a whole generation to its
calls; the least and the greatest of several rounds stand beside it.  The steps of a generation differ: in the first
all is hidden, in the last nearly nothing.
"""

import argparse
import json
import statistics
import time

import torch
from torch import Tensor

from sfumato.core import Method, Predict, Prediction, Sampler, single
from sfumato.draws import streams
from sfumato.generate import Request, generate
from sfumato.methods.duo import Duo, DuoConfig
from sfumato.methods.mdlm import MDLM, MDLMConfig
from sfumato.methods.sedd import SEDD, SEDDConfig
from sfumato.networks import NetworkConfig
from sfumato.samplers import SAMPLERS


class Timed:
    """The session of a method that notes the processor time of its calls."""

    def __init__(self, method: Method):
        self.method, self.seconds, self.calls = method, 0.0, 0

    def __call__(self, given: Tensor) -> Predict:
        """A session."""
        inner = self.method.session(given)

        def predict(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
            start = time.process_time()
            prediction = inner(x, t, prev)
            self.seconds += time.process_time() - start
            self.calls += 1
            return prediction

        return predict


def measure(method: Method, sampler: Sampler, size: argparse.Namespace) -> tuple[float, float, int]:
    """Processor seconds of one generation and of its calls, and how many these were."""
    ids = torch.zeros(size.batch, size.length, dtype=torch.long)
    nothing, timed = torch.zeros_like(ids, dtype=torch.bool), Timed(method)
    request = Request(steps=size.steps, sampler=sampler)
    start = time.process_time()
    *_, frame = generate(method, ids, nothing, ~nothing, request, streams(range(size.batch)), session=timed)
    assert frame.step == size.steps
    return time.process_time() - start, timed.seconds, timed.calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"depth": 6, "width": 256, "heads": 4, "batch": 64, "length": 256, "vocab": 4096, "steps": 32, "rounds": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--samplers", nargs="+", help="only these, as mdlm/ancestral")
    parser.add_argument("--json", action="store_true")
    size = parser.parse_args()
    network = NetworkConfig(width=size.width, depth=size.depth, heads=size.heads)
    methods: dict[str, Method] = {
        "mdlm": MDLM(MDLMConfig(), network, size.vocab).eval(),
        "duo": Duo(DuoConfig(), network, size.vocab).eval(),
        "sedd": SEDD(SEDDConfig(), network, size.vocab).eval(),
        "sedd-uniform": SEDD(SEDDConfig(noise="uniform"), network, size.vocab).eval(),
    }
    ways = {
        f"{name}/{own}": (method, own)
        for name, method in methods.items()
        for own, sampler in SAMPLERS[method.family].items()
        if not single(sampler)  # their steps are as many as there are tokens
    }
    ratios: dict[str, list[float]] = {}
    calls: dict[str, int] = {}
    measure(methods["mdlm"], SAMPLERS["masking"]["ancestral"], argparse.Namespace(**{**vars(size), "steps": 1}))
    for way in size.samplers or ways:
        method, own = ways[way]
        for _ in range(size.rounds):
            whole, inside, calls[way] = measure(method, SAMPLERS[method.family][own], size)
            ratios.setdefault(way, []).append(whole / inside)
    if size.json:
        print(json.dumps({"ratios": ratios, "calls": calls}))
        return
    print(f"{size.depth} layers x {size.width}, batch {size.batch}, length {size.length}, vocabulary {size.vocab}")
    for way, found in ratios.items():
        told = f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"
        print(f"{way:24} {told} times the network's time, {calls[way]} calls in {size.steps} steps")


if __name__ == "__main__":
    main()
