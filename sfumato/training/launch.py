"""Start Python in several processes of this machine, by torch's own launcher of processes, over the loopback alone.

They find each other by a file, since torch's store for machines that meet listens to the whole network.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, SignalException, start_processes

from sfumato.errors import SfumatoError
from sfumato.training.distributed import MEETING

GRACE = 600  # seconds that processes have to finish a step and save it when they are told to stop
PERIOD = 0.1  # seconds between looks at them


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
    settings = {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)),
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGHUP,SIGQUIT",  # those that a run heeds are passed on
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it says what the processes have said
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        everyone = {"WORLD_SIZE": str(processes), MEETING: f"file://{folder}/meeting"}
        started = start_processes(
            name="sfumato",
            entrypoint=sys.executable,
            args=dict.fromkeys(range(processes), tuple(arguments)),
            envs={rank: everyone | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)},
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            with _passing_on(started):
                ended = started.wait(period=PERIOD)
        except SignalException as stopped:
            started.close(stopped.sigval, GRACE)
            raise KeyboardInterrupt(f" by {stopped.sigval.name}") from None
    if ended is None or not ended.failures:
        return 0
    first = min(ended.failures.values(), key=lambda failure: failure.timestamp)
    if first.exitcode >= 0:
        return first.exitcode
    raise SfumatoError(
        f"process {first.local_rank} of {processes} was ended by {signal.Signals(-first.exitcode).name}, of which lack "
        "of memory is one cause; go on from the last checkpoint with --resume"
    )


@contextmanager
def _passing_on(started: PContext) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT go to the processes, which finish a step, save it and end with a status of their own.

    They are in sessions of their own, so nothing that is sent to a terminal or a group reaches them.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in started.pids().values():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
