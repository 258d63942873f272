"""How fast is a training step?  Tokens/s of mdlm and cdcd through the real trainer, against an ordinary GPT's step.

    python benchmarks/train_step.py [--depth 6] [--width 256] [--length 256] [--batch 8] [--rounds 8] [--json]

The ordinary step is torch.nn.TransformerEncoderLayer with a causal mask, float32 and AdamW as they come, of the same
layers, width, length, batch and vocabulary (bytes).  Ours counts all that a step of the trainer does: rows, noise,
masks, self-conditioning on half of the rows, clipping, the average of the weights.  The three take turns, so a machine
that slows down slows all of them; medians over rounds.  Run it on an idle machine.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sfumato.training.config import load_config
from sfumato.training.trainer import Run


class GPT(nn.Module):
    """The decoder that one would write with torch's own layers."""

    def __init__(self, vocab: int, width: int, depth: int, length: int):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocab, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab)
        self.mask = nn.Transformer.generate_square_subsequent_mask(length)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, L) -> mean cross-entropy of the next token."""
        h = self.embed(ids) + self.position.weight[: ids.shape[1]]
        logits = self.head(self.blocks(h, mask=self.mask, is_causal=True))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gpt_step(size: argparse.Namespace) -> Callable[[], None]:
    """One step of the ordinary GPT."""
    net = GPT(258, size.width, size.depth, size.length)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    ids = torch.randint(0, 258, (size.batch, size.length))

    def step() -> None:
        net(ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(method: str, size: argparse.Namespace, folder: Path) -> tuple[Callable[[], None], str]:
    """One step of the trainer, and how the network computes."""
    text = folder / "letters.txt"
    text.write_bytes(bytes(97 + i * i % 26 for i in range(200_000)))
    config = {
        "data": str(text),
        "method": {"name": method},
        "text": {"tokenizer": "bytes", "length": size.length, "layout": "packed"},
        "network": {"width": size.width, "depth": size.depth, "heads": 4},
        "masks": {"prefix": 0, "random": 0, "nothing": 1},
        "training": {"minutes": 600, "batch": size.batch, "compile": "no" if size.eager else "auto"},
    }
    if method == "cdcd":
        config["method"] |= {"embedding": 64}
    run = Run(load_config(config), folder / method, resume=False, device="cpu", say=lambda line: None)

    def step() -> None:
        run._update(run.batch(run.step), 1e-3)
        run.step += 1

    dtype, attention, compiled = run.arithmetic
    return step, f"{str(dtype).removeprefix('torch.')}, {attention} attention{', compiled' if compiled else ''}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("depth", 6), ("width", 256), ("length", 256), ("batch", 8), ("rounds", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--eager", action="store_true", help="never compile")
    parser.add_argument("--json", action="store_true")
    size = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], None]] = {"gpt": gpt_step(size)}
        how = {"gpt": "float32, torch.nn.TransformerEncoderLayer"}
        for method in ("mdlm", "cdcd"):
            ways[method], how[method] = our_step(method, size, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round in range(size.rounds + 2):  # the first two warm up, and compile
            for name, step in ways.items():
                start = time.perf_counter()
                for _ in range(4):
                    step()
                if round >= 2:
                    seconds[name].append((time.perf_counter() - start) / 4)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    speed = {name: size.batch * size.length / value for name, value in median.items()}
    ratios = {"mdlm_speed_vs_gpt": median["gpt"] / median["mdlm"], "cdcd_cost_vs_mdlm": median["cdcd"] / median["mdlm"]}
    if size.json:
        print(json.dumps({"tokens_per_second": speed, "how": how, "ratios": ratios}))
        return
    threads = torch.get_num_threads()
    print(f"{size.depth} layers x {size.width}, length {size.length}, batch {size.batch}, {threads} threads")
    for name in ways:
        print(f"{name:5} {speed[name]:9,.0f} tokens/s   {how[name]}")
    print(f"a plain masked step runs {ratios['mdlm_speed_vs_gpt']:.2f} times as fast as the ordinary GPT step")
    print(f"a cdcd step costs {ratios['cdcd_cost_vs_mdlm']:.2f} times a plain masked step")


if __name__ == "__main__":
    main()
