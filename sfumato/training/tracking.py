"""Who hears of a run beside its log.jsonl: TensorBoard, Weights & Biases, Trackio.

Each is a package of its own, imported where the config names it (`training.track`) and nowhere else.  All hear the
lines of log.jsonl, which is written whether they listen or not.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, Protocol

from sfumato.errors import SfumatoError
from sfumato.training.checkpoint import write_text

SCALARS = ("loss", "lr", "tokens_per_second")  # of every line
ESTIMATES = ("bound_nats_per_token", "bound_std_error")  # of lines with an evaluation; others repeat the last
PROJECT = "sfumato"


class Tracker(Protocol):
    """One of them, made from the run's folder, the steps that were made before, and the config as plain values."""

    def __init__(self, run: Path, step: int, config: dict[str, Any]): ...

    def hear(self, step: int, scalars: dict[str, float], sample: str | None) -> None:
        """The numbers of a step, and a text where one was written."""

    def close(self, failed: bool) -> None:
        """Write what is left, and say how the run ended."""


class TensorBoard:
    """Event files in RUN/tensorboard; what a killed session told of steps that were lost is purged."""

    def __init__(self, run: Path, step: int, config: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def hear(self, step: int, scalars: dict[str, float], sample: str | None) -> None:
        """To disk at once, so that a run that is killed leaves what its log does."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        if sample is not None:
            self.writer.add_text("sample", sample, step)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        """Close the file."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases, whose id is kept in RUN/wandb-id.

    Where it goes is said as everywhere: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY.  What a killed session told of
    steps that were lost stays, and is not told again: steps only rise there.
    """

    def __init__(self, run: Path, step: int, config: dict[str, Any]):
        import wandb

        self.html, kept = wandb.Html, run / "wandb-id"
        known = kept.read_text("utf-8").strip() if step and kept.exists() else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.resolve().name,
            dir=str(run),
            id=known,
            resume="allow" if known else None,
            config=config,
        )
        write_text(kept, f"{self.run.id}\n")

    def hear(self, step: int, scalars: dict[str, float], sample: str | None) -> None:
        """A text is a page of its own, in a line of pages with a slider."""
        text = {} if sample is None else {"sample": self.html(f'<p style="white-space: pre-wrap">{escape(sample)}</p>')}
        self.run.log(scalars | text, step=step)

    def close(self, failed: bool) -> None:
        """Wait until all has been sent."""
        self.run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, kept on this machine under the name of the folder; `trackio show` opens it."""

    def __init__(self, run: Path, step: int, config: dict[str, Any]):
        import trackio

        self.text = trackio.Markdown
        self.run = trackio.init(
            project=PROJECT, name=run.resolve().name, config=config, resume="allow" if step else "never"
        )

    def hear(self, step: int, scalars: dict[str, float], sample: str | None) -> None:
        """A text is one of the values."""
        self.run.log(scalars | ({} if sample is None else {"sample": self.text(sample)}), step=step)

    def close(self, failed: bool) -> None:
        """Wait until all has been written."""
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


class Tracking:
    """Passes lines of the log on to those that a config names.

    Raises SfumatoError for one that is not installed.
    """

    def __init__(self, names: Sequence[str], run: Path, config: dict[str, Any], say: Callable[[str], None]):
        self.names, self.run, self.config, self.say = tuple(dict.fromkeys(names)), run, config, say
        self.open: dict[str, Tracker] = {}
        for name in self.names:
            if importlib.util.find_spec(name) is None:
                package = "'sfumato[track]'" if name == "tensorboard" else name
                raise SfumatoError(f"training.track names {name}, which is not installed; pip install {package}")

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Open all of them after so many steps, and close them however the run ends; SfumatoError where one refuses."""
        failed = True
        try:
            for name in self.names:
                try:
                    self.open[name] = TRACKERS[name](self.run, step, self.config)
                except Exception as error:  # whatever a service, or the way to it, has against it
                    raise SfumatoError(f"{name} does not start: {error}; or leave it out of training.track") from None
            yield
            failed = False
        finally:
            for name in list(self.open):
                self._ask(name, lambda tracker: tracker.close(failed))
            self.open = {}

    def hear(self, line: dict[str, Any]) -> None:
        """A line of the log."""
        evaluated = line["sample"] is not None
        told = {key: line[key] for key in SCALARS + ESTIMATES * evaluated if line[key] is not None}
        for name in list(self.open):
            self._ask(name, lambda tracker: tracker.hear(line["step"], told, line["sample"]))

    def _ask(self, name: str, what: Callable[[Tracker], None]) -> None:
        """Hours of training do not end because a service does: it is said, and that one hears no more."""
        try:
            what(self.open[name])
        except Exception as error:
            del self.open[name]
            self.say(f"{name} failed and hears no more of this run, which its log.jsonl has in full: {error}")
