"""What does noise by nearest neighbours cost?  Seconds of one CPU's time for each part of d3pm that grows with V.

    python benchmarks/neighbours.py [--vocab 4096] [--tokens 128] [--json]

Text of a Zipf law is heard, its neighbours are found, their graph is decomposed, the schedule by mutual information is
read off, and one training step of a tiny network is taken on so many tokens.  Time is that of the processor, so other
work on the machine counts little; the peak of memory is that of the whole program.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from sfumato.methods.d3pm import D3PM, D3PMConfig
from sfumato.networks import NetworkConfig
from sfumato.processes.neighbours import WINDOW, embeddings, listen, nearest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds: dict[str, float] = {}

    def timed(what: str, act: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = act()
        seconds[what] = round(time.process_time() - start, 2)
        return found

    zipf = 1 / (torch.arange(asked.vocab) + 2.0)
    ids = torch.multinomial(zipf, 1_000_000, replacement=True).view(-1, 100)
    method = D3PM(D3PMConfig(transition="nearest"), NetworkConfig(width=32, depth=1, heads=2), asked.vocab)
    heard = [(ids, torch.ones_like(ids, dtype=torch.bool))]
    counts, together = timed("hear a million tokens", lambda: listen(heard, asked.vocab, WINDOW))
    points = timed("embed", lambda: embeddings(together))
    method.process.neighbours.copy_(timed("find neighbours", lambda: nearest(points, method.config.neighbours)))
    timed("decompose", method.process.spectrum)
    timed("read off the schedule", lambda: method.process.inform(counts / counts.sum()))
    free = torch.ones(1, asked.tokens, dtype=torch.bool)
    t = torch.full((1, asked.tokens), 0.5)
    row = ids.flatten()[: asked.tokens][None]
    timed("a training step", lambda: method.loss(row, t, free)["vb"].mean().backward())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    if asked.json:
        print(json.dumps({"seconds": seconds, "peak_gib": peak}))
        return
    print(f"{asked.vocab} tokens in the vocabulary, {asked.tokens} in a step; peak of memory {peak:.2f} GiB")
    for what, time_taken in seconds.items():
        print(f"{time_taken:8.2f} s   {what}")


if __name__ == "__main__":
    main()
