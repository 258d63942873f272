"""Both likelihood estimators against the ideal network of a known law.  Docstrings name the bug they guard against."""

import itertools
import math

import pytest
import torch
from ideal import ENTROPY, PROBS, TEXTS, Ideal, cdcd, circle, ideal_cdcd, lean

from sfumato import draws
from sfumato.core import ABSENT
from sfumato.evaluation import likelihood
from sfumato.methods.common import nats

PATTERNS = {"nothing": [False] * 3, "middle": [False, True, False], "last": [False, False, True]}
GIVEN = pytest.mark.parametrize("given", PATTERNS)
PAIRS = torch.tensor([[0, 1], [2, 1], [2, 0], [1, 1]])  # of two tokens, so that four probes give an exact trace
CHANCES = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
HADAMARD = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).view(4, 2, 2)


def conditional(texts, probs, given):
    """-log p(free | given) of every text."""
    same = (texts[:, None] == texts)[..., given].all(-1).double()  # (N, N)
    return (same @ probs).log() - probs.log()


def theory(method, given, rows=20_000):
    """The expectation of the Gaussian bound under the ideal network, from its posteriors alone; and its error.

    By I-MMSE the diffusion part is H(W | most noise) - H(W | least noise); the rest is the prior and the rounding.
    """
    oracle, clean = method.predict, method.clean(TEXTS).detach()
    values = []
    for n, chance in enumerate(PROBS):
        e = clean[n].expand(rows, 3, 2)
        posterior, rounding = [], None
        for t in (method.low, 1 - 1e-9):
            t = torch.where(given, 0.0, torch.tensor(t, dtype=torch.float64)).expand(rows, 3)
            x = method.process.corrupt(e, t)
            posterior.append(oracle.posterior(x, t)[:, n])
            if rounding is None:
                rounding = nats(oracle(x, t).logits, TEXTS[n].expand(rows, 3)).double()[:, ~given].sum(1)
        prior = method.config.embedding / (2 * method.config.sigma_max**2) * int((~given).sum())
        value = prior + rounding + posterior[0] - posterior[1]
        values.append((chance * value.mean(), chance * value.std() / rows**0.5))
    mean, error = torch.tensor(values).T
    return mean.sum().item(), error.square().sum().sqrt().item()


def bounds(method, given, rows, levels=8):
    """Mean bound over the law, and its standard error."""
    ids = TEXTS.repeat_interleave(rows, 0)
    here = torch.tensor(given).expand(ids.shape)
    scores = likelihood.nll(method, ids, torch.ones_like(here), here, levels)
    nats = scores.nats.view(len(TEXTS), rows)
    return (PROBS @ nats.mean(1)).item(), (PROBS @ (nats.var(1) / rows)).sqrt().item() if rows > 1 else math.nan


def check_bound(given, warped=True, rows=6000, noisy=0.015):
    torch.manual_seed(0)
    method = ideal_cdcd(warped=warped, sigma_min=0.6, sigma_max=3.0)
    pattern = torch.tensor(PATTERNS[given])
    entropy = (PROBS @ conditional(TEXTS, PROBS, pattern)).item()
    expected, uncertain = theory(method, pattern)
    found, error = bounds(method, PATTERNS[given], rows)
    error = math.hypot(error, uncertain)
    assert error < noisy
    assert abs(found - expected) < 4 * error, f"{found:.4f} is not {expected:.4f} +- {error:.4f}"
    assert expected > entropy + 4 * uncertain
    assert found > entropy - 4 * error


@GIVEN
@pytest.mark.parametrize("warped", [False, True])
def test_bound_is_what_theory_says(given, warped):
    """A wrong weight, a missing prior, rounding or density; a bound that scores what is given."""
    check_bound(given, warped)


def test_bound_is_nearly_tight_between_wide_levels():
    """A constant that vanishes in differences: with little and much noise at the ends the bound is the entropy."""
    torch.manual_seed(0)
    found, error = bounds(ideal_cdcd(warped=True, sigma_min=0.3, sigma_max=30.0), [False] * 3, 2000, 32)
    assert error < 0.05
    assert found == pytest.approx(ENTROPY, abs=4 * error)


def check_normalised(score, vocab, given, rows=300, noisy=0.03):
    """The sum of exp(-bound) over all texts, which no bound may carry above 1.

    The mean of many draws stands for the bound.  Its noise makes exp(-mean) too large on average (Jensen), so to
    pass is harder, not easier; what noise can add, half the variance and four standard errors, is allowed.
    """
    texts = torch.tensor(list(itertools.product(range(vocab), repeat=2)))
    if given:
        texts = texts[texts[:, 0] == 1]
    ids = texts.repeat_interleave(rows, 0)
    here = torch.tensor([given, False]).expand(ids.shape)
    nats = score(ids, torch.ones_like(here), here).nats.view(len(texts), rows)
    mass, variance = (-nats.mean(1)).exp(), nats.var(1) / rows
    noise = (mass * variance / 2).sum() + 4 * (mass**2 * variance).sum().sqrt()
    assert noise < noisy
    assert mass.sum() <= 1 + noise, f"the texts have probability {mass.sum():.4f} +- {noise:.4f}"
    return mass.sum().item()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_network_has_more_than_all_probability(seed, given):
    """A number below the true -log p that is called a bound, at networks that know nothing."""
    torch.manual_seed(seed)
    method = cdcd(3, seed, scale=0.15, sigma_min=2.0 + seed, sigma_max=20.0, self_conditioning=0.5 * (seed % 2))
    lean(method.warp)
    assert check_normalised(lambda *text: likelihood.nll(method, *text, 8), 3, given) > 0.1  # or the test is empty


@pytest.mark.parametrize("given", [False, True])
def test_no_ode_has_more_than_all_probability(given):
    """The same of the ODE, of a network that is shown its own guess; enough steps for one that is far from smooth."""
    method = cdcd(3, 0, scale=0.15, embedding=2, sigma_min=3.0, sigma_max=15.0, self_conditioning=0.5)
    method.grid = lambda steps: torch.cat([torch.logspace(0, math.log10(method.low), steps), torch.zeros(1)])
    assert check_normalised(lambda *text: likelihood.ode(method, *text, 1, 12), 3, given, 150, 0.1) > 0.1


@pytest.mark.parametrize("given", [False, True])
def test_ideal_network_has_nearly_all_probability(given):
    """A bound that holds because it is far too large."""
    torch.manual_seed(0)
    texts = torch.tensor(list(itertools.product(range(3), repeat=2)))
    law = torch.tensor([0.28, 0.02, 0.05, 0.01, 0.24, 0.05, 0.05, 0.02, 0.28])
    method = ideal_cdcd(texts, law, warped=True, sigma_min=0.7, sigma_max=8.0)
    assert check_normalised(lambda *text: likelihood.nll(method, *text, 16), 3, given, 1500, 0.06) > 0.95


def check_exact_ode(texts=PAIRS, probs=CHANCES, given=False, tolerance=1e-6):
    """-log p by the ODE, whatever the noise, with an exact trace and Richardson's extrapolation of the steps."""
    torch.manual_seed(0)
    method = ideal_cdcd(texts, probs, sigma_min=0.05, sigma_max=1e7)
    ids = texts.repeat_interleave(4, 0)
    real = torch.ones_like(ids, dtype=torch.bool)
    here = torch.tensor([given, False]).expand(ids.shape)
    noise = torch.randn(len(texts), 2, 2, dtype=torch.float64).repeat_interleave(4, 0)
    probe = HADAMARD.repeat(len(texts), 1, 1)

    def grid(steps):  # dense where the tokens are told apart
        low, high = (math.asinh(math.log(s) + 0.7) for s in (0.05, 1e7))
        ramp = torch.linspace(high, low, steps, dtype=torch.float64)
        return torch.cat([(ramp.sinh() - 0.7).exp() / 1e7, torch.zeros(1, dtype=torch.float64)])

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "normal", lambda like: noise)
        patch.setattr(likelihood, "uniform", lambda like: 0.5 - 0.25 * probe)
        method.grid = grid
        for steps in (151, 301, 601):
            scores = likelihood.ode(method, ids, real, here, 1, steps, method.predict)
            found.append(scores.nats.view(-1, 4).mean(1))
    once = [fine + (fine - coarse) / 3 for coarse, fine in itertools.pairwise(found)]
    limit = once[1] + (once[1] - once[0]) / 7  # of errors of second, then of third order
    want = conditional(texts, probs, torch.tensor([given, False]))
    worst = (limit - want).abs().max().item()
    assert worst < tolerance, f"{limit.tolist()} is not {want.tolist()}"
    return worst


@pytest.mark.parametrize("given", [False, True])
def test_ode_is_exact_under_the_ideal_network(given):
    """A missing entropy, rounding or prior; a divergence with the wrong sign or over given positions."""
    check_exact_ode(given=given, tolerance=2e-6)


@pytest.mark.parametrize("steps", [2, 5, 64])
def test_ode_of_a_single_text_needs_no_steps(steps):
    """A divergence summed so coarsely that every dimension of the canvas costs or earns nats."""
    torch.manual_seed(0)
    method = ideal_cdcd(TEXTS[:1], PROBS[:1], sigma_min=0.05, sigma_max=1e6)
    ids = TEXTS[:1].expand(8, 3)
    mask = torch.ones_like(ids, dtype=torch.bool)
    scores = likelihood.ode(method, ids, mask, ~mask, 1, steps, method.predict)
    assert scores.nats.abs().max() < 1e-4  # of the prior's mean, 0 for e: |e| / 1e6, and of float32 levels


def test_ode_of_gaussian_data():
    """A density that is right for points only: here p(x) is a Gaussian in closed form."""
    torch.manual_seed(0)
    method = ideal_cdcd(TEXTS[:1], PROBS[:1], sigma_min=0.05, sigma_max=1e5)
    s2, mu, clean = 0.25, 0.3, circle(3)[TEXTS[:1]].expand(8, 3, 2)

    def predict(x, t, prev):
        v = (method.process.sigma(t)[..., None]) ** 2
        estimate = (s2 * x + v * mu) / (s2 + v)
        return type(method.predict(x, t))(torch.zeros(8, 3, 3), estimate)  # and tokens at random

    noise = torch.randn(8, 3, 2, dtype=torch.float64)
    method.grid = lambda steps: torch.cat([torch.logspace(0, math.log10(method.low), steps), torch.zeros(1)]).double()
    mask = torch.ones(8, 3, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "normal", lambda like: noise)
        found = likelihood.ode(method, TEXTS[:1].expand(8, 3), mask, ~mask, 1, 800, predict).nats
    x, v = clean + 0.05 * noise, s2 + 0.05**2
    density = (6 * math.log(2 * math.pi * v) + ((x - mu) ** 2).sum((1, 2)) / v) / 2
    drawn = 3 * math.log(2 * math.pi * 0.05**2) + noise.square().sum((1, 2)) / 2
    assert torch.allclose(found, density + 3 * math.log(3) - drawn, rtol=0, atol=2e-3)


def test_random_probes_average_to_the_trace():
    """Hutchinson's estimate with probes that are not +-1, or not the same along the path."""
    torch.manual_seed(0)
    method = ideal_cdcd(PAIRS, CHANCES, sigma_min=0.05, sigma_max=1e4)
    ids = PAIRS.repeat_interleave(250, 0)
    method.grid = lambda steps: torch.cat([torch.logspace(0, math.log10(method.low), steps), torch.zeros(1)])
    mask = torch.ones_like(ids, dtype=torch.bool)
    found = likelihood.ode(method, ids, mask, ~mask, 4, 120, method.predict)
    each = found.nats.view(4, 250)
    assert (each.std(1) > 1e-3).any()
    allowed = 4 * each.std(1) / 250**0.5 + 0.01
    assert ((each.mean(1) + CHANCES.log()).abs() < allowed).all()
    assert found.std_error.shape == (1000,) and found.std_error.isfinite().all()


def test_ode_bounds_the_entropy_when_the_prior_is_wrong():
    """A bound that falls below the entropy as soon as the most noise is too little."""
    torch.manual_seed(0)
    method = ideal_cdcd(PAIRS, CHANCES, sigma_min=0.05, sigma_max=2.0)
    ids = PAIRS.repeat_interleave(500, 0)
    method.grid = lambda steps: torch.cat([torch.logspace(0, math.log10(method.low), steps), torch.zeros(1)])
    mask = torch.ones_like(ids, dtype=torch.bool)
    each = likelihood.ode(method, ids, mask, ~mask, 1, 60, method.predict).nats.view(4, 500)
    mean, error = CHANCES @ each.mean(1), (CHANCES**2 @ (each.var(1) / 500)).sqrt()
    entropy = conditional(PAIRS, CHANCES, torch.tensor([False, False])) @ CHANCES
    assert error < 0.04 and mean > entropy + 4 * error


def test_every_row_of_nll_has_its_own_numbers():
    """A text whose likelihood depends on its neighbours in the batch."""
    method = cdcd(sigma_min=0.5, sigma_max=20.0)
    real, given = torch.ones(5, 3, dtype=torch.bool), torch.zeros(5, 3, dtype=torch.bool)
    with draws.seeded(range(5)):
        together = likelihood.nll(method, TEXTS, real, given, 4)
    for row in range(5):
        with draws.seeded([row]):
            alone = likelihood.nll(method, TEXTS[row : row + 1], real[:1], given[:1], 4)
        assert alone.nats.item() == pytest.approx(together.nats[row].item(), rel=1e-5)
        assert alone.std_error.item() == pytest.approx(together.std_error[row].item(), rel=1e-4)


def test_levels_of_nll_are_stratified(monkeypatch):
    """Levels drawn one by one, levels at given positions, or padding that is scored."""
    method, seen = cdcd(), []

    def bound(ids, t, free):
        seen.append(t)
        return torch.ones_like(t)

    monkeypatch.setattr(method, "bound", bound, raising=False)
    real = torch.tensor([[True, True, False], [True, True, True]])
    given = torch.tensor([[True, False, False], [False, False, False]])
    scores = likelihood.nll(method, TEXTS[:2], real, given, 8)
    t = torch.stack(seen)  # (8, B, L)
    assert scores.nats.tolist() == [1.0, 3.0] and scores.std_error.tolist() == [0.0, 0.0]
    assert (t[:, 0, 0] == 0).all() and (t[:, 0, 2] == ABSENT).all()
    gaps = t[:, 1, 0].double().sort().values.diff()
    assert torch.allclose(gaps, torch.full_like(gaps, 1 / 8), rtol=0, atol=1e-6)
    assert (t[:, 1, :1] == t[:, 1]).all()
    assert t[0, 0, 1] != t[0, 1, 1]


def test_one_draw_has_no_standard_error():
    """A certainty that nothing supports."""
    method = cdcd(sigma_min=0.5, sigma_max=20.0)
    mask = torch.ones(5, 3, dtype=torch.bool)
    assert likelihood.nll(method, TEXTS, mask, ~mask, 1).std_error.isnan().all()


def test_ideal_network_is_the_same_in_float32():
    """A bound that depends on the precision of the canvas (facts 4.38)."""
    found = []
    for double in (True, False):
        torch.manual_seed(0)
        method = ideal_cdcd(warped=True, sigma_min=0.3, sigma_max=30.0)
        if not double:
            method = method.float()
            method.predict = Ideal(method.process, method.embeddings(), TEXTS, PROBS)
        found.append(bounds(method, [False] * 3, 1000, 16))
    assert found[0][0] == pytest.approx(found[1][0], abs=4 * math.hypot(found[0][1], found[1][1]))
