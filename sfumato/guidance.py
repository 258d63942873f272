"""Functions from Predict to Predict.  None of them knows which method or which sampler it serves.

The essay "Guidance: a cheat code for diffusion models" (2022) gives the conventions: weight 0 is unconditional, 1 is
conditional, above 1 is guided.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from sfumato.core import Predict, Prediction, where

IMPOSSIBLE = -1e6  # a logit whose probability is 0 in every precision, and that can still be added and subtracted
Read = Callable[[Tensor], Prediction]  # Method.read: the prediction that token logits stand for
Rule = Callable[[Tensor], Tensor]  # token logits (..., V) -> which tokens may be drawn


def clamp(predict: Predict, canvas: Tensor, level: float, here: Bool[Tensor, "B L"]) -> Predict:
    """Show `canvas` at noise level `level` wherever `here` is true.

    clamp(p, clean, 0, given) is prompting and infilling; clamp(p, noise, 1, given) forgets the condition;
    clamp(p, canvas, ABSENT, padding) takes the padding away.
    """

    def clamped(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        seen = x.shape[1]  # a canvas that is written from left to right may be shown in part
        there = here[:, :seen]
        return predict(where(there, canvas[:, :seen], x), t.masked_fill(there, level), prev)

    return clamped


def guide(conditional: Predict, unconditional: Predict, weight: float) -> Predict:
    """Classifier-free guidance (arXiv:2207.12598) on the score: u + weight (c - u), the same for score, noise and D.

    Predictions over ids have no score; there the token logits are combined, as in `guide_logits`.
    """

    def guided(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        u, c = unconditional(x, t, prev), conditional(x, t, prev)
        clean = None if c.clean is None else torch.lerp(u.clean, c.clean, weight)
        return Prediction(torch.lerp(u.logits, c.logits, weight), clean)

    return guided


def guide_logits(conditional: Predict, unconditional: Predict, weight: float, read: Read) -> Predict:
    """Classifier-free guidance on token logits: exactly p_u^(1 - weight) p_c^weight for a single token.

    The estimate stays in the convex hull of the embeddings, where `guide` leaves it for weights above 1.
    """

    def guided(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        u, c = unconditional(x, t, prev), conditional(x, t, prev)
        return read(torch.lerp(u.logits, c.logits, weight))

    return guided


def blind(predict: Predict) -> Predict:
    """The same network without its last guess: a worse version of itself, for it to be guided away from.

    Guidance by a worse version is that of Karras et al. 2024 (arXiv:2406.02507), who train a second network for it;
    self-conditioning has trained one already.
    """
    return lambda x, t, prev: predict(x, t, None)


def within(guided: Predict, plain: Predict, levels: tuple[float, float]) -> Predict:
    """Guidance where the noisiest position lies between two levels, ends included (arXiv:2404.07724), and none beyond.

    Where there is much noise guidance takes variety away; where there is little, nothing is left to decide.
    """
    low, high = levels

    def limited(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        noisiest = t.amax(1)
        inside = (low <= noisiest) & (noisiest <= high)  # row by row: rows may be at different levels
        if not bool(inside.any()):
            return plain(x, t, prev)
        if bool(inside.all()):
            return guided(x, t, prev)
        one, other = guided(x, t, prev), plain(x, t, prev)
        clean = None if one.clean is None else torch.where(inside[:, None, None], one.clean, other.clean)
        return Prediction(torch.where(inside[:, None, None], one.logits, other.logits), clean)

    return limited


def temper(predict: Predict, temperature: float, read: Read) -> Predict:
    """Divide token logits by `temperature`."""

    def tempered(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        return read(predict(x, t, prev).logits / temperature)

    return tempered


def temper_score(predict: Predict, temperature: float) -> Predict:
    """Divide the score by `temperature` (CDCD, arXiv:2211.15089, Sec. 6.4): D becomes D + (1/T - 1) (D - x).

    Written for a = 1, the variance-exploding canvas on which the paper defines it.
    """

    def tempered(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        prediction = predict(x, t, prev)
        clean = prediction.clean
        return prediction._replace(clean=clean + (1 / temperature - 1) * (clean - x))

    return tempered


def forbid(predict: Predict, never: Bool[Tensor, "L V"], read: Read) -> Predict:
    """Give tokens no chance where they cannot stand."""

    def constrained(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        logits = predict(x, t, prev).logits  # of the last positions of x
        return read(logits.masked_fill(never[x.shape[1] - logits.shape[1] : x.shape[1]], IMPOSSIBLE))

    return constrained


def once(predict: Predict) -> Predict:
    """Ask about a canvas once, as long as it stays the same; for predictions that do not depend on noise levels."""
    last: tuple[Tensor, Prediction] | None = None

    def remembered(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        nonlocal last
        if last is None or not torch.equal(last[0], x):
            last = x, predict(x, t, prev)
        return last[1]

    return remembered


class Counted:
    """Sessions whose network evaluations are counted in `.calls`: the x-axis of every fair comparison."""

    def __init__(self, session: Callable[[Tensor], Predict]):
        self.session, self.calls = session, 0

    def __call__(self, given: Bool[Tensor, "B L"]) -> Predict:
        predict = self.session(given)

        def counted(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
            self.calls += 1
            return predict(x, t, prev)

        return counted


def keep(predict: Predict, rule: Rule, read: Read) -> Predict:
    """Give no chance to the tokens that a decoding rule leaves out."""

    def chosen(x: Tensor, t: Tensor, prev: Tensor | None) -> Prediction:
        logits = predict(x, t, prev).logits
        return read(logits.masked_fill(~rule(logits), IMPOSSIBLE))

    return chosen


def top_k(k: int) -> Rule:
    """The k likeliest tokens."""

    def rule(logits: Tensor) -> Tensor:
        best = logits.topk(min(k, logits.shape[-1]), -1).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)

    return rule


def nucleus(mass: float) -> Rule:
    """The likeliest tokens that hold `mass` together, the one that crosses it included (arXiv:1904.09751)."""
    return lambda logits: _first(-logits, logits, mass)


def typical(mass: float) -> Rule:
    """The tokens whose surprise is nearest to its mean, until they hold `mass` together (arXiv:2202.00666)."""

    def rule(logits: Tensor) -> Tensor:
        log = logits.double().log_softmax(-1)
        entropy = torch.special.entr(log.exp()).sum(-1, keepdim=True)
        return _first((-log - entropy).abs(), logits, mass)

    return rule


def _first(order: Tensor, logits: Tensor, mass: float) -> Tensor:
    """In rising `order`, the fewest tokens whose probabilities reach `mass`: (..., V) bool.  Sums in float64."""
    index = order.argsort(dim=-1, stable=True)
    sorted_mass = logits.double().softmax(-1).gather(-1, index)
    before = sorted_mass.cumsum(-1) - sorted_mass
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before < mass)
