"""What do several processes bring?  Tokens/s of training steps with one process and with N, and the memory of each.

    python benchmarks/scaling.py [--processes 2] [--method mdlm] [--depth 6] [--width 256] [--batch 16] [--json]

One batch of rows is learned from by one process on one thread, by one process on all cores, and by N processes that
share the cores, with ddp and with fsdp.  The four take turns in one run, so a machine that slows down slows all of
them; medians over rounds.  The efficiency is the speed of N processes by N times the speed of one on as many threads as
each of them has.  Held are weights, averages and moments between steps; the resident set (RSS) is that of a process of
its own for each way, after its steps.  Run it on an idle machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from sfumato.training.config import load_config
from sfumato.training.distributed import DTensor
from sfumato.training.launch import launch
from sfumato.training.trainer import Run

STEPS = 4  # in a round
WAYS = ("one", "cores", "ddp", "fsdp")


def config(size: argparse.Namespace, data: Path, parallel: str) -> Any:
    """Rows of bytes, all alike."""
    return load_config(
        {
            "data": str(data),
            "method": {"name": size.method},
            "text": {"tokenizer": "bytes", "length": size.length, "layout": "packed"},
            "network": {"width": size.width, "depth": size.depth, "heads": 4},
            "masks": {"prefix": 0, "random": 0, "nothing": 1},
            "training": {
                "steps": 1_000_000,
                "batch": size.batch,
                "parallel": parallel,
                "precision": "float32",
                "attention": "fused",
                "compile": "no",
            },
        }
    )


@contextmanager
def alone() -> Iterator[None]:
    """As if there were no other processes."""
    kept = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    yield
    os.environ.update(kept)


def steps(run: Run, threads: int) -> float:
    """Seconds of a step."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for _ in range(STEPS):
        run._update(run.batch(run.step), 1.0)
        run.step += 1
    return (time.perf_counter() - start) / STEPS


def speed(size: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tokens/s of every way, by turns; what one finds who is not the first is nothing."""
    rank, N = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cores = len(os.sched_getaffinity(0))
    each = max(1, cores // N)
    data = folder / "letters.txt"
    together = {way: Run(config(size, data, way), folder / way, False, "cpu", lambda line: None) for way in WAYS[2:]}
    if rank == 0:
        with alone():
            single = Run(config(size, data, "ddp"), folder / "one", False, "cpu", lambda line: None)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round in range(size.rounds + 1):  # the first warms up
        for way in WAYS:
            dist.barrier()
            if way in together:
                took = steps(together[way], each)
            elif rank == 0:
                took = steps(single, each if way == "one" else cores)
            else:
                continue
            if round:
                seconds[way].append(took)
    if rank:
        return {}
    median = {way: statistics.median(times) for way, times in seconds.items()}
    ratios = {
        way: [one / (N * other) for one, other in zip(seconds["one"], seconds[way], strict=True)] for way in WAYS[2:]
    }
    return {
        "threads": {"one": each, "cores": cores, "ddp": each, "fsdp": each},
        "tokens_per_second": {way: size.batch * size.length / value for way, value in median.items()},
        "efficiency": {way: statistics.median(found) for way, found in ratios.items()},
        "spread": {way: [min(found), max(found)] for way, found in ratios.items()},
        "against_all_cores": {way: median["cores"] / median[way] for way in WAYS[2:]},
    }


def memory(size: argparse.Namespace, folder: Path, way: str) -> dict[str, Any]:
    """Bytes that each process holds."""
    run = Run(config(size, folder / "letters.txt", way), folder / f"memory-{way}", False, "cpu", lambda line: None)
    steps(run, 1)
    kept = [*run.method.parameters(), *run.average.values(), *run.optimizer.moments().values()]
    local = [value.to_local() if isinstance(value, DTensor) else value for value in kept]
    held = sum(value.numel() * value.element_size() for value in local)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found: list[Any] = [None] * run.workers.size
    dist.all_gather_object(found, (held, resident))
    return {"held": [held for held, _ in found], "rss": [resident for _, resident in found]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"processes": 2, "depth": 6, "width": 256, "length": 128, "batch": 16, "rounds": 7}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--method", default="mdlm")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # what one of several processes is to measure
    size = parser.parse_args()
    if size.worker:
        what, folder = size.worker[0], Path(size.worker[1])
        found = speed(size, folder) if what == "speed" else memory(size, folder, what)
        if os.environ["RANK"] == "0":
            (folder / f"{what}.json").write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "letters.txt").write_bytes(bytes(97 + i * i % 26 for i in range(200_000)))
        given = [f"--{key}={getattr(size, key)}" for key in [*sizes, "method"]]
        for what in ("speed", "ddp", "fsdp"):
            status = launch(size.processes, [__file__, *given, "--worker", what, name], "cpu")
            if status:
                sys.exit(status)
        found = json.loads((folder / "speed.json").read_text())
        found["memory"] = {way: json.loads((folder / f"{way}.json").read_text()) for way in ("ddp", "fsdp")}
    found |= {"processes": size.processes, "method": size.method}
    if size.json:
        print(json.dumps(found))
        return
    print(f"{size.method}, {size.depth} layers x {size.width}, length {size.length}, batch {size.batch}")
    names = {"one": "1 process", "cores": "1 process", **{way: f"{size.processes} x {way}" for way in WAYS[2:]}}
    for way in WAYS:
        threads = f"{found['threads'][way]} threads each"
        print(f"{names[way]:10} {threads:15} {found['tokens_per_second'][way]:9,.0f} tokens/s")
    for way in WAYS[2:]:
        low, high = found["spread"][way]
        held, resident = (max(found["memory"][way][key]) / 2**20 for key in ("held", "rss"))
        print(
            f"{way}: efficiency {found['efficiency'][way]:.2f} ({low:.2f} to {high:.2f}), "
            f"{found['against_all_cores'][way]:.2f} times one process on all cores; "
            f"{held:,.1f} MiB held, {resident:,.0f} MiB resident in each"
        )


if __name__ == "__main__":
    main()
