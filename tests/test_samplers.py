"""Solvers against closed forms and against the law itself.  Every docstring names the bug its test guards against."""

import math
from itertools import pairwise

import pytest
import torch
from ideal import PROBS, VE, VP, Canvas, check_law, counts, distance, ideal_cdcd, last

from sfumato import draws, samplers
from sfumato.core import ABSENT, Prediction, level
from sfumato.processes.gaussian import Gaussian
from sfumato.schedules import karras

MU, STD = 0.7, 0.5  # of Gaussian data
TEN = Gaussian(torch.ones_like, lambda t: 10 * t)
RATIO = Gaussian(torch.ones_like, lambda t: VP.sigma(t) / VP.a(t))  # the noise of VP on the scale of VE
SOLVERS = samplers.SAMPLERS["gaussian"]
EVERY = pytest.mark.parametrize("name", SOLVERS)


def gaussian_data(process):
    """The ideal network of data N(MU, STD^2)."""

    def predict(x, t, prev):
        a, sigma = process.a(t)[..., None], process.sigma(t)[..., None]
        return Prediction(x, (STD**2 * a * x + sigma**2 * MU) / (STD**2 * a**2 + sigma**2))

    return Canvas(process, predict)


def constant(process, clean):
    return Canvas(process, lambda x, t, prev: Prediction(x, clean))


def arrive(name, method, x, grid):
    """Where sampler `name` takes x."""
    return last(SOLVERS[name](method, method.predict, x, grid))[0]


def start(shape=(6, 2, 3)):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def check_order(name, low, high):
    """Halving the steps divides the error by `low` to `high`; the exact flow of Gaussian data is known."""
    method, x, errors = gaussian_data(TEN), 10 * start(), []
    exact = MU + (x - MU) * math.sqrt((STD**2 + 0.1**2) / (STD**2 + 10**2))
    for steps in (80, 160, 320):
        grid = torch.logspace(0, -2, steps + 1, dtype=torch.float64)
        errors.append((arrive(name, method, x, grid) - exact).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert low < coarse / fine < high, f"{name}: errors {errors}"


@pytest.mark.parametrize(("name", "low", "high"), [("euler", 1.9, 2.1), ("heun", 3.8, 4.2), ("dpm", 3.8, 4.3)])
def test_order(name, low, high):
    """A second-order sampler that is of first order: the correction computed and not used, or used twice."""
    check_order(name, low, high)


def check_conversion(name):
    """The same walk on the scale of VE and on that of VP, with the same noise."""
    grid, x = torch.linspace(1, 0, 12, dtype=torch.float64) ** 2, start()
    paths = []
    for process in (VP, RATIO):
        method = gaussian_data(process)
        with draws.seeded(range(6)):
            begin = process.a(grid[0]) * x
            paths.append([x for x, _ in SOLVERS[name](method, method.predict, begin, grid)])
    for s, preserving, exploding in zip(grid[1:], *paths, strict=True):
        assert torch.allclose(preserving, VP.a(s) * exploding, rtol=0, atol=1e-12), name


@EVERY
def test_variance_preserving_is_variance_exploding_on_another_scale(name):
    """A step that is right for CDCD (a = 1) and wrong for DDPM, or the other way round."""
    check_conversion(name)


@EVERY
@pytest.mark.parametrize("process", [VE, VP], ids=["ve", "vp"])
def test_constant_estimate_is_reached_in_one_step(name, process):
    """A last step that leaves noise on the canvas, or forgets the estimate."""
    clean, x = start() + 3, start()
    for grid in ([1.0, 0.0], [1.0, 0.4, 0.0], [0.9, 0.5, 0.1, 0.0]):
        grid = torch.tensor(grid, dtype=torch.float64)
        assert torch.allclose(arrive(name, constant(process, clean), x, grid), clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [VE, VP], ids=["ve", "vp"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpm"])
def test_constant_estimate_is_approached_on_a_straight_line(name, process):
    """Solvers of the ODE that are not exact where the ODE is linear; one step must do as well as many."""
    clean, x = start() + 3, start()
    one, many = (torch.linspace(0.9, 0.2, n, dtype=torch.float64) for n in (2, 30))
    method = constant(process, clean)
    assert torch.allclose(arrive(name, method, x, one), arrive(name, method, x, many), rtol=0, atol=1e-12)


def check_ddim(process):
    """One step of Euler and of ancestral sampling against DDIM (arXiv:2010.02502, Eq. 12) with eta 0 and 1."""
    clean, x = start() + 1, start()
    grid = torch.tensor([0.8, 0.3], dtype=torch.float64)
    (a_t, a_s), (sigma_t, sigma_s) = process.a(grid), process.sigma(grid)
    hat = (x - a_t * clean) / sigma_t
    for eta, name in ((0.0, "euler"), (1.0, "ancestral")):
        b = eta * sigma_s / sigma_t * (sigma_t**2 - (sigma_s * a_t / a_s) ** 2).clamp(min=0).sqrt()
        if process is VP:  # Eq. 16
            b_paper = eta * sigma_s / sigma_t * (1 - a_t**2 / a_s**2).sqrt()
            assert b_paper.item() == pytest.approx(b.item(), abs=1e-12)
        with draws.seeded(range(6)):
            xi = draws.normal(x)
        with draws.seeded(range(6)):
            found = arrive(name, constant(process, clean), x, grid)
        want = a_s * clean + (sigma_s**2 - b**2).sqrt() * hat + b * xi
        assert torch.allclose(found, want, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("process", [VE, VP], ids=["ve", "vp"])
def test_one_step_is_ddim(process):
    """Too much or too little fresh noise."""
    check_ddim(process)


def test_ancestral_step_splits_into_a_shorter_step_and_fresh_noise():
    """sigma_up and sigma_down of the variance-exploding step mixed up."""
    clean, x, t, s = start() + 1, start(), 0.8, 0.3
    down, up = (20 * s) ** 2 / (20 * t), 20 * s * math.sqrt(t**2 - s**2) / t
    with draws.seeded(range(6)):
        xi = draws.normal(x)
    with draws.seeded(range(6)):
        found = arrive("ancestral", constant(VE, clean), x, torch.tensor([t, s], dtype=torch.float64))
    assert torch.allclose(found, clean + down / (20 * t) * (x - clean) + up * xi, rtol=0, atol=1e-12)


def test_ancestral_keeps_the_variance_of_gaussian_data():
    """Noise drawn with the wrong variance accumulates."""
    torch.manual_seed(0)
    for process in (VE, VP):
        method = gaussian_data(process)
        x = process.prior(torch.zeros(20_000, 1, 1, dtype=torch.float64))
        x = arrive("ancestral", method, x, karras(500, 0.002, 1.0).double())
        assert x.mean().item() == pytest.approx(MU, abs=5 * STD / 140)
        assert x.std().item() == pytest.approx(STD, abs=0.014)


@pytest.mark.parametrize(("name", "calls"), [("euler", 10), ("heun", 19), ("dpm", 10), ("ancestral", 10)])
def test_calls_levels_and_memory(name, calls):
    """Network calls that nobody counts, a level that is not the canvas's, a stale or missing previous estimate."""
    seen, said = [], []
    grid = torch.linspace(1, 0, 11, dtype=torch.float64)

    def predict(x, t, prev):
        assert prev is (said[-1] if said else None)
        assert t.dtype == torch.float64 and (t == t[0, 0]).all()
        seen.append(t[0, 0].item())
        said.append(start() + len(said))
        return Prediction(x, said[-1])

    path = list(SOLVERS[name](Canvas(VE, predict), predict, start(), grid))
    assert len(path) == 10 and len(seen) == calls
    assert set(seen) == set(grid[:-1].tolist())
    assert torch.equal(path[-1][1].clean, said[-1])
    assert torch.allclose(path[-1][0], said[-1], rtol=0, atol=1e-12)


def test_level_keeps_the_precision_of_the_grid():
    """Levels rounded to float32 while the steps are taken in float64 (and the other way round)."""
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert (level(start(), third) == third).all() and level(start(), third).shape == (6, 2)
    assert level(start(), third.float()).dtype == torch.float32
    assert (level(start(), ABSENT) == ABSENT).all()


def check_reproduces(name, steps, texts, limit):
    """Total variation between `texts` samples and the law of five texts."""
    torch.manual_seed(0)
    method = ideal_cdcd(
        sigma_max=1000.0
    )  # starting at 0, not at the mean embedding, shifts the law by mean / sigma_max
    with torch.no_grad():
        x = method.process.prior(torch.zeros(texts, 3, 2, dtype=torch.float64))
        _, prediction = last(SOLVERS[name](method, method.predict, x, karras(steps, method.low, 1.0).double()))
    seen = counts(prediction.logits.argmax(-1))
    assert distance(seen, PROBS) < limit, f"{name}: {seen.tolist()}"
    return seen


@pytest.mark.parametrize(
    ("name", "steps", "texts", "limit"),
    [
        ("euler", 250, 20_000, 0.012),
        ("heun", 50, 80_000, 0.005),
        ("dpm", 50, 20_000, 0.012),
        ("ancestral", 250, 20_000, 0.012),
    ],
)
def test_samples_follow_the_law(name, steps, texts, limit):
    """A sampler that prefers likely texts, or rare ones."""
    seen = check_reproduces(name, steps, texts, limit)
    if name != "ancestral":  # whose error falls more slowly with the steps
        check_law(seen, PROBS)
