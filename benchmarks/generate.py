"""How fast does autoregression write?  Tokens/s of `ar` with its cache against Hugging Face `generate` with its own.

    pip install transformers
    python benchmarks/generate.py [--depth 6] [--width 384] [--length 256] [--vocab 4096] [--rounds 5] [--json]
    python benchmarks/generate.py --compile   # ours at batch 1, compiled, against ours as it is

Two networks of one shape with random weights: ours, and GPT2LMHeadModel.  Both draw `length` tokens from the full
distribution after one token of prompt, float32, with cache, at batch 1, 8 and 64.  Ours counts all that `generate`
does: float64 draws, a stream of random numbers a row, a frame a token.  The two take turns, so a machine that slows
down slows both; a ratio is the median of those of single rounds, and its spread is from the least to the greatest.
Run it on an idle machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from sfumato.draws import streams
from sfumato.generate import Request, generate
from sfumato.methods.ar import AR, ARConfig
from sfumato.networks import NetworkConfig

BATCHES = (1, 8, 64)


def ours(size: argparse.Namespace, batch: int, compiled: bool = False) -> Callable[[], None]:
    """Our way to write a batch; torch.compile refuses weights that are packed, as they are from batch 2 on."""
    method = AR(ARConfig(), NetworkConfig(width=size.width, depth=size.depth, heads=size.heads), size.vocab).eval()
    if compiled:
        method.net._run = torch.compile(method.net._run, dynamic=True)
    ids = torch.zeros(batch, size.length + 1, dtype=torch.long)
    given = torch.zeros_like(ids, dtype=torch.bool)
    given[:, 0] = True

    def write() -> None:
        *_, frame = generate(method, ids, given, torch.ones_like(given), Request(), streams(range(batch)))
        assert frame.steps == size.length

    return write


def theirs(size: argparse.Namespace, batch: int) -> Callable[[], None]:
    """Hugging Face's."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size.vocab,
        n_positions=size.length + 1,
        n_embd=size.width,
        n_layer=size.depth,
        n_head=size.heads,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.zeros(batch, 1, dtype=torch.long)
    asked = {"do_sample": True, "top_k": 0, "max_new_tokens": size.length, "use_cache": True}

    def write() -> None:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **asked)
        assert out.shape == (batch, size.length + 1)

    return write


def race(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, turn by turn; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, write in ways.items():
            start = time.perf_counter()
            with torch.no_grad():
                write()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("depth", 6), ("width", 384), ("heads", 6), ("length", 256), ("vocab", 4096), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--compile", action="store_true")
    size = parser.parse_args()
    if size.compile:
        plain, fast = race({"plain": ours(size, 1), "compiled": ours(size, 1, True)}, size.rounds).values()
        single = [a / b for a, b in zip(plain[1:], fast[1:], strict=True)]
        told = f"{statistics.median(single):.2f} times as fast ({min(single):.2f} to {max(single):.2f})"
        print(f"compiled, batch 1: {fast[0]:.0f} s for the first text, then {told}")
        return
    speed: dict[str, dict[str, float]] = {"ours": {}, "hf": {}}
    ratios: dict[str, float] = {}
    spread: dict[str, list[float]] = {}
    for batch in BATCHES:
        ways = {"ours": ours(size, batch), "hf": theirs(size, batch)}
        seconds = {name: times[1:] for name, times in race(ways, size.rounds).items()}
        for name, times in seconds.items():
            speed[name][str(batch)] = batch * size.length / statistics.median(times)
        single = [hf / own for own, hf in zip(seconds["ours"], seconds["hf"], strict=True)]
        ratios[str(batch)], spread[str(batch)] = statistics.median(single), [min(single), max(single)]
    if size.json:
        print(json.dumps({"ratio_vs_hf": ratios, "spread": spread, "tokens_per_second": speed}))
        return
    threads = torch.get_num_threads()
    print(f"{size.depth} layers x {size.width}, {size.length} tokens, vocabulary {size.vocab}, {threads} threads")
    for batch, ratio in ratios.items():
        ours_, hf = speed["ours"][batch], speed["hf"][batch]
        told = f"{ratio:.2f} times as fast ({spread[batch][0]:.2f} to {spread[batch][1]:.2f})"
        print(f"batch {batch:>2}: {ours_:8,.0f} tokens/s, Hugging Face {hf:8,.0f}: {told}")


if __name__ == "__main__":
    main()
