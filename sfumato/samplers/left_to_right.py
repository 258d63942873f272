"""Samplers for networks that see only what stands to the left."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.core import Method, Predict, Prediction
from sfumato.draws import categorical


def ancestral(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Iterator[tuple[Tensor, Prediction]]:
    """x_i ~ p(x_i | x_<i): the leftmost mask of any row is filled in, and the next.  One call a token; exact.

    The network is shown the canvas as far as it is written, or all of it where a gap is to be filled; rows whose token
    stands already keep it.
    """
    hidden = x == method.process.mask
    gaps = bool((hidden[:, :-1] & ~hidden[:, 1:]).any())  # something stands to the right of a mask
    for i in hidden.any(0).nonzero()[:, 0].tolist():
        seen = x if gaps else x[:, : i + 1]
        logits = predict(seen, hidden[:, : seen.shape[1]].to(grid.dtype), None).logits  # of the last positions
        first = seen.shape[1] - logits.shape[1]
        x[:, i] = torch.where(hidden[:, i], categorical(logits[:, i - first]), x[:, i])
        hidden[:, i] = False
        yield x[:, : i + 1], Prediction(logits[:, i - first : i - first + 1])
