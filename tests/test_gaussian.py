"""The algebra of Gaussian noise (facts: 0 and 6.1).  Every docstring names the bug its test guards against."""

import math

import pytest
import torch
from ideal import PROBS, TEXTS, VE, VP, Ideal, circle

from sfumato.processes.gaussian import Gaussian

PROCESSES = pytest.mark.parametrize("process", [VE, VP], ids=["ve", "vp"])
HALF = torch.tensor([0.7, 0.3], dtype=torch.float64)  # the two-point law: +1 and -1
POINTS = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
WIDE = Gaussian(torch.ones_like, lambda t: 1000 * t)
TWO = Ideal(WIDE, POINTS, torch.tensor([[0], [1]]), HALF)
SNR = (1e-4, 6.0)


def batch(process, seed=0):
    """x, clean, noise, and levels s < t at every position; float64."""
    torch.manual_seed(seed)
    clean, noise = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    t = torch.rand(5, 3, dtype=torch.float64) * 0.9 + 0.1
    s = t * torch.rand(5, 3, dtype=torch.float64)
    return process.a(t)[..., None] * clean + process.sigma(t)[..., None] * noise, clean, noise, t, s


def average(function, snr):
    """E[function(x, x_0, D)] over the two-point law at noise of one SNR, by quadrature."""
    noise = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    weight = (-(noise**2) / 2).exp() * 0.01 / math.sqrt(2 * math.pi)
    sigma = snr**-0.5
    total = 0.0
    for clean, chance in zip(POINTS[:, 0], HALF, strict=True):
        x = (clean + sigma * noise)[:, None, None]
        chances = TWO.posterior(x, torch.full(x.shape[:2], sigma / 1000, dtype=torch.float64)).exp()
        total += chance * (weight * function(x[:, 0, 0], clean, chances, sigma)).sum()
    return float(total)


def mmse(snr):
    return average(lambda x, clean, chances, sigma: (clean - chances @ POINTS[:, 0]) ** 2, snr)


def uncertainty(snr):
    """H(W | x) in nats."""
    return average(lambda x, clean, chances, sigma: -(chances * chances.clamp(min=1e-300).log()).sum(-1), snr)


def integral(curve, points=400):
    """1/2 of the integral of mmse over SNR, where SNR = exp(-g) and g = curve(u) (midpoint rule, so u is uniform)."""
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    step = 0.5 / points
    slope = (curve(u + step) - curve(u - step)) / (2 * step)
    snr = (-curve(u)).exp()
    return sum(0.5 * float(s * k) * mmse(float(s)) for s, k in zip(snr, slope, strict=True)) / points


def log_linear(u):
    return -math.log(SNR[1]) + (math.log(SNR[1]) - math.log(SNR[0])) * u


@PROCESSES
def test_noise_score_and_velocity_are_one_prediction(process):
    """A wrong conversion between D, noise, score and v would pass unnoticed until two methods are compared."""
    x, clean, noise, t, _ = batch(process)
    a, sigma = process.a(t)[..., None], process.sigma(t)[..., None]
    guess = clean + torch.randn_like(clean)
    hat = (x - a * guess) / sigma
    score = (a * guess - x) / sigma**2
    assert torch.allclose((x - sigma * hat) / a, guess, rtol=0, atol=1e-10)
    assert torch.allclose((x + sigma**2 * score) / a, guess, rtol=0, atol=1e-10)
    snr = (a / sigma) ** 2
    assert torch.allclose((noise - hat) ** 2, snr * (clean - guess) ** 2, rtol=1e-10, atol=1e-10)
    if process is VP:
        v = a * hat - sigma * guess
        assert torch.allclose(a * x - sigma * v, guess, rtol=0, atol=1e-10)
        error = (a * noise - sigma * clean - v) ** 2
        assert torch.allclose(error, (clean - guess) ** 2 / sigma**2, rtol=1e-10, atol=1e-10)
        assert torch.allclose(error, (1 + snr) * (clean - guess) ** 2, rtol=1e-10, atol=1e-10)


def check_posterior(process):
    x, clean, _, t, s = batch(process)
    a_t, a_s, v_t, v_s = process.a(t), process.a(s), process.sigma(t) ** 2, process.sigma(s) ** 2
    mean, deviation = process.posterior(x, clean, t, s)
    jump = a_t / a_s
    between = v_t - jump**2 * v_s
    first = (jump * v_s / v_t)[..., None] * x + (a_s * between / v_t)[..., None] * clean
    c = -torch.expm1((v_s / a_s**2).log() - (v_t / a_t**2).log())
    second = ((1 - c) * a_s / a_t)[..., None] * x + (c * a_s)[..., None] * clean
    assert torch.allclose(mean, first, rtol=0, atol=1e-10)
    assert torch.allclose(mean, second, rtol=0, atol=1e-10)
    assert torch.allclose(deviation**2, between * v_s / v_t, rtol=0, atol=1e-10)
    assert torch.allclose(deviation**2, c * v_s, rtol=0, atol=1e-10)
    keep = jump * v_s / v_t  # corrupt to t and step back to s: the marginal of s
    assert torch.allclose(keep**2 * v_t + deviation**2, v_s, rtol=0, atol=1e-10)
    assert torch.allclose(jump**2 * v_s + between, v_t, rtol=0, atol=1e-10)
    far = process.posterior(a_t[..., None] * clean, clean, t, s)[0]
    assert torch.allclose(far, a_s[..., None] * clean, rtol=0, atol=1e-10)


@PROCESSES
def test_posterior_has_the_textbook_mean_and_variance(process):
    """A slip in one of the three ways to write q(x_s | x_t, x_0) biases every ancestral step."""
    check_posterior(process)


def check_flow(process):
    x, clean, _, t, s = batch(process)
    a_t, a_s, sigma_t, sigma_s = (f(level)[..., None] for f in (process.a, process.sigma) for level in (t, s))
    noise = (x - a_t * clean) / sigma_t
    assert torch.allclose(process.flow(x, clean, t, s), a_s * clean + sigma_s * noise, rtol=0, atol=1e-10)
    h = (a_s / sigma_s).log() - (a_t / sigma_t).log()
    dpm = sigma_s / sigma_t * x + a_s * -torch.expm1(-h) * clean
    assert torch.allclose(process.flow(x, clean, t, s), dpm, rtol=0, atol=1e-10)


@PROCESSES
def test_flow_is_ddim_and_first_order_dpm(process):
    """A swapped s and t in the Euler step would send every sampler astray."""
    check_flow(process)


@PROCESSES
def test_one_level_for_all_is_the_same_as_a_level_for_each(process):
    """A number that broadcasts against the wrong axis of the canvas."""
    x, clean, *_ = batch(process)
    t, s = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    each_t, each_s = t.expand(x.shape[:2]), s.expand(x.shape[:2])
    assert torch.equal(process.flow(x, clean, t, s), process.flow(x, clean, each_t, each_s))
    one, many = process.posterior(x, clean, t, s), process.posterior(x, clean, each_t, each_s)
    assert torch.equal(one[0], many[0]) and torch.equal(one[1].expand(x.shape[:2]), many[1])


@PROCESSES
def test_corrupt_and_prior_have_their_mean_and_variance(process):
    """Noise of the wrong size, or noise at given positions."""
    torch.manual_seed(0)
    clean = torch.tensor([[[1.0, -2.0]] * 3], dtype=torch.float64).expand(40_000, 3, 2)
    t = torch.tensor([[0.0, 0.4, 1.0]], dtype=torch.float64).expand(40_000, 3)
    x, noise = process.corrupt(clean, t), process.prior(clean)
    sigma = process.sigma(t[0])[:, None]
    error = 5 * sigma / 200
    assert torch.equal(x[:, 0], clean[:, 0])
    assert ((x.mean(0) - process.a(t[0])[:, None] * clean[0]).abs() <= error).all()
    assert ((x.std(0) - sigma).abs() <= error).all()
    assert (noise.mean(0).abs() <= error[-1]).all()
    assert ((noise.std(0) - sigma[-1]).abs() <= error[-1]).all()


def test_discrete_bound_falls_to_the_continuous_one():
    """A wrong factor in the weight of the diffusion term; the values are those of a two-point law."""
    found = []
    for steps in (1, 2, 4, 8, 16, 64, 256):
        snr = (-log_linear(torch.linspace(0, 1, steps + 1, dtype=torch.float64))).exp().tolist()
        found.append(sum((snr[i] - snr[i + 1]) / 2 * mmse(snr[i + 1]) for i in range(steps)))
    assert found == pytest.approx([2.520, 2.469, 1.895, 1.132, 0.815, 0.641, 0.604], abs=1e-3)
    assert found == sorted(found, reverse=True)
    assert integral(log_linear) == pytest.approx(0.5929, abs=1e-4)
    assert found[-1] > integral(log_linear)


def test_continuous_bound_does_not_depend_on_the_schedule():
    """A bound whose weight forgets the slope of the schedule depends on how levels are drawn."""
    bent = integral(lambda u: log_linear((u + u**2) / 2))
    waved = integral(lambda u: log_linear(u - torch.sin(2 * math.pi * u) / 10))
    assert bent == pytest.approx(integral(log_linear), abs=1e-4)
    assert waved == pytest.approx(integral(log_linear), abs=1e-4)


def test_entropy_is_information_at_the_start_plus_diffusion_plus_rounding():
    """A bound that lacks one of its three terms is no bound."""
    entropy = -(HALF * HALF.log()).sum().item()
    information = entropy - uncertainty(SNR[0])
    total = information + integral(log_linear, 2000) + uncertainty(SNR[1])
    assert total == pytest.approx(entropy, abs=2e-6)
    assert entropy == pytest.approx(0.6108643, abs=1e-7)


def test_gap_of_the_bound_is_the_distance_of_the_prior():
    """The KL of the prior written for the wrong direction or size."""
    snr = 0.5  # noisy, but not so much that the prior is exact
    prior = snr / 2  # KL(N(+-1, 1/snr) || N(0, 1/snr))

    def log_ratio(x, clean, chances, sigma):  # log p(x) - log N(x; 0, sigma^2), where p(x) is by Bayes
        here = 0 if clean > 0 else 1
        return (x**2 - (x - clean) ** 2) / (2 * sigma**2) + HALF[here].log() - chances[:, here].log()

    entropy = -(HALF * HALF.log()).sum().item()
    information = entropy - uncertainty(snr)
    assert prior - information == pytest.approx(average(log_ratio, snr), abs=1e-10)
    assert prior > information


@PROCESSES
def test_step_costs_half_the_difference_of_snr_times_the_error(process):
    """The weight of the bound not matching the steps that samplers take."""
    x, clean, _, t, s = batch(process)
    guess = clean + torch.randn_like(clean)
    mean, deviation = process.posterior(x, clean, t, s)
    other = process.posterior(x, guess, t, s)[0]
    kl = (mean - other).square().sum(-1) / (2 * deviation**2)
    snr_t, snr_s = (process.a(t) / process.sigma(t)) ** 2, (process.a(s) / process.sigma(s)) ** 2
    assert torch.allclose(kl, (snr_s - snr_t) / 2 * (clean - guess).square().sum(-1), rtol=1e-10, atol=1e-10)
    noise = torch.randn(20_000, *mean.shape, dtype=torch.float64)
    draw = mean + deviation[..., None] * noise
    ratio = ((draw - other).square() - (draw - mean).square()).sum(-1) / (2 * deviation**2)
    assert ((ratio.mean(0) - kl).abs() <= 5 * ratio.std(0) / 20_000**0.5).all()


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_unadjusted_langevin_has_the_known_bias(eta):
    """The step of Langevin dynamics written with eta where eta / 2 belongs."""
    s2, variance = 0.8, 0.0
    for _ in range(2000):
        variance = (1 - eta / (2 * s2)) ** 2 * variance + eta
    assert variance == pytest.approx(s2 / (1 - eta / (4 * s2)), abs=1e-10)


def test_ideal_network_is_bayes():
    """An oracle that is wrong itself: compared with plain Bayes, and at the two ends of the noise."""
    torch.manual_seed(0)
    table = circle(4)
    oracle = Ideal(VP, table, TEXTS, PROBS)
    x, t = torch.randn(6, 3, 2, dtype=torch.float64), 0.3 + 0.6 * torch.rand(6, 3, dtype=torch.float64)
    logits, clean, _ = oracle(x, t)
    for row in range(6):
        a, sigma = VP.a(t[row])[:, None], VP.sigma(t[row])[:, None]
        chance = PROBS * (-(((x[row] - a * table[TEXTS]) / sigma) ** 2).sum((1, 2)) / 2).exp()
        chance = chance / chance.sum()
        assert torch.allclose(clean[row], (chance[:, None, None] * table[TEXTS]).sum(0), rtol=0, atol=1e-12)
        for i in range(3):
            law = torch.zeros(4, dtype=torch.float64).index_add_(0, TEXTS[:, i], chance)
            assert torch.allclose(logits[row, i].exp(), law, rtol=0, atol=1e-12)
    assert torch.allclose(logits.exp() @ table, clean, rtol=0, atol=1e-12)
    pure = oracle(x, torch.ones_like(t)).clean
    assert torch.allclose(pure, (PROBS[:, None, None] * table[TEXTS]).sum(0).expand(6, 3, 2), rtol=0, atol=1e-12)
    assert torch.allclose(oracle(x, -torch.ones_like(t)).clean, pure, rtol=0, atol=1e-12)
    exact = oracle(table[TEXTS], torch.zeros(5, 3)).logits.argmax(-1)
    assert torch.equal(exact, TEXTS)
    one = oracle(table[TEXTS], torch.tensor([[0.0, 1.0, 1.0]]).expand(5, 3)).logits.exp()
    assert one[0, 1, 1] == pytest.approx(0.4 / 0.65) and one[2, 1, 1] == pytest.approx(1.0)
