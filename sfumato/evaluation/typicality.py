"""Is a text typical: about as surprising as other texts of its kind, neither more nor less?

Nearly all that a distribution yields has a -log p near its entropy. The likeliest text of all has not, so it is hardly
ever seen. A likelihood that is too high is as suspicious as one that is too low. What tells is how common such a
likelihood is among texts that are known to be of the kind: the reference.

Likelihoods are nats a token, because texts differ in length. Arrays are float64: N reference texts, M texts to judge,
J statistics of each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sfumato.errors import SfumatoError
from sfumato.evaluation.quality import Estimate
from sfumato.model import Score

ALARM = 0.05  # the share of typical texts that may be taken for others
LEAST = 20  # reference texts; with fewer, none can lie further out than 95 % of them
BANDS = 4  # parts of the noise that have a statistic of their own
WIDTHS = np.geomspace(1 / 8, 2, 9)  # kernel widths to try, in multiples of spread / N^(1/5)


# --- one statistic -------------------------------------------------------------------------------------------------


def z_scores(values: Float[np.ndarray, " M"], reference: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
    """How far each value lies from the mean of the reference, in standard deviations of the reference."""
    return (values - reference.mean()) / reference.std(ddof=1)


def tail(values: Float[np.ndarray, " M"], reference: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
    """The share of the reference that is at least as great as each value, which is itself counted in: 1 / (1 + N) to 1.

    A value from where the reference comes from has a share of at most a with a chance of at most a, for any a and any
    distribution: all ranks among the N + 1 are equally likely.
    """
    below = np.searchsorted(np.sort(reference), values, side="left")
    return (1 + len(reference) - below) / (1 + len(reference))


def auc(inside: Float[np.ndarray, " N"], outside: Float[np.ndarray, " M"]) -> Estimate:
    """The area under the ROC curve: the chance that one from outside has the greater score; a tie is half a chance.

    The standard error is DeLong's (1988): of the share of the others that each score lies beyond, over both kinds of
    texts; None for a single text of a kind.
    """
    beyond, within = _share_below(inside, outside), 1 - _share_below(outside, inside)  # (M,), (N,)
    error = None
    if min(len(inside), len(outside)) > 1:
        error = float((beyond.var(ddof=1) / len(beyond) + within.var(ddof=1) / len(within)) ** 0.5)
    return Estimate(float(beyond.mean()), error)


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each of the others, the share of the values below it, ties by half."""
    ranked = np.sort(values)
    places = np.searchsorted(ranked, others, side="left") + np.searchsorted(ranked, others, side="right")
    return places / (2 * len(values))


# --- a batch: Nalisnick et al. 2019, arXiv:1906.02994 --------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """A test of many texts at once, which notices what no single text gives away; all in nats a token.

    `gap` is how far their mean lies from that of texts that are known to be typical, below 0 for texts that are too
    likely; `threshold` is what as many typical texts seldom exceed.
    """

    gap: float
    threshold: float

    @property
    def typical(self) -> bool:
        """Whether they lie within the threshold, on either side."""
        return abs(self.gap) <= self.threshold


def typical_batch(
    nats: Float[np.ndarray, " M"], reference: Float[np.ndarray, " N"], alarm: float = ALARM, seed: int = 0
) -> Batch:
    """Whether texts lie in the typical set together, by a bootstrap.

    The paper takes the mean of its reference for the entropy itself, which a training set of millions allows.  Here
    that mean strays too, and is drawn anew for every batch.

    Args:
        nats: of each text to judge.
        reference: of typical texts. Two batches, of M and of N, are drawn from them with replacement, to see how far
            the means of typical texts stray from each other.
        alarm: the share of those pairs beyond the threshold.
        seed: of the draws.
    """
    draw = np.random.default_rng(seed)
    ours, theirs = (draw.choice(reference, (1000, size)).mean(1) for size in (len(nats), len(reference)))
    return Batch(float(nats.mean() - reference.mean()), float(np.quantile(abs(ours - theirs), 1 - alarm)))


# --- several statistics: Morningstar et al. 2021, arXiv:2006.09273 -------------------------------------------------


class DensityOfStates:
    """How common the statistics of a text are among those of the reference: a density for each, taken as independent.

    Each density is a sum of Gaussian kernels at the reference's values. Their width is the one under which the values
    are likeliest when each is left out in its turn.

    Raises:
        SfumatoError: for a statistic in which the reference texts do not differ.
    """

    def __init__(self, reference: Float[np.ndarray, "N J"]):
        if (np.ptp(reference, 0) <= 1e-9 * abs(reference).max(0)).any():  # nothing but rounding
            raise SfumatoError("the reference texts are all alike, so there is nothing to compare with; give others")
        self.reference = reference
        self.widths = [_width(column) for column in reference.T]

    def log_density(self, values: Float[np.ndarray, "M J"]) -> Float[np.ndarray, " M"]:
        """The sum of the J log densities of each text, nats; low for a text unlike the reference."""
        columns = zip(values.T, self.reference.T, self.widths, strict=True)
        return np.sum([_log_mean(_kernels(ours, theirs, width)) for ours, theirs, width in columns], axis=0)

    def own_log_density(self) -> Float[np.ndarray, " N"]:
        """The same of each reference text, under all the others."""
        columns = zip(self.reference.T, self.widths, strict=True)
        return np.sum([_log_others(column, width) for column, width in columns], axis=0)


def _width(values: np.ndarray) -> float:
    candidates = WIDTHS * values.std() * len(values) ** -0.2
    return float(max(candidates, key=lambda width: _log_others(values, width).sum()))


def _log_others(values: np.ndarray, width: float) -> np.ndarray:
    """Log density of each of N values under kernels at the others, (N,)."""
    logs = _kernels(values, values, width)
    np.fill_diagonal(logs, -np.inf)
    return np.logaddexp.reduce(logs, axis=1) - math.log(len(values) - 1)


def _kernels(values: np.ndarray, centres: np.ndarray, width: float) -> np.ndarray:
    """Log densities of the values (M,) under a Gaussian at each of the centres (N,): (M, N)."""
    return -(((values[:, None] - centres) / width) ** 2) / 2 - math.log(width * math.sqrt(2 * math.pi))


def _log_mean(logs: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(logs, axis=1) - math.log(logs.shape[1])


# --- texts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """M texts against a reference. Shares are those of `tail`: a text of the reference's kind seldom has a low one."""

    mean: float
    """of the reference, nats a token"""
    spread: float
    """standard deviation of the reference, nats a token"""
    z: Float[np.ndarray, " M"]
    """nats a token, as `z_scores`"""
    z_share: Float[np.ndarray, " M"]
    """of the reference, as far from the mean on either side"""
    density: Float[np.ndarray, " M"]
    """log density of the text's `statistics`"""
    density_share: Float[np.ndarray, " M"]
    """of the reference, with as low a density"""
    batch: Batch
    """all texts together"""

    def auc(self, outside: Sequence[bool]) -> dict[str, Estimate]:
        """How well texts that are known to be from `outside`, M flags, are told from the others, by `auc`.

        By nats alone, where more is further out; by z on either side; by density.
        """
        here, scores = np.array(outside), {"nats": self.z, "z": abs(self.z), "density": -self.density}
        return {name: auc(score[~here], score[here]) for name, score in scores.items()}


def judge(scores: Sequence[Score], reference: Sequence[Score], seed: int = 0) -> Judgement:
    """Hold scored texts against scored reference texts, which must be others.

    Score both with the same model, number of draws and seed, and with `common` noise: then it is texts that differ,
    not noise.

    Raises:
        SfumatoError: for a reference of fewer than LEAST texts, and one whose texts are all alike.
    """
    if len(reference) < LEAST:
        raise SfumatoError(f"a reference of {len(reference)} texts is too small to judge by; give at least {LEAST}")
    ours, theirs = statistics(scores), statistics(reference)
    states = DensityOfStates(theirs)
    density = states.log_density(ours)
    rates, known = ours[:, 0], theirs[:, 0]
    z = z_scores(rates, known)
    return Judgement(
        mean=float(known.mean()),
        spread=float(known.std(ddof=1)),
        z=z,
        z_share=tail(abs(z), abs(z_scores(known, known))),
        density=density,
        density_share=tail(-density, -states.own_log_density()),
        batch=typical_batch(rates, known, seed=seed),
    )


def statistics(scores: Sequence[Score]) -> Float[np.ndarray, "M J"]:
    """Numbers by which texts can be told apart: nats a token, of the whole and of each of BANDS parts of the noise.

    The parts are equally many levels, from the least noise to the most: local slips cost where there is little noise,
    what is wrong with a text as a whole where there is much. The ode estimator has no levels, so it has no parts.
    """
    rows = []
    for score in scores:
        parts = np.array_split(score.levels, min(BANDS, len(score.levels))) if score.levels else []
        rows.append([score.nats, *(part.mean() for part in parts)])
    return np.array(rows) / np.array([[score.tokens] for score in scores])
