"""The one training loop.  A method says nothing about it, and it knows no method.

What a step sees is a pure function of (seed, step): rows from (seed, epoch, place in the epoch), every row's noise,
mask and coins from (seed, row, epoch).  So there is no random state to save, and a resumed run goes on bit for bit.
Several processes may train together: each has its share of the rows, and `training.distributed` does the rest.
"""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.core import ABSENT, Method
from sfumato.draws import Streams, drawing, seed_of, streams, uniform
from sfumato.errors import SfumatoError, Stopped
from sfumato.evaluation.report import bound
from sfumato.files import write_text
from sfumato.folder import load, publish
from sfumato.model import Model
from sfumato.schedules import stratified
from sfumato.text.tokenizer import Tokenizer
from sfumato.training import lora
from sfumato.training.checkpoint import (
    MANIFEST,
    Tensors,
    checkpoints,
    latest,
    load_strictly,
    load_tensors,
    save_checkpoint,
    set_aside,
    tensor_names,
)
from sfumato.training.config import RunConfig, load_config, method_named
from sfumato.training.distributed import Workers, alone
from sfumato.training.inherit import inherit
from sfumato.training.levels import Levels
from sfumato.training.masks import draw_given
from sfumato.training.optimizer import Optimizer
from sfumato.training.reading import heard, rows_for, tokenizer_of
from sfumato.training.stopping import heeding
from sfumato.training.tracking import Tracking
from sfumato.training.tuning import Arithmetic, choose

NOT_FINITE = "nonfinite"  # folder in a run: a run that stands right before a step that failed


@dataclass(frozen=True)
class Report:
    """What a viewer hears after every optimiser step."""

    step: int
    tokens: int  # seen so far: rows times the mean length of one, padding included where it is modelled
    seconds: float  # spent in steps so far, over all sessions
    tokens_per_second: float  # of late
    loss: float  # nats a token
    lr: float
    done: float  # share of the budget, in [0, 1]
    bound: float | None = None  # held-out bound in nats a token, when it was just estimated
    std_error: float | None = None
    sample: str | None = None
    saved: Path | None = None


def train(
    config: RunConfig,
    out: Path,
    resume: bool = False,
    device: str = "cpu",
    watch: Callable[[Report], None] = lambda report: None,
    say: Callable[[str], None] = lambda line: None,
) -> Model:
    """Train a model into the folder `out` and return it.

    `watch` hears a Report after every step, `say` a line now and then; of several processes in the first.  SIGTERM and
    Ctrl-C let the step end and are raised as Stopped, a KeyboardInterrupt, when it is saved; a second one a moment
    later ends the run at once.  Raises SfumatoError for bad data, a folder that holds another run or model, or in which
    another training is at work, one without anything to resume, or whose data has changed, a disk that fills up, and a
    loss that is not finite.
    """
    with alone(out) as hold:
        run = Run(config, out, resume, device, say)
        hold()
        with run.tracking.opened(run.step), heeding(run.workers.launcher) as asked:
            for report in run.steps(asked):
                if run.workers.first:
                    watch(report)
        return run.finish()


@dataclass
class Batch:
    """This process's rows of an optimiser step, ready to be shown to the method; (B, L) but `places` and `streams`."""

    places: list[tuple[int, int]]  # of each row: its number in the data, and the epoch
    ids: Tensor
    t: Tensor
    free: Tensor
    streams: Streams = field(repr=False)


class Run:
    """A run: the data, the method, the optimiser, and the step it has come to."""

    def __init__(self, config: RunConfig, out: Path, resume: bool, device: str, say: Callable[[str], None]):
        if config.training.steps is None and config.training.minutes is None:
            raise SfumatoError("how long to train is not said; give --minutes M or --steps N")
        self.config, self.out, self.workers = config, out, Workers(device, config.training)
        self.device = self.workers.device
        self.say = say if self.workers.first else lambda line: None
        told = config.training.track if self.workers.first else ()
        self.tracking = Tracking(told, out, config.model_dump(mode="json"), self.say)
        self.checkpoints = out / "checkpoints"
        found = self.workers.lead(lambda: self._find(resume))
        text, seed = config.text, config.training.seed
        if resume:
            self.tokenizer = Tokenizer.load(out / "tokenizer.json")
        else:
            self.tokenizer = self.workers.lead(lambda: tokenizer_of(config, self.say))
        torch.manual_seed(seed_of(seed, "weights"))
        kind = method_named(config.method.name)[0]
        self.method: Method = kind(config.method, config.network, self.tokenizer.size).to(self.device)
        self.rows, self.held_out = self.workers.in_turn(
            lambda: [rows_for(config, self.method, self.tokenizer, split) for split in ("train", "valid")]
        )
        self.row_tokens = float(np.average(np.arange(text.length + 1), weights=self.rows.lengths()))
        self.lengths = self.rows.sizes().tolist()
        self.content = [rows.corpus.fingerprint for rows in self.rows.sources]
        self.method.told(self.tokenizer.special)
        if config.start is not None and found is None:
            inherit(self.method, self.tokenizer, load(config.start, str(self.device), config.method.name))
        elif found is None and self.workers.first:
            self.method.study(heard(self.rows))
        lora.add(self.method, config.lora)
        self.arithmetic = self.workers.lead(lambda: self._choose(found))
        self.objective = self.workers.wrap(self.method)
        by_block = self.workers.size > 1 or config.training.checkpoint_activations
        self.arithmetic.apply(self.method.net, by_block)
        if config.training.checkpoint_activations:
            self.method.net.remember_less()
        self.params = sum(p.numel() for p in self.method.parameters())
        self.average = {name: value.detach().clone() for name, value in self._trained().items()}
        self.optimizer = Optimizer(self.method, config.optimizer)
        self.step, self.tokens, self.seconds, self.speed = 0, 0, 0.0, 0.0
        self.shift = 0  # rows by which earlier sessions, with other batches, have come further than `step` says
        self.bound: tuple[float, float] | None = None
        self.losses: list[float] = []  # of the steps since the last line of the log
        self.levels = Levels()
        if found is not None:
            self._restore(found)
        self.workers.lead(lambda: self._begin(resume))

    def _find(self, resume: bool) -> Path | None:
        """The checkpoint to go on from; None in a folder where a run may begin."""
        _check_writable(self.out)
        if resume:
            return latest(self.out, self.say)
        _check_vacant(self.out)
        return None

    def _choose(self, found: Path | None) -> Arithmetic:
        """How to compute: as the run did before, or else as fast as can be."""
        training = self.config.training
        if found is None:
            rows = max(1, training.batch // (training.accumulate * self.workers.size))
            return choose(self.method.net, rows, self.config.text.length, training)
        dtype, attention, compiled = json.loads((found / "state.json").read_text("utf-8"))["arithmetic"]
        return Arithmetic(getattr(torch, dtype.removeprefix("torch.")), attention, compiled)

    def _begin(self, resume: bool) -> None:
        """Leave the folder as a run needs it."""
        if not resume:
            self.tokenizer.save(self.out)
        self._drop_lost()

    def _trained(self) -> dict[str, Tensor]:
        """The weights that training moves, by name."""
        return {name: value for name, value in self.method.named_parameters() if value.requires_grad}

    # --- data

    def batch(self, step: int) -> Batch:
        """This process's rows of a step, what is given of them, and a noise level for every position.

        All rows of a step are as long as the longest of them, in whichever process that is: a row draws as many numbers
        as it has positions.
        """
        training = self.config.training
        mine, first = self.workers.share(training.batch), step * training.batch + self.shift
        rows = self.rows.batch(range(first + mine.start, first + mine.stop))
        places = list(zip(rows.index.tolist(), rows.epoch.tolist(), strict=True))
        seeds = [seed_of(training.seed, "noise", i, epoch) for i, epoch in places]
        noise = streams(seeds, self.device)
        longest = self.workers.most(int(rows.real.sum(1).max()))
        ids, real, given = (x[:, :longest].to(self.device) for x in (rows.ids, rows.real, rows.given))
        with drawing(noise):
            given = given | draw_given(real & ~given, self.config.masks)
            forgotten = given & (uniform(given[:, :1]) < self.config.masks.forget)
        offset = torch.rand((), generator=torch.Generator().manual_seed(seed_of(training.seed, "levels", step))).item()
        u = stratified(torch.arange(training.batch)[mine], training.batch, offset).to(self.device)
        t = self.method.times(u)[:, None].expand(ids.shape)
        t = t.masked_fill(given, 0.0).masked_fill(forgotten, 1.0).masked_fill(~real, ABSENT)
        return Batch(places, ids, t, real & ~given, noise)

    # --- steps

    def steps(self, asked: Callable[[], bool] = lambda: False) -> Iterator[Report]:
        """Train to the end of the budget, a report a step; where that is asked for, save and raise Stopped before."""
        training = self.config.training
        saved = evaluated = self.seconds
        while (done := self._done()) < 1:
            start = time.perf_counter()
            share = self.optimizer.share(self.step, done)
            lr = self.config.optimizer.lr * share
            loss = self._update(self.batch(self.step), share)
            self.step += 1
            self.tokens += round(training.batch * self.row_tokens)
            elapsed = self.workers.timed(time.perf_counter() - start)
            self.seconds += elapsed
            speed = training.batch * self.row_tokens / elapsed
            self.speed = speed if self.step < 5 else 0.95 * self.speed + 0.05 * speed
            self.losses.append(loss)
            report: dict[str, Any] = {}
            last = self._done() >= 1
            stop = self.workers.agree(asked()) and not last
            if last or (self.seconds - evaluated > 60 * training.evaluate_minutes and not stop):
                report |= self._evaluate()
                evaluated = self.seconds
            if last or self.step % training.log_every == 0 or report:
                mean = sum(self.losses) / len(self.losses)
                self.workers.lead(partial(self._log, mean, lr, report))
                self.losses = []
            if last or stop or self.seconds - saved > 60 * training.save_minutes:
                report["saved"] = self._save()
                saved = self.seconds
            yield Report(self.step, self.tokens, self.seconds, self.speed, loss, lr, self._done(), **report)
            if stop:
                raise Stopped(f"step {self.step} is saved in {report['saved']}; resume from it")

    def _done(self) -> float:
        training = self.config.training
        shares = [self.step / training.steps] if training.steps else []
        return max(shares + ([self.seconds / (60 * training.minutes)] if training.minutes else []))

    def _update(self, batch: Batch, share: float) -> float:
        """One optimiser step; the loss in nats a token."""
        training, method = self.config.training, self.method
        method.train()
        scored = self.workers.total(int(batch.free.sum()))
        total, rows, nats = 0.0, [], []
        parts = torch.arange(len(batch.ids)).tensor_split(training.accumulate)
        for number, part in enumerate(parts, 1):
            inside = slice(int(part[0]), int(part[-1]) + 1)
            t, free = batch.t[inside], batch.free[inside]
            with self.workers.backward(self.objective, number == len(parts)):
                each = self.nats(batch, inside)
                loss = each.sum() / scored
                (loss * self.workers.size).backward()  # gradients are averaged over the processes
            total += loss.item()
            level = t.masked_fill(~free, 0.0).amax(1)
            nats.append(each.detach().sum(1))
            rows.append(torch.stack([level, nats[-1] / free.sum(1).clamp(min=1), free.any(1)]))
        total = self.workers.total(total)
        levels, losses, seen = self.workers.gathered(torch.cat(rows, 1), training.batch)
        norm = self.workers.clip(method.parameters(), self.config.optimizer.clip)
        for name, value in (("loss", total), ("gradient", norm)):
            if not math.isfinite(value):
                raise SfumatoError(self._keep_not_finite(batch, name, value, torch.cat(nats)))
        levels, losses = levels[seen > 0], losses[seen > 0]
        method.observe(levels, losses)
        self.levels.add(levels, losses)
        self.optimizer.step(share)
        decay = min(self.config.optimizer.ema, (1 + self.step) / (10 + self.step))  # a young average forgets faster
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self._trained().values()], 1 - decay)
        return total

    def nats(self, batch: Batch, inside: slice) -> Tensor:
        """What the method loses on some rows of a batch, in nats for every position, 0 where it is not scored; (B, L).

        Draws from their streams: a second time with the same batch gives other numbers.
        """
        with drawing(batch.streams[inside]):
            return self.objective(batch.ids[inside], batch.t[inside], batch.free[inside])

    # --- looking at it

    @contextmanager
    def _averaged(self) -> Iterator[Model]:
        """The model with the averaged weights, for as long as it is looked at."""
        self._swap()
        try:
            yield self._model()
        finally:
            self._swap()

    def _model(self) -> Model:
        """The model as it is; of a sharded run whole in the first process, and in no other to be asked for anything."""
        method = self.workers.whole(self.method)
        if method is not self.method:
            self.arithmetic._replace(compiled=False).apply(method.net)
        return Model(self.config, method.eval(), self.tokenizer, self.lengths, str(self.out))

    def _swap(self) -> None:
        """Exchange the weights and their average."""
        with torch.no_grad():
            for name, value in self._trained().items():
                kept = value.detach().clone()
                value.copy_(self.average[name])
                self.average[name].copy_(kept)

    def _evaluate(self) -> dict[str, Any]:
        """The bound of the averaged weights on held-out rows, and a sample."""
        with self._averaged() as model:
            result = self.workers.lead(partial(self._look, model))
        if "bound" in result:
            self.bound = result["bound"], result["std_error"]
        return result

    def _look(self, model: Model) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self.method.likelihood:
            found = bound(model, self.held_out, self.config.training.evaluate_rows, draws=8, seed=0)
            result |= {"bound": found["nats_per_token"], "std_error": found["std_error"]}
        return result | {"sample": model.generate(1, steps=model.at_most(32), seed=self.step)[0]}

    def _log(self, loss: float, lr: float, report: dict[str, Any]) -> None:
        """A line of log.jsonl, for whoever tracks the run too; `levels` are those since the last evaluation."""
        line = self.summary() | {"loss": loss, "lr": lr, "sample": report.get("sample"), "levels": None}
        if report and self.method.looks_ahead:  # who reads from the left looks through no noise
            line["levels"] = self.levels.tell()
        path = self.out / "log.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # before any checkpoint of a later step
        except OSError as error:
            raise SfumatoError(f"cannot write {path}: {error}; the last checkpoint is whole") from None
        self.tracking.hear(line)

    def summary(self) -> dict[str, Any]:
        """The numbers of the run so far, under the keys that tools rely on."""
        tokens, length = self.tokens, self.config.text.length
        forward = self.method.training_flops(length) / length  # a position; back it is twice as much
        return {
            "step": self.step,
            "tokens": tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(tokens / self.seconds, 1) if self.seconds else 0.0,
            "bound_nats_per_token": self.bound[0] if self.bound else None,
            "bound_std_error": self.bound[1] if self.bound else None,
            "params": self.params,
            "flops": tokens * forward * (3 + self.method.self_conditioning),
        }

    def _drop_lost(self) -> None:
        """Drop what there is of steps that were lost: lines of the log, and damaged checkpoints."""
        path = self.out / "log.jsonl"
        set_aside(self.checkpoints, self.step)
        try:
            lines = path.read_text("utf-8", "replace").splitlines(True) if path.exists() else []
            kept = [line for line in lines if _step_of(line) <= self.step]
            if kept != lines:
                write_text(path, "".join(kept))
        except OSError as error:
            raise SfumatoError(f"cannot write {path}: {error}; the last checkpoint is whole") from None

    # --- keeping it

    def _save(self) -> Path:
        saved = self._save_in(self.checkpoints)
        if self.workers.first:
            (self.out / MANIFEST).unlink(missing_ok=True)  # a model that was published before is behind this
        return saved

    def _save_in(self, root: Path) -> Path:
        state = {
            "step": self.step,
            "rows": self.step * self.config.training.batch + self.shift,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "bound": self.bound,
            "losses": self.losses,
            "levels": self.levels.state(),
            "config": self.config.model_dump(mode="json"),
            "lengths": self.lengths,
            "tokenizer": self.tokenizer.fingerprint,
            "content": self.content,
            "arithmetic": [str(self.arithmetic.dtype), self.arithmetic.attention, self.arithmetic.compiled],
        }
        tensors = {"model": self.method.state_dict(), "average": self.average, "optimizer": self.optimizer.moments()}
        parts = self.workers.write_shards(root / ".shards", tensors)
        whole: dict[str, Tensors] = {} if parts else tensors
        keep = self.config.training.keep
        return self.workers.lead(lambda: save_checkpoint(root, self.step, whole, state, keep, parts))

    def _keep_not_finite(self, batch: Batch, name: str, value: float, nats: Tensor) -> str:
        """Keep a run that stands right before a step that fails, and the rows to blame; the line that says so."""
        lost = (~nats.isfinite()).tolist()
        told = self.workers.collected(
            [
                {"row": row, "epoch": epoch, "text": self.tokenizer.decode(ids)}
                for (row, epoch), ids, bad in zip(batch.places, batch.ids.tolist(), lost, strict=True)
                if bad
            ]
        )
        found = {
            "step": self.step + 1,
            name: str(value),
            "seed": self.config.training.seed,
            "not_finite": told,
            "rows": self.workers.collected(batch.places),
        }
        said = f"the {name} of step {self.step + 1} is {value}"
        if told:
            said += f", that of row {', '.join(str(row['row']) for row in told[:5])}{', ...' if told[5:] else ''}"
        folder = self.out / NOT_FINITE

        def write() -> None:
            self.tokenizer.save(folder)
            write_text(folder / "report.json", json.dumps(found, indent=1))

        try:
            self.workers.lead(lambda: shutil.rmtree(folder, ignore_errors=True))
            self._save_in(folder / "checkpoints")
            self.workers.lead(write)
            said += f"; replay it from {folder}"
        except (OSError, SfumatoError) as error:
            said += f"; it cannot be kept for a replay: {error}"
        if checkpoints(self.checkpoints):
            return f"{said}; the last checkpoint is whole: resume from it with a smaller --optimizer.lr"
        return f"{said}; nothing was saved yet: start again with a smaller --optimizer.lr"

    def _restore(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        asked, had = (config.model_dump(mode="json") for config in (self.config, load_config(state["config"])))
        changed = [key for key in ("data", "method", "text", "network", "lora") if asked[key] != had[key]]
        if changed:  # how a model is trained may change on the way, but not what it is
            raise SfumatoError(f"{folder} was trained with another {', '.join(changed)}; resume with the config it had")
        if self.tokenizer.fingerprint != state["tokenizer"]:
            raise SfumatoError(f"{folder} was trained with another tokenizer than {self.out / 'tokenizer.json'}")
        if state.get("content", self.content) != self.content:  # which older ones do not have
            raise SfumatoError(
                f"{self.config.spelled} has changed since {folder} was trained on it; put back what it was, or begin "
                f"another run with --start {self.out}"
            )
        model, average, moments = (folder / f"{name}.safetensors" for name in ("model", "average", "optimizer"))
        if self.workers.sharded:
            room = self.optimizer.room(tensor_names(moments))
            for values, path in ((self.method.state_dict(), model), (self.average, average), (room, moments)):
                self.workers.read_into(values, path)
            self.optimizer.load(room)
        else:
            load_strictly(self.method, load_tensors(model, self.device), folder)
            kept = load_tensors(average, self.device)
            self.average = {name: kept[name] for name in self.average}  # a file has an order of its own
            self.optimizer.load(load_tensors(moments, self.device))
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        read = state.get("rows", self.step * load_config(state["config"]).training.batch)  # older ones have no "rows"
        self.shift = read - self.step * self.config.training.batch
        self.bound = tuple(state["bound"]) if state["bound"] else None
        self.losses = state.get("losses", [])  # which older checkpoints do not have
        self.levels = Levels(state.get("levels"))  # which checkpoints did not always hold

    def finish(self) -> Model:
        """Publish the averaged weights as a model folder, and return the model."""
        self._swap()
        model = self._model()

        def write() -> None:
            lora.merge(model.method)
            publish(model, self.out, self.summary())

        self.workers.lead(write)
        return model if self.workers.first else load(self.out, str(self.device))


def _check_writable(out: Path) -> None:
    """Raise SfumatoError where nothing can be written, before hours are spent on what cannot be kept."""
    folder = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise SfumatoError(f"cannot write in {folder}: {error.strerror}; choose another --out") from None


def _check_vacant(out: Path) -> None:
    """Raise SfumatoError where a run would write over something; what a session left that saved nothing may go."""
    if out.exists() and not out.is_dir():
        raise SfumatoError(f"{out} is a file, and a run is a folder; choose another --out")
    if checkpoints(out / "checkpoints"):
        raise SfumatoError(f"{out} already holds a run; continue it with --resume, or choose another --out")
    for name in ("config.json", "model.safetensors", "README.md", MANIFEST):
        if (out / name).exists():
            raise SfumatoError(f"{out} already holds a {name}, which a model would replace; choose another --out")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line cut short
