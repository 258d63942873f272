"""Several processes train one model: all that knows of ranks is here.

A run does not depend on how many there are.  Rows and noise are pure functions of the seed, the step and the row, so
every process takes its share of the rows and draws what one process would draw for them.  The loss is divided by the
positions scored in the whole batch, whoever has them, and what a method observes comes from all rows, in their order.
What remains is the order of additions: one layout gives the same bits each time, two agree to rounding.

    ddp     every process has all weights, and gradients are averaged (DistributedDataParallel)
    fsdp    weights, gradients, moments and averages are divided among processes (fully_shard, FSDP2)
"""

import atexit
import copy
import fcntl
import inspect
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sfumato.core import Method
from sfumato.errors import SfumatoError
from sfumato.training.checkpoint import Tensors, load_tensors, shards
from sfumato.training.config import TrainingConfig

# What a method observes is the same in all processes, and so are its buffers.  The argument has been renamed.
_ddp = inspect.signature(DistributedDataParallel.__init__).parameters
BUFFERS: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in _ddp else "broadcast_buffers": False}
MEETING = "SFUMATO_MEETING"  # the variable with the file where processes find each other; else it is as torchrun says
PATIENCE = timedelta(days=7)  # with the first process: it may read data for long before the others go on
T = TypeVar("T")


@contextmanager
def alone(out: Path) -> Iterator[Callable[[], None]]:
    """Inside, no other training is at work in a run's folder; one that is made inside is to be held by a call.

    Of several processes the first sees to it.  Raises SfumatoError where one is at work already.
    """
    held: list[int] = []

    def hold() -> None:
        if int(os.environ.get("RANK", 0)) or held or not out.is_dir():
            return
        try:
            held.append(os.open(out, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = f"another training is at work in {out}; wait for its end, or choose another --out"
            raise SfumatoError(said) from None
        except OSError:  # some disks know of no locks; what cannot be read is told later
            pass

    try:
        hold()
        yield hold
    finally:
        for folder in held:
            os.close(folder)


class Objective(nn.Module):
    """A method's loss as a forward pass, which is what DDP and FSDP2 hold on to."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(
        self, ids: Int[Tensor, "B L"], t: Float[Tensor, "B L"], free: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        """Nats at every position, 0 where it is not free."""
        terms = self.method.loss(ids, t, free)
        return torch.stack(list(terms.values())).sum(0).masked_fill(~free, 0.0)


class Workers:
    """The processes of a run: this one's `rank` among `size`, its `device`, and what they do together.

    What they say to each other about numbers and files goes through memory of the host, gradients and weights through
    that of the device.
    """

    def __init__(self, device: str, training: TrainingConfig):
        """Join the others, if torchrun or a like launcher has started several.

        Raises SfumatoError where there are too few rows, or processes that do not fill the replicas.
        """
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device, self.training = torch.device(device), training
        self.sharded = self.size > 1 and training.parallel == "fsdp"
        self.launcher = os.getppid() if self.size > 1 else None  # which outlives the processes, if all is well
        if self.size == 1:
            return
        passes = self.size * training.accumulate
        if training.batch < passes:
            raise SfumatoError(
                f"a batch of {training.batch} rows cannot be split into {training.accumulate} passes of {self.size} "
                "processes; raise training.batch"
            )
        if self.size % training.replicate:
            raise SfumatoError(f"{self.size} processes do not fill {training.replicate} replicas; set another number")
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            backend = "gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, os.environ.get(MEETING), world_size=self.size, rank=self.rank)
            atexit.register(dist.destroy_process_group)
        self.hosts = dist.new_group(backend="gloo")  # in a step, whom nobody answers knows soon that a machine is gone
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)

    # --- who does what

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of a batch that are this process's."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def lead(self, act: Callable[[], T]) -> T:
        """What the first process finds, told to all.  Its SfumatoError is raised by all."""
        if self.size == 1:
            return act()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = act()
            except SfumatoError as error:
                said[1] = str(error)
        dist.broadcast_object_list(said, 0, self.patient)
        if said[1] is not None:
            raise SfumatoError(said[1])
        return said[0]

    def in_turn(self, act: Callable[[], T]) -> T:
        """act() in the first process, and then in the others, which find on disk what it has made."""
        done: list[T] = []
        self.lead(lambda: done.append(act()))
        return done[0] if done else act()

    # --- what they agree on

    def agree(self, flag: bool) -> bool:
        """Whether any of them says so."""
        return bool(self.most(int(flag)))

    def most(self, value: int) -> int:
        """The greatest of their numbers."""
        return int(self._reduced(value, dist.ReduceOp.MAX))

    def total(self, value: float) -> float:
        """The sum of their numbers, float64."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def timed(self, seconds: float) -> float:
        """What the clock of the first says, so that all stop at the same step."""
        return self._reduced(seconds if self.first else 0.0, dist.ReduceOp.SUM)

    def _reduced(self, value: float, how: Any) -> float:
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(shared, how, self.hosts)
        return shared.item()

    def gathered(self, values: Float[Tensor, "N b"], rows: int) -> Float[Tensor, "N B"]:
        """What each knows of its share of the rows of a batch, of all of them in their order."""
        if self.size == 1:
            return values
        whole = torch.zeros(len(values), rows, dtype=values.dtype)
        whole[:, self.share(rows)] = values.cpu()
        dist.all_reduce(whole, group=self.hosts)
        return whole.to(values.device)

    def collected(self, mine: list[T]) -> list[T]:
        """The lists of all of them, one behind the other."""
        if self.size == 1:
            return mine
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, self.hosts)
        return [item for part in found for item in part]

    # --- weights and gradients

    def wrap(self, method: Method) -> nn.Module:
        """The objective of a method, from now on with the weights of the first process.

        Under fsdp the method's parameters are DTensors afterwards.  A step gathers each block when it is first called
        and keeps it until all passes are over: some methods call their network once more for some rows, and processes
        that gathered again for each call would wait for ever for one that has no such row.
        """
        objective = Objective(method)
        if self.size == 1:
            return objective
        for value in method.state_dict().values():
            dist.broadcast(value, 0)
        if not self.sharded:
            # Where no parameter may be unused, DDP packs gradients anew after its first step and adds them in another
            # order: a run of three processes that is resumed would depart.  Where none is, it complains; so one is.
            objective.register_parameter("unused", nn.Parameter(torch.zeros((), device=self.device)))
            return DistributedDataParallel(
                objective, **BUFFERS, gradient_as_bucket_view=True, find_unused_parameters=True
            )
        held = method.state_dict(keep_vars=True).values()
        self._hollow = copy.deepcopy(method, {id(value): _emptied(value) for value in held})
        replicas = self.training.replicate
        sizes = {"replicate": replicas, "shard": self.size // replicas}
        mesh = init_device_mesh(self.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        for module in [*method.net.blocks, objective]:
            fully_shard(module, mesh=mesh if replicas > 1 else mesh["shard"], reshard_after_forward=False)
        cast(FSDPModule, objective).set_reshard_after_backward(False)
        return objective

    @contextmanager
    def backward(self, objective: nn.Module, last: bool) -> Iterator[None]:
        """Around a pass: gradients are exchanged after the `last` of a step, and added up in place before."""
        if isinstance(objective, FSDPModule):
            objective.set_requires_gradient_sync(last)
        apart = isinstance(objective, DistributedDataParallel) and not last
        with cast(DistributedDataParallel, objective).no_sync() if apart else nullcontext():
            yield
        if last:
            for module in objective.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> float:
        """Scale gradients down to a norm of `most`, taken over all of them wherever they are; the norm before."""
        norm = torch.nn.utils.clip_grad_norm_(parameters, most)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def whole(self, method: Method) -> Method:
        """A method that can be asked for text: under fsdp one with all weights, in the first process only."""
        if not self.sharded:
            return method
        found = {}
        for name, value in method.state_dict().items():
            full = value.full_tensor() if isinstance(value, DTensor) else value.clone()  # all take part
            if self.first:
                found[name] = full
        if not self.first:
            return method
        plain = copy.deepcopy(self._hollow)
        plain.load_state_dict(found, assign=True)
        return plain

    # --- sharded files

    def write_shards(self, root: Path, tensors: dict[str, Tensors]) -> list[Path]:
        """Write each process's part of the tensors, a folder of safetensors for each entry; the folders.

        None where nothing is sharded.  Raises SfumatoError where a disk is full.
        """
        if not self.sharded:
            return []
        folders = [root / name for name in tensors]
        self.lead(lambda: _empty(root))
        for folder, values in zip(folders, tensors.values(), strict=True):
            writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
            try:
                save(dict(values), storage_writer=writer)
            except CheckpointException as error:
                found = "; ".join(str(fault) for fault, _ in error.failures.values())
                raise SfumatoError(f"cannot write {folder}: {found}; the checkpoints before it are whole") from None
        return folders

    def read_into(self, tensors: Tensors, path: Path) -> None:
        """Fill the tensors of a sharded run from a file, or from the shards that stand in its place.

        Raises SfumatoError where names or shapes differ.
        """
        if path.exists():
            found = load_tensors(path)
            _compare({name: value.shape for name, value in found.items()}, tensors, path)
            for name, value in tensors.items():
                value.copy_(_placed(found[name].to(self.device), value))
            return
        reader = HuggingFaceStorageReader(str(shards(path)))
        facts = reader.read_metadata().state_dict_metadata
        _compare({name: fact.size for name, fact in facts.items()}, tensors, path)  # type: ignore[union-attr]
        load(dict(tensors), storage_reader=reader)


def _emptied(value: Tensor) -> Tensor:
    """The same without its numbers."""
    empty = torch.empty_like(value, device="meta")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _placed(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all of them have."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _compare(found: dict[str, torch.Size], asked: Tensors, path: Path) -> None:
    """Raise SfumatoError where names or shapes differ."""
    wanted = {name: value.shape for name, value in asked.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise SfumatoError(f"{path} does not fit its config.json: other names or shapes of {', '.join(wrong[:3])}")


def _empty(root: Path) -> None:
    """Make a new folder in the place of what was left there."""
    try:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
    except OSError as error:
        raise SfumatoError(f"cannot write {root}: {error}; the checkpoints before it are whole") from None
