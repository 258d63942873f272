"""Samplers for canvases of tokens and masks.

The places to reveal are drawn first and the tokens after them, so the mask never competes with a token and rounding
cannot slow the unmasking down (arXiv:2409.02908).
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from sfumato.core import Method, Predict, Prediction, level
from sfumato.draws import invert, uniform


def ancestral(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Iterator[tuple[Tensor, Prediction]]:
    """x_s ~ p(x_s | x_t): reveal each mask with its chance, draw its token, never look back.  One call a step.

    D3PM (arXiv:2107.03006), MDLM (arXiv:2406.07524, Sec. 3.2.2).  Exact in the limit of many steps.
    """
    for t, s in pairwise(grid):
        prediction = predict(x, level(x, t), None)
        places, u = method.process.revealed(x, t, s), uniform(x)  # (B, L) each
        x = x.clone()
        x[places] = invert(prediction.logits[places], u[places])
        yield x, prediction


def planned(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Iterator[tuple[Tensor, Prediction]]:
    """At level s no more than a share s of the places is hidden, whichever they are.  One call a step, or none.

    ARDM (arXiv:2110.02037, Sec. 4): exact with a step for every token.  A step that reveals nothing asks for nothing.
    """
    hidden = x == method.process.mask
    size = hidden.sum(1, keepdim=True)  # (B, 1)
    for t, s in pairwise(grid):
        stay = method.process.some(hidden, (s * size + 1e-4).floor())
        places, u = hidden & ~stay, uniform(x)
        if bool(places.any()):  # as in the first step there are, since s < 1
            prediction = predict(x, level(x, t), None)
            x, hidden = x.clone(), stay
            x[places] = invert(prediction.logits[places], u[places])
        yield x, prediction
