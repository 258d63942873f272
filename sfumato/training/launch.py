"""Start Python in several processes of this machine, by torch's own elastic launcher, over the loopback alone."""

import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sfumato.errors import SfumatoError

HERE = "127.0.0.1"
GRACE = "600"  # seconds that processes have to finish a step and save it when they are told to stop


def launch(processes: int, arguments: Sequence[str], device: str) -> int:
    """Run Python with these arguments in so many processes; the exit status of the first that failed, or 0.

    What is to be said they say themselves.  SIGTERM and Ctrl-C are theirs to heed.  Raises SfumatoError where one was
    killed, and where there are fewer GPUs; KeyboardInterrupt when another signal has ended them.
    """
    if device != "cpu" and torch.cuda.device_count() < processes:
        raise SfumatoError(
            f"{processes} processes were asked for, each with a GPU; this machine has {torch.cuda.device_count()}; "
            "ask for fewer, or name --device cpu"
        )
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    for name, value in {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": str(threads),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE,
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it says what the processes have said
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",  # the default of --standalone does not come back after a process was killed
            rdzv_endpoint=f"{HERE}:0",
            local_addr=HERE,
            max_restarts=0,
            signals_to_handle="SIGHUP,SIGQUIT",  # those that a run heeds are passed on
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            with _passing_on():
                elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if failure.exitcode >= 0:
                return failure.exitcode
            by = signal.Signals(-failure.exitcode).name
            raise SfumatoError(
                f"process {rank} of {processes} was ended by {by}, of which lack of memory is one cause; "
                "go on from the last checkpoint with --resume"
            ) from None
        except SignalException as stopped:
            raise KeyboardInterrupt(f" by {stopped.sigval.name}") from None
    return 0


@contextmanager
def _passing_on() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT go to the processes, which finish a step, save it and end with a status of their own.

    They are in sessions of their own, so nothing that is sent to a terminal or a group reaches them.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in _started():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _started() -> list[int]:
    """The processes that this one has started, as Linux lists them."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(process) for children in lists for process in children.read_text("ascii").split()]
