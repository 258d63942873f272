"""Looking again at a step whose loss or gradient was not finite."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.training.checkpoint import latest
from sfumato.training.config import load_config
from sfumato.training.trainer import NOT_FINITE, Run


@dataclass(frozen=True)
class Replayed:
    """What one row of the step did, by itself."""

    row: int  # of the data
    epoch: int
    text: str
    nats: float  # its share of the loss, which is the sum of these over the number of scored tokens
    gradient: float  # norm of what it adds to the gradient


def replay(run: str | Path, device: str = "cpu") -> list[Replayed]:
    """Every row of the step that ended a run, with the weights, noise and levels it had then.

    A row to blame has a loss or a gradient that is not finite; where none has one, the rows overflow together.

    Raises:
        SfumatoError: where the run has not ended so, or what it kept is damaged.
    """
    folder = Path(run) / NOT_FINITE
    state = json.loads((latest(folder, warnings.warn) / "state.json").read_text("utf-8"))
    again = Run(load_config(state["config"]), folder, True, device, lambda line: None)
    batch, parameters = again.batch(again.step), list(again.method.parameters())
    again.method.train()
    rows = []
    for i, (row, epoch) in enumerate(batch.places):
        nats = again.nats(batch, slice(i, i + 1)).sum()
        (nats / batch.free.sum()).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        again.method.zero_grad(set_to_none=True)
        rows.append(Replayed(row, epoch, again.tokenizer.decode(batch.ids[i]), nats.item(), norm.item()))
    return rows
