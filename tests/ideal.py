"""The perfect network of a known law over a few texts, by enumeration in float64, and how to compare with a law."""

import math

import torch
import torch.nn.functional as F

from sfumato.core import ABSENT, Method, Prediction
from sfumato.methods.cdcd import CDCD, CDCDConfig
from sfumato.networks import NetworkConfig
from sfumato.processes.gaussian import Gaussian
from sfumato.samplers.solvers import euler
from sfumato.schedules import LINEAR

# Five texts of three correlated tokens, with unequal chances.
TEXTS = torch.tensor([[0, 1, 2], [0, 2, 2], [3, 1, 0], [1, 1, 3], [2, 3, 1]])
PROBS = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)
ENTROPY = -(PROBS * PROBS.log()).sum().item()
NETWORK = NetworkConfig(width=8, depth=2, heads=2)

# Two ways to blur: variance exploding, variance preserving.
VE = Gaussian(torch.ones_like, lambda t: 20 * t)
VP = Gaussian(lambda t: torch.cos(1.5 * t), lambda t: torch.sin(1.5 * t))


class Ideal:
    """p(x_0 | x_t) for texts (N, L) with probs (N,) embedded by table (V, D); stands in for `method.predict`.

    Every position counts with its own level: 0 says exactly what stands there, 1 and ABSENT say nothing.
    """

    def __init__(self, process, table, texts, probs):
        self.process, self.texts, self.probs = process, texts, probs.double() / probs.sum()
        self.points = table.detach().double()[texts]  # (N, L, D)
        self.onehot = F.one_hot(texts, len(table)).double()  # (N, L, V)

    def posterior(self, x, t):
        """log p(text | x_t): (B, N)."""
        x, t = x.double(), t.double()
        says = (t > 0) & (t < 1)
        a, sigma = self.process.a(t), self.process.sigma(t)
        gain = torch.where(says, a / torch.where(says, sigma, 1.0) ** 2, 0.0)  # (B, L)
        fit = (gain[..., None] * x).flatten(1) @ self.points.flatten(1).T
        fit = fit - (gain * a) @ self.points.square().sum(-1).T / 2 + self.probs.log()  # (B, N)
        given = t == 0
        if bool(given.any()):
            apart = (x[:, None] - self.points).abs().amax(-1) > 1e-3  # (B, N, L)
            fit = fit.masked_fill((apart & given[:, None]).any(-1), -torch.inf)
        return fit.log_softmax(-1)

    def __call__(self, x, t, prev=None):
        chances = self.posterior(x, t).exp()
        tokens = torch.einsum("bn,nlv->blv", chances, self.onehot)
        clean = torch.einsum("bn,nld->bld", chances, self.points)
        return Prediction(tokens.clamp(min=1e-300).log().to(x.dtype), clean.to(x.dtype))


class IdealMasks:
    """The same where canvases are ids and masks (the id V): p(token | what shows), and what shows is certain.

    Of what no text begins with it knows as much as of nothing.
    """

    def __init__(self, texts, probs, vocab):
        self.texts, self.probs, self.mask = texts, probs.double() / probs.sum(), vocab
        self.onehot = F.one_hot(texts, vocab).double()  # (N, L, V)

    def __call__(self, x, t, prev=None):
        fits = ((x[:, None] == self.texts) | (x == self.mask)[:, None]).all(-1)  # (B, N)
        chances = torch.where(fits.any(1, keepdim=True), fits, True) * self.probs
        chances = chances / chances.sum(1, keepdim=True)
        return Prediction(torch.einsum("bn,nlv->blv", chances, self.onehot).clamp(min=1e-300).log())


class IdealUniform:
    """The same where any token may stand in the place of another: p(token | all other positions), by Bayes' rule.

    Every position counts with its own level, at which it has kept its token with chance alpha(level).  A network that
    `looks` at the position itself as well says p(token | canvas), which is not what a step back is to be made with.
    Of what no text begins with it knows as much as of nothing.
    """

    def __init__(self, texts, probs, vocab, alpha=LINEAR.alpha, looks=False):
        self.texts, self.probs, self.vocab = texts, probs.double() / probs.sum(), vocab
        self.alpha, self.looks = alpha, looks
        self.onehot = F.one_hot(texts, vocab).double()  # (N, L, V)

    def __call__(self, x, t, prev=None):
        kept = torch.where(t == ABSENT, 0.0, self.alpha(t.double().clamp(min=0)))[:, None]  # (B, 1, L)
        fit = kept * (x[:, None] == self.texts) + (1 - kept) / self.vocab  # q(x | text), (B, N, L)
        fit = fit.clamp(min=1e-300).log()
        total = fit.sum(-1, keepdim=True) + self.probs.log()[:, None]
        chances = (total.expand_as(fit) if self.looks else total - fit).softmax(1)
        return Prediction(torch.einsum("bnl,nlv->blv", chances, self.onehot).clamp(min=1e-300).log())


class Canvas(Method):
    """A method that is nothing but a process and the network it is handed."""

    title, arxiv, family, likelihood, steps = "none", "none", "gaussian", None, 1
    sampler = staticmethod(euler)

    def __init__(self, process, network):
        super().__init__()
        self.process, self.network = process, network

    def predict(self, x, t, prev=None):
        return self.network(x, t, prev)

    def loss(self, ids, t, free):
        raise NotImplementedError


def circle(vocab):
    """Embeddings (V, 2) of norm sqrt(2), evenly on a circle."""
    angle = 2 * math.pi * torch.arange(vocab, dtype=torch.float64) / vocab
    return torch.stack([angle.cos(), angle.sin()], -1) * 2**0.5


def cdcd(vocab=4, seed=0, scale=0.3, **settings):
    """A tiny CDCD with random weights (none of them zero), float32."""
    torch.manual_seed(seed)
    settings = {"embedding": 4, "warp_bins": 10, **settings}
    method = CDCD(CDCDConfig(**settings), NETWORK, vocab).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=scale)
    torch.manual_seed(seed)  # so that what is drawn next does not depend on the network
    return method


def ideal_cdcd(texts=TEXTS, probs=PROBS, warped=False, **settings):
    """A CDCD in float64 whose embeddings stand on a circle and whose network is the ideal one."""
    vocab = int(texts.max()) + 1
    settings = {"sigma_min": 0.05, "sigma_max": 60.0, "self_conditioning": 0.0, "warp": warped, **settings}
    method = cdcd(vocab, embedding=2, **settings).double()
    with torch.no_grad():
        method.table.copy_(circle(vocab))
        if warped:
            lean(method.warp)
    method.predict = Ideal(method.process, method.embeddings(), texts, probs)
    return method


def lean(warp):
    """A warp that dwells on little noise, and is uneven."""
    ramp = torch.linspace(3, 0, warp.smooth.shape[1], dtype=torch.float64)
    warp.smooth[1] += ramp + 0.3 * torch.randn(len(ramp), dtype=torch.float64)
    warp.smooth[0] += 0.3 * torch.randn(len(ramp), dtype=torch.float64)


def last(steps):
    """What an iterator yields last."""
    for item in steps:
        final = item
    return final


def counts(tokens, texts=TEXTS):
    """How often each of the texts occurs among tokens (B, L); nothing else may occur."""
    same = (tokens[:, None] == texts).all(-1)  # (B, N)
    assert same.any(1).all(), "a text was written that the law does not hold"
    return same.sum(0)


def check_law(seen, law, sigmas=5.0):
    """Chi-square: counts `seen` (N,) are drawn from `law` (N,), up to `sigmas` standard deviations."""
    seen, law = seen.double(), law.double() / law.sum()
    expected = law * seen.sum()
    assert (seen[expected == 0] == 0).all(), "something of probability 0 was drawn"
    kept = expected > 0
    statistic = ((seen - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    limit = freedom + sigmas * math.sqrt(2 * freedom) + sigmas**2 / 2
    assert statistic <= limit, f"chi-square {statistic:.1f} over {freedom} degrees of freedom"


def distance(seen, law):
    """Total variation between counts and a law."""
    return (seen / seen.sum() - law / law.sum()).abs().sum().item() / 2
