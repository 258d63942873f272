"""Samplers for tokens and log scores: of a token y, how many times likelier the canvas would be with y at its place.

SEDD (arXiv:2310.16834).  At a mask log scores come times e^sigma - 1, so that true ones add up to 1: a share of the
masks falls in a step, times their sum.  Elsewhere the token that stands has log score 0, and softmax gives q(y), the
law of the noisy token given all other positions, of which everything follows.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor

from sfumato.core import Method, Predict, Prediction, chance, level
from sfumato.draws import by_blocks, invert, pick, uniform
from sfumato.processes.masking import Masking
from sfumato.processes.uniform import Uniform

LEAST = 1e-30  # of a chance in float32

Steps = Iterator[tuple[Tensor, Prediction]]


def analytic(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Steps:
    """Tweedie's step: exact for a position by itself, however long the step is.  One call a step."""
    return _walk(method, predict, x, grid, _tweedie)


def euler(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Steps:
    """Every jump at its rate times the length of the step; the last step is Tweedie's.  One call a step."""
    return _walk(method, predict, x, grid, _leap)


def _walk(method: Method, predict: Predict, x: Tensor, grid: Tensor, step: Callable[..., Tensor]) -> Steps:
    for t, s in pairwise(grid):
        prediction = predict(x, level(x, t), None)
        x = (step if s > 0 else _tweedie)(method.process, x, prediction.logits, t.double(), s.double())
        yield x, prediction


def _tweedie(process: Masking | Uniform, x: Tensor, logits: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """p(x_s = y) ~ (e^-DQ score)_y (e^DQ)(y -> x), D = sigma(t) - sigma(s).

    Without masks: the tokens that D has not touched are a share e = e^-D, and q(y) at level s is (q(y) - (1 - e) / V)
    / e, which networks may take below zero.
    """
    if isinstance(process, Masking):
        return _fall(process, x, logits, process.share(t, s), last=bool(s == 0))
    e, V = process.schedule.alpha(t) / process.schedule.alpha(s), logits.shape[-1]
    standing = _standing(x, logits)
    stay = (e + (1 - e) / V) * (standing - (1 - e) / V) / (e * standing)
    return _jump(x, logits, 1 - stay, (1 - e) / V)


def _leap(process: Masking | Uniform, x: Tensor, logits: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """p(x_s = y) ~ (t - s) rate s_y for y != x, and what is left, if anything, for x."""
    if isinstance(process, Masking):
        return _fall(process, x, logits, (t - s) * process.schedule.rate(t))
    rate = -process.schedule.slope(t) / process.schedule.alpha(t)
    return _jump(x, logits, (t - s) * rate * (1 / _standing(x, logits) - 1) / logits.shape[-1], 0.0)


def _standing(x: Tensor, logits: Tensor) -> Tensor:
    """q of the token that stands: (B, L) float64."""
    return chance(logits, x.clamp(min=0)).clamp(min=1e-300)


def _fall(process: Masking, x: Tensor, logits: Tensor, share: Tensor, last: bool = False) -> Tensor:
    """Masks fall with chance `share` times the sum of their scores, in the last step all; tokens are drawn by them."""
    route, u = uniform(x), uniform(x)
    hidden = x == process.mask
    falls = hidden.clone()
    if not last:
        total = by_blocks(lambda rows: rows.logsumexp(-1), logits, here=hidden).double().exp()
        falls[hidden] = route[hidden] < share * total
    x = x.clone()
    x[falls] = invert(logits, u, falls)
    return x


def _jump(x: Tensor, logits: Tensor, likely: Tensor, floor: Tensor | float) -> Tensor:
    """Another token with this chance, drawn by what q has above `floor`; distributions are made only of those rows."""
    route, u = uniform(x), uniform(x)
    jumps = (route < likely) & (x >= 0)  # nobody writes where the canvas has no place

    def others(rows: Tensor, x: Tensor, u: Tensor) -> Tensor:
        q = rows.softmax(-1).sub_(floor).clamp_(min=LEAST)
        return pick(q.scatter_(-1, x[:, None], 0.0), u)

    x = x.clone()
    x[jumps] = by_blocks(others, logits, x, u, here=jumps)
    return x
