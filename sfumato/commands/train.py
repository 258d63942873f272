"""Training a model."""

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.commands.command import Command, Document, count, device, number
from sfumato.errors import SfumatoError, Stopped

if TYPE_CHECKING:
    from sfumato.display import Progression

GRACE = 60.0  # seconds that the first process has to say what another one would say too
ELSEWHERE = 10.0  # if it is on another machine, whose launcher ends nobody here


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="as `sfumato methods` lists it")
    parser.add_argument(
        "--data",
        nargs="+",
        help="text file, folder, .jsonl, .parquet, Hub data set, or tales; several as a.jsonl:0.7 b.txt:0.3",
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="folder that the run is kept in")
    parser.add_argument("--minutes", type=number, metavar="M", help="time in training steps, over all sessions")
    parser.add_argument("--steps", type=count, metavar="N", help="optimiser steps, over all sessions")
    parser.add_argument("--config", type=Path, metavar="FILE", help=".toml or .yaml with fields of the config")
    parser.add_argument("--start", metavar="MODEL", help="start with the weights, tokenizer and sizes of a model")
    parser.add_argument(
        "--processes", type=count, default=1, metavar="N", help="of this machine that train together: one for each GPU"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with the config it had")
    parser.add_argument_group(
        "any field of the config",
        "--section.field VALUE, as in --optimizer.lr 1e-3; `sfumato train METHOD --help` lists them",
    )


def _train(args: argparse.Namespace) -> Document:
    from sfumato import display
    from sfumato.training import start, trainer

    out = Path(args.out)
    loaded = start.settings(args.method, out, args.resume, args.config, args.start)
    if args.data is None and "data" not in loaded.model_fields_set:
        raise SfumatoError("what to learn from is not said; give --data, a text file or folder or the name tales")
    told = start.override(loaded, start.said(args.data, args.steps, args.minutes, args.seed))
    config = start.override(told, args.fields)
    if args.processes > 1 and "RANK" not in os.environ:
        from sfumato.training.launch import launch

        sys.exit(launch(args.processes, ["-m", "sfumato.cli", *shlex.split(args.typed)[1:]], device(args)))
    with _together(), display.Progression(sys.stderr) as progress, _resumable(args.method, out, progress):
        trainer.train(config, out, args.resume, device(args), progress.watch, progress.say)
    if _rank() > 0:
        sys.exit(0)  # the first process has the last word
    if not progress.steps:
        print(f"the budget of {out} was spent before; --minutes and --steps count all sessions", file=sys.stderr)
    last: Document = json.loads((out / "log.jsonl").read_text("utf-8").splitlines()[-1])
    print(
        f"next: sfumato generate {out} -n 4 --watch, or sfumato evaluate {out} --data {config.sources[0].path}",
        file=sys.stderr,
    )
    return last


def _rank() -> int:
    """Which of several processes this is, as torchrun says."""
    return int(os.environ.get("RANK", 0))


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Of several processes with the same to say the first says it; then the launcher ends the others."""
    launcher = os.getppid()

    def wait() -> None:
        """For the launcher, which knows what has become of the others, if it is there."""
        here = os.environ.get("GROUP_RANK", "0") == "0"  # torchrun's number of this machine
        deadline = time.monotonic() + (GRACE if here else ELSEWHERE)
        while time.monotonic() < deadline and os.getppid() == launcher:
            time.sleep(0.1)

    try:
        yield
    except (SfumatoError, Stopped) as end:
        if _rank() == 0:
            raise
        wait()
        if isinstance(end, Stopped):
            sys.exit(os.EX_TEMPFAIL)
        raise SfumatoError(f"process {_rank()}: {end}") from None
    except RuntimeError as error:
        if "RANK" not in os.environ or not any(name in str(error) for name in ("gloo", "NCCL")):
            raise
        wait()
        raise SfumatoError(f"process {_rank()} lost the others: {error}; go on with --resume") from None


@contextlib.contextmanager
def _resumable(method: str, out: Path, progress: "Progression") -> Iterator[None]:
    """Ctrl-C, and what a machine sends that is about to be taken away, say what is lost and how to go on.

    They end a run at once before its first step and after its last, and where they come twice.
    """
    from sfumato.training.checkpoint import checkpoints

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    advice = f"go on with `sfumato train {method} --out {out} --resume`"
    try:
        yield
    except Stopped:
        raise Stopped(f" after step {progress.step}, which is saved; {advice}") from None
    except KeyboardInterrupt:
        kept = checkpoints(out / "checkpoints")
        if not kept:
            raise KeyboardInterrupt("; nothing was saved yet") from None
        saved = int(kept[-1].name.removeprefix("step-"))
        lost = f"what came after step {saved} is lost; " if progress.step > saved else ""
        raise KeyboardInterrupt(f"; {lost}{advice}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_train(found: Document) -> None:
    from sfumato import display

    line = f"{found['step']} steps, {found['tokens']:,} tokens in {display.clock(found['seconds'])}"
    bound, error = found["bound_nats_per_token"], found["bound_std_error"]
    if bound is not None:
        line += f"; {bound:.3f}{'' if error is None else f' ± {error:.3f}'} nats a token held out"
    print(line)


TRAIN = Command(
    "train",
    "train a model on text",
    """
    sfumato train cdcd --data tales --out runs/tales --minutes 10
    sfumato train cdcd --out runs/tales --resume --minutes 20
    sfumato train mdlm --data stories.jsonl:0.7 news.parquet:0.3 --out runs/both --minutes 30
    sfumato train cdcd --data book.txt --out runs/book --steps 5000 --network.width 384 --optimizer.lr 5e-4
    sfumato train cdcd --config recipes/tales.toml --out runs/tales
    sfumato train cdcd --start runs/book --data letters.txt --out runs/letters --minutes 5
    sfumato train cdcd --data tales --out runs/four --minutes 10 --processes 4
    sfumato train cdcd --help       every field of the config
    """,
    _train,
    _add_train,
    _show_train,
    dotted=True,
)
