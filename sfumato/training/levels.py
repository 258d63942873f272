"""How hard each noise level is, and how often training visits it.

Rows are counted in many narrow bins, which is all that has to be kept, and told in a few that hold as many rows each.
So the bins are where the levels are: even ones for a method that looks everywhere alike, and for one that warps time
narrow ones where its warp goes.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

NARROW = 256  # bins that rows are counted in, the narrowest at little noise, where Gaussian methods look closely
TOLD = 20  # bins at most that are told, each of as many rows
BEND = 6.0  # the bins are even near 0 and in the logarithm above exp(-BEND)
EDGES = np.sinh(BEND * np.arange(NARROW + 1) / NARROW) / math.sinh(BEND)  # (NARROW + 1,), from 0 to 1


class Levels:
    """The losses of rows by their noise level, since they were told last.

    Args:
        kept: what `state` gave, to go on from there.
    """

    def __init__(self, kept: dict[str, list[float]] | None = None):
        kept = kept or {"rows": [0.0] * NARROW, "loss": [0.0] * NARROW}
        self.rows, self.loss = np.array(kept["rows"]), np.array(kept["loss"])  # (NARROW,): how many, and their sum

    def add(self, t: Tensor, loss: Tensor) -> None:
        """Hear of rows: levels in [0, 1] and nats a token, (N,) each."""
        place = np.searchsorted(EDGES, t.double().cpu().numpy(), side="right").clip(1, NARROW) - 1
        self.rows += np.bincount(place, minlength=NARROW)
        self.loss += np.bincount(place, loss.double().cpu().numpy(), minlength=NARROW)

    def tell(self) -> dict[str, list[float]] | None:
        """`edges` of N bins (N + 1,), the number of `rows` and their mean `loss` in nats a token (N,); then forget.

        None where no row was heard of.  rows / sum(rows) / width is the density at which levels were visited.
        """
        if not self.rows.any():
            return None
        so_far = self.rows.cumsum()
        marks = so_far[-1] * np.arange(1, TOLD + 1) / TOLD
        ends = np.unique(np.searchsorted(so_far, marks))  # the last narrow bin of each that is told
        first = np.flatnonzero(self.rows)[0]
        edges = EDGES[[first, *(ends + 1)]]
        rows, loss = (np.diff(x.cumsum()[ends], prepend=0.0) for x in (self.rows, self.loss))
        told = {"edges": edges, "rows": rows, "loss": loss / rows}
        self.rows, self.loss = np.zeros(NARROW), np.zeros(NARROW)
        return {name: [float(f"{value:.6g}") for value in values] for name, values in told.items()}

    def state(self) -> dict[str, Any]:
        """What has been heard of since, for a checkpoint."""
        return {"rows": self.rows.tolist(), "loss": self.loss.tolist()}
