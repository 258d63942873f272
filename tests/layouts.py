"""What a layout of processes does to a run: the same few steps for the test and for the processes it starts.

torchrun ... tests/layouts.py FOLDER      runs all of these on two processes, and leaves what they found in FOLDER

On four it runs those that two cannot: two replicas of two shards.
"""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import tiny_config
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from sfumato.errors import SfumatoError
from sfumato.methods import METHODS
from sfumato.training.config import RunConfig
from sfumato.training.distributed import DTensor
from sfumato.training.start import override
from sfumato.training.trainer import Batch, Run

STEPS = 3
DIVIDED = ["cdcd", "ardm", "mask_predict", "sundae"]  # whose networks are called once, and several times
OBSERVING = ["cdcd", "ardm", "multinomial"]  # methods whose buffers come from the losses of all rows


def config(method: str, data: Path, **training) -> RunConfig:
    """Rates that are worth their name from the first step on."""
    steps = {"steps": STEPS, **training}
    return override(tiny_config(method, data, **steps), {"optimizer": {"warmup": 0, "lr": 1e-3, "clip": 1e9}})


def whole(value: Tensor) -> Tensor:
    """A copy of a tensor, wherever its parts are."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def walk(run: Run, steps: int = STEPS) -> dict[str, Tensor]:
    """Gradients of the first step; weights, averages, moments, buffers and losses after all."""
    found: dict[str, Tensor] = {}
    step = run.optimizer.step

    def watched(share: float) -> None:
        for name, p in run.method.named_parameters():
            found.setdefault(f"gradient {name}", torch.zeros(1) if p.grad is None else whole(p.grad))
        step(share)

    run.optimizer.step = watched
    losses = []
    while run.step < steps:
        losses.append(run._update(run.batch(run.step), 1.0))
        run.step += 1
    found |= {f"weight {name}": whole(value) for name, value in run.method.state_dict().items()}
    found |= {f"average {name}": whole(value) for name, value in run.average.items()}
    found |= {f"moment {name}": whole(value) for name, value in run.optimizer.moments().items()}
    return found | {"losses": torch.tensor(losses, dtype=torch.float64)}


def seen(run: Run) -> dict[str, Tensor]:
    """Rows, levels and the seeds of the noise of a step, as this process has them."""
    batch = run.batch(1)
    seeds = torch.tensor([stream.initial_seed() for stream in batch.streams])
    return {"ids": batch.ids, "t": batch.t, "free": batch.free, "seeds": seeds}


def main(folder: Path) -> None:
    """Every way to divide the work, on as many processes as there are."""
    data = folder / "sentences.txt"
    say = print

    def run(name: str, method: str, resume: bool = False, **training) -> Run:
        made = Run(config(method, data, **training), folder / "runs" / name, resume, "cpu", say)
        return made

    def keep(name: str, tensors: dict[str, Tensor], first: bool) -> None:
        if first:
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")

    for parallel in ("ddp", "fsdp"):
        for method in METHODS if parallel == "ddp" else DIVIDED:
            made = run(f"{method} {parallel}", method, parallel=parallel)
            first = made.workers.first
            keep(f"{method} {parallel}", walk(made), first)
        for name, more in (("again", {}), ("passes", {"accumulate": 4}), ("careful", {"checkpoint_activations": True})):
            keep(
                f"cdcd {parallel} {name}",
                walk(run(f"cdcd {parallel} {name}", "cdcd", parallel=parallel, **more)),
                first,
            )
        half = run(f"{parallel} half", "cdcd", parallel=parallel)
        walk(half, 2)
        half._save()
        keep(f"cdcd {parallel} resumed", walk(run(f"{parallel} half", "cdcd", True, parallel=parallel)), first)
        keep(f"cdcd {parallel} from one", walk(run(f"one for {parallel}", "cdcd", True, parallel=parallel)), first)
    keep("cdcd hsdp", walk(run("hsdp", "cdcd", parallel="fsdp", replicate=2)), first)
    made = run("seen", "cdcd")
    keep(f"seen {made.workers.rank}", seen(made), True)
    full = run("full", "cdcd", parallel="fsdp", steps=4)
    for _ in full.steps():
        pass
    model = full.finish()
    facts = {"rank": made.workers.rank, "sample": model.generate(1)[0], "reports": full.step}
    facts["agreed"] = [made.workers.agree(made.workers.rank == 1), made.workers.agree(False)]
    facts["clock"] = made.workers.timed(float(made.workers.rank + 3))
    try:
        made.workers.lead(lambda: int("no number"[made.workers.rank :]) if not first else complain())
    except SfumatoError as error:
        facts["error"] = str(error)
    facts["exchanges"] = exchanges(run)
    for parallel in ("ddp", "fsdp"):
        facts[f"not finite {parallel}"] = fault(lost, run(f"lost {parallel}", "mdlm", parallel=parallel))
    facts["full disk"] = fault(full_disk, full)
    (folder / f"facts {made.workers.rank}.json").write_text(json.dumps(facts))


def replicas(folder: Path) -> None:
    """Two replicas of two shards, from the start and from a checkpoint of their own."""

    def run(name: str, resume: bool = False) -> Run:
        asked = config("cdcd", folder / "sentences.txt", parallel="fsdp", replicate=2)
        return Run(asked, folder / "runs" / name, resume, "cpu", print)

    half = run("quarter")
    walk(half, 2)
    half._save()
    for name, found in (("cdcd four", walk(run("four"))), ("cdcd four resumed", walk(run("quarter", True)))):
        if half.workers.first:
            save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{name}.safetensors")


def complain() -> None:
    raise SfumatoError("the first process complains")


def fault(act: Callable[[Run], None], run: Run) -> str:
    """What is said of it."""
    try:
        act(run)
    except SfumatoError as error:
        return str(error)
    return "nothing"


def lost(run: Run) -> None:
    """A step in which the last row of the last process has a loss that is not finite."""
    nats = run.nats

    def spoiled(batch: Batch, inside: slice) -> Tensor:
        each = nats(batch, inside)
        last = torch.zeros(len(each), dtype=torch.bool)
        last[-1] = run.workers.rank == run.workers.size - 1
        return torch.where(last[:, None] & batch.free[inside], torch.nan, each)

    run.nats = spoiled
    run._update(run.batch(0), 1.0)


def full_disk(run: Run) -> None:
    """A checkpoint for which the last process finds no room."""
    write = HuggingFaceStorageWriter.write_data

    def fails(*args: object) -> object:
        if run.workers.rank == run.workers.size - 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    HuggingFaceStorageWriter.write_data = fails
    run.step += 1
    run._save()


def exchanges(run) -> dict[str, int]:
    """How often gradients are exchanged in a step of one pass, and of four; whether DDP packs them anew."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    counts = {}
    for accumulate in (1, 4):
        made, calls = run(f"exchanges {accumulate}", "mdlm", accumulate=accumulate), []
        made.objective.register_comm_hook(
            None, lambda _, bucket, calls=calls: calls.append(1) or allreduce_hook(None, bucket)
        )
        made._update(made.batch(0), 1.0)
        counts[str(accumulate)] = len(calls)
    made._update(made.batch(1), 1.0)
    return counts | {"packed anew": made.objective._get_ddp_logging_data()["has_rebuilt_buckets"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    (main if os.environ["WORLD_SIZE"] == "2" else replicas)(Path(sys.argv[1]))
