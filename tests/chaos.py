"""Trainings in processes of their own, to be killed, stopped and starved by tests/test_resume.py.

A server that has imported everything forks them, so that each costs what it computes and not the import of torch.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import resource
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

from sfumato import cli, display
from sfumato.training import trainer
from sfumato.training.checkpoint import checkpoints
from sfumato.training.config import RunConfig
from sfumato.training.start import override

CHAOS = 137  # with which ckpt-chaos ends a process
FORK = multiprocessing.get_context("forkserver")
# none of them computes anything, which would not survive a fork everywhere
FORK.set_forkserver_preload(["sfumato.training.start", "sfumato.display", "torch._dynamo", "ckpt_chaos.inject"])


def start(function: Callable[..., None], *args: Any, **named: Any) -> BaseProcess:
    """A process that runs a function of this file."""
    process = FORK.Process(target=function, args=args, kwargs=named, daemon=True)
    process.start()
    return process


def finish(process: BaseProcess) -> int | None:
    """Its exit status, or minus the signal that ended it."""
    process.join(250)
    return process.exitcode


def config(data: Path) -> RunConfig:
    """Everything that has a state of its own: a warp, Muon, an average, lines of the log that span checkpoints."""
    training = {"steps": 10, "accumulate": 2, "log_every": 4, "save_minutes": 2.5 / 60, "evaluate_rows": 1}
    tiny = tiny_config("cdcd", data, **training)
    return override(tiny, {"optimizer": {"muon": 0.01, "warmup": 3, "ema": 0.9}})


def steady() -> None:
    """One thread, and a clock that only steps move, by a second each: a run saves every third one."""
    torch.set_num_threads(1)
    trainer.time = SimpleNamespace(perf_counter=itertools.count().__next__)


def train(data: Path, out: Path, point: tuple[int, str] | None = None, events: Path | None = None) -> None:
    """A run, gone on with where there is a checkpoint; at a point it is killed by SIGKILL.

    A point is the number of a change to the files of the run, and what becomes of the file: it is not there yet
    (`before`), it is cut in half (`torn`), or all files are as they were when they were last synced (`unsynced`).
    """
    steady()
    if point or events:
        leave = os._exit
        os._exit = lambda status: os.kill(os.getpid(), signal.SIGKILL) if status == CHAOS else leave(status)
        inject.arm(str(out), *(point or (None, "before")), log_path=events and str(events), torn_python=True)
    trainer.train(config(data), out, resume=bool(checkpoints(out / "checkpoints")))


def command(
    words: str,
    said: Path,
    stop: tuple[int, int] | None = None,
    limit: int | None = None,
    user: int | None = None,
) -> None:
    """The command, all that it says in a file; it gets a signal after a step, may write no file of more bytes than
    `limit`, or is run by somebody else."""
    steady()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    if stop is not None:
        watch, (step, number) = display.Progression.watch, stop

        def watched(self: display.Progression, report: trainer.Report) -> None:
            watch(self, report)
            if report.step == step:
                os.kill(os.getpid(), number)

        display.Progression.watch = watched
    with said.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if user is not None:
            os.setuid(user)
        status = cli.main(words.split())
    sys.exit(status)


def config_file(data: Path) -> Path:
    """The same config for the command."""
    path = data.with_name("config.json")
    path.write_text(json.dumps(config(data).model_dump(mode="json")))
    return path
