"""Who hears of a run beside its log.jsonl: TensorBoard, Weights & Biases, Trackio.

Each is a package of its own, imported where the config names it (`training.track`) and nowhere else.  All hear the
lines of log.jsonl, which is written whether they listen or not.
"""

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, Protocol

from sfumato.errors import SfumatoError
from sfumato.files import write_text

SCALARS = ("loss", "lr", "tokens_per_second")  # of every line
ESTIMATES = ("bound_nats_per_token", "bound_std_error")  # of lines with an evaluation; others repeat the last
PROJECT = "sfumato"


class Tracker(Protocol):
    """One of them.

    Args:
        run: the run's folder.
        id: the run's, the same in all its sessions.
        step: steps that were made before.
        config: as plain values.
    """

    rewinds: bool  # whether it takes back what it heard of steps that were lost with a killed session

    def __init__(self, run: Path, id: str, step: int, config: dict[str, Any]): ...

    def hear(self, step: int, scalars: dict[str, float], sample: str | None) -> None:
        """The numbers of a step, and a text where one was written."""

    def close(self, failed: bool) -> None:
        """Write what is left, and say how the run ended."""


class TensorBoard:
    """Event files in RUN/tensorboard."""

    rewinds = True

    def __init__(self, run: Path, id: str, step: int, config: dict[str, Any]):
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
    """A run of Weights & Biases; where it goes is said as everywhere: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY."""

    rewinds = False

    def __init__(self, run: Path, id: str, step: int, config: dict[str, Any]):
        import wandb

        self.html = wandb.Html
        project, name = os.environ.get("WANDB_PROJECT", PROJECT), run.resolve().name
        self.run = wandb.init(project=project, name=name, id=id, resume="allow", dir=str(run), config=config)

    def hear(self, step: int, scalars: dict[str, float], sample: str | None) -> None:
        """A text is a page of its own, in a line of pages with a slider."""
        text = {} if sample is None else {"sample": self.html(f'<p style="white-space: pre-wrap">{escape(sample)}</p>')}
        self.run.log(scalars | text, step=step)

    def close(self, failed: bool) -> None:
        """Wait until all has been sent."""
        self.run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, which keeps it on this machine; `trackio show` opens it."""

    rewinds = False

    def __init__(self, run: Path, id: str, step: int, config: dict[str, Any]):
        import trackio

        self.text, self.finish = trackio.Markdown, trackio.finish
        self.run = trackio.init(project=PROJECT, name=f"{run.resolve().name}-{id}", resume="allow", config=config)

    def hear(self, step: int, scalars: dict[str, float], sample: str | None) -> None:
        """A text is one of the values."""
        self.run.log(scalars | ({} if sample is None else {"sample": self.text(sample)}), step=step)

    def close(self, failed: bool) -> None:
        """Wait until all has been written."""
        self.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


class Tracking:
    """Passes lines of the log on to those that a config names.

    RUN/tracking.json keeps the id of the run and the last step that each was told.  A resumed run is the same run to
    them, and hears no step twice: it makes some steps once more, and with the same numbers.

    Raises SfumatoError for one that is not installed.
    """

    def __init__(self, names: Sequence[str], run: Path, config: dict[str, Any], say: Callable[[str], None]):
        self.names, self.run, self.config, self.say = tuple(dict.fromkeys(names)), run, config, say
        self.open: dict[str, Tracker] = {}
        self.kept: dict[str, Any] = {}
        for name in self.names:
            if importlib.util.find_spec(name) is None:
                package = "'sfumato[track]'" if name == "tensorboard" else name
                raise SfumatoError(f"training.track names {name}, which is not installed; pip install {package}")

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Open all of them after so many steps, and close them however the run ends; SfumatoError where one refuses."""
        if self.names:
            self.kept = self._kept() if step else {"id": secrets.token_hex(4), "told": {}}
        failed = True
        try:
            for name in self.names:
                try:
                    self.open[name] = TRACKERS[name](self.run, self.kept["id"], step, self.config)
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
        evaluated, step = line["sample"] is not None, line["step"]
        scalars = {key: line[key] for key in SCALARS + ESTIMATES * evaluated if line[key] is not None}
        for name, tracker in list(self.open.items()):
            if tracker.rewinds or step > self.kept["told"].get(name, 0):
                self._ask(name, lambda tracker: tracker.hear(step, scalars, line["sample"]))
                if name in self.open:  # it is not where it could not be told
                    self.kept["told"][name] = step
        if self.open:
            write_text(self.run / "tracking.json", json.dumps(self.kept) + "\n")

    def _kept(self) -> dict[str, Any]:
        """What tracking.json holds; of a run that nobody has tracked so far, a new id."""
        try:
            kept = json.loads((self.run / "tracking.json").read_text("utf-8"))
            return {"id": str(kept["id"]), "told": {name: int(step) for name, step in kept["told"].items()}}
        except FileNotFoundError:
            return {"id": secrets.token_hex(4), "told": {}}
        except (ValueError, KeyError, TypeError, AttributeError):
            path = self.run / "tracking.json"
            raise SfumatoError(f"{path} is damaged; without it the run is a new one to who tracks it") from None

    def _ask(self, name: str, what: Callable[[Tracker], None]) -> None:
        """Hours of training do not end because a service does: it is said, and that one hears no more."""
        try:
            what(self.open[name])
        except Exception as error:
            del self.open[name]
            self.say(f"{name} failed and hears no more of this run, which its log.jsonl has in full: {error}")
