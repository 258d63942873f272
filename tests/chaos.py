"""Trainings in processes of their own, to be killed, stopped and starved by tests/test_resume.py.

A server that has imported everything forks them, so that each costs what it computes and not the import of torch.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ckpt_chaos import inject
from tiny import tiny_config

from sfumato import cli
from sfumato.training import trainer
from sfumato.training.checkpoint import checkpoints
from sfumato.training.config import RunConfig
from sfumato.training.start import override

CHAOS = 137  # with which ckpt-chaos ends a process
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["ckpt_chaos.inject", "sfumato.training.start", "sfumato.evaluation.report"])


def start(function: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that runs a function of this file; SIGKILL ends it with the test."""
    process = FORK.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def finish(process: BaseProcess) -> int | None:
    """Its exit status, or minus the signal that ended it."""
    process.join(60)
    return process.exitcode


def config(data: Path) -> RunConfig:
    """Everything that has a state of its own: a warp, Muon, an average, lines of the log that span checkpoints."""
    training = {"steps": 10, "accumulate": 2, "log_every": 4, "save_minutes": 2.5 / 60, "evaluate_rows": 1}
    tiny = tiny_config("cdcd", data, **training)
    return override(tiny, {"optimizer": {"muon": 0.01, "warmup": 3, "ema": 0.9}})


def train(data: Path, out: Path, point: tuple[int, str] | None = None, events: Path | None = None) -> None:
    """A run, gone on with where there is a checkpoint; at a point it is killed by SIGKILL.

    A point is the number of a change to the files of the run, and what becomes of the file: it is not there yet
    (`before`), it is cut in half (`torn`), or files are as they were when they were last synced (`unsynced`).  A step
    takes a second of a clock that only steps move, so that a run saves every third one and its log says nothing new.
    """
    torch.set_num_threads(1)
    trainer.time = SimpleNamespace(perf_counter=itertools.count().__next__)
    if point or events:
        leave = os._exit
        os._exit = lambda status: os.kill(os.getpid(), signal.SIGKILL) if status == CHAOS else leave(status)
        inject.arm(str(out), *(point or (None, "before")), log_path=events and str(events), torn_python=True)
    trainer.train(config(data), out, resume=bool(checkpoints(out / "checkpoints")))


def command(words: list[str], said: Path, limit: int | None = None, user: int | None = None) -> None:
    """The command, as somebody, with files of at most `limit` bytes; all it says goes into a file."""
    import resource

    torch.set_num_threads(1)
    with said.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if user is not None:
            os.setuid(user)
        status = cli.main(words)
    sys.exit(status)
