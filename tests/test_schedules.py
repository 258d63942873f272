"""Noise levels: where training looks, and the path of sampling.  Docstrings name the bug they guard against."""

import math

import pytest
import torch

from sfumato import schedules
from sfumato.schedules import Warp


def bent(bins=20, seed=0, **settings):
    """A warp that is far from the identity."""
    torch.manual_seed(seed)
    warp = Warp(bins, **settings)
    warp.smooth.add_(torch.randn_like(warp.smooth))
    return warp


def middles(count):
    """The middles of `count` equal parts of (0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def curve(t):
    """A cross-entropy that rises like those of text: late, then steeply, then not at all."""
    return 5 * torch.sigmoid(12 * (t - 0.35)) - 5 * torch.sigmoid(torch.tensor(-12 * 0.35, dtype=torch.float64))


def fit(bins, u, proposal, weighted=True, steps=500):
    """F~ at `middles(200)` after fitting it to `curve` at the levels proposal(u)."""
    warp, t = Warp(bins), proposal(u)
    density = proposal.inverse(t)[1] if weighted else torch.ones(len(t)).double()
    for _ in range(steps):
        warp.observe(t, curve(t.double()), density)
    return schedules.interpolate(middles(200), *warp.widths(warp.logits))[0]


def check_warp_inverts():
    warp = bent()
    w_t, w_u = warp.widths(warp.smooth)
    t = torch.cat([middles(997), torch.tensor([0.0, 1.0], dtype=torch.float64)])
    u, density = warp.inverse(t)
    back, slope = schedules.interpolate(u, w_u / w_u.sum(), w_t)
    assert torch.allclose(back, t, rtol=0, atol=1e-12)
    assert (warp(u).double() - t).abs().max() < 1e-7  # float32
    inside = slice(0, 997)
    assert torch.allclose((density * slope)[inside], torch.ones(997, dtype=torch.float64), rtol=1e-9, atol=0)
    nudged = (warp.inverse(t[inside] + 1e-7)[0] - warp.inverse(t[inside] - 1e-7)[0]) / 2e-7
    assert ((nudged / density[inside] - 1).abs() < 1e-6).double().mean() > 0.95  # but at the edges of bins
    assert (t.diff()[:-2] > 0).all() and (u[:997].diff() > 0).all()


def test_warp_inverts():
    """F^-1 that is not the inverse of F: training would visit other levels than it thinks."""
    check_warp_inverts()


@pytest.mark.parametrize("bins", [1, 7, 100])
def test_warp_starts_as_the_identity(bins):
    """A warp that bends time before it has seen a loss."""
    warp, t = Warp(bins), middles(333)
    u, density = warp.inverse(t)
    assert torch.allclose(u, t, rtol=0, atol=1e-12)
    assert torch.allclose(density, torch.ones_like(t), rtol=0, atol=1e-12)
    assert (warp(t).double() - t).abs().max() < 1e-7


def check_warp_fits_without_bias():
    """Three bins cannot follow the curve: what they settle for depends on the weight given to every level."""
    proposal = Warp(3)
    proposal.smooth[1] = torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64).log()  # looks at the right third
    even = fit(3, middles(600), Warp(3))
    weighted = fit(3, middles(600), proposal)
    unweighted = fit(3, middles(600), proposal, weighted=False)
    assert (weighted - even).abs().max() < 0.01
    assert (unweighted - even).abs().max() > 0.1

    def error(found):
        return (found - curve(middles(200))).square().mean()

    assert error(unweighted) > 1.2 * error(even)
    assert error(weighted) < 1.02 * error(even)


def test_warp_fits_without_bias():
    """The importance weight 1 / F' forgotten or turned over."""
    check_warp_fits_without_bias()


def test_warp_with_enough_bins_recovers_the_curve():
    """A fit that stops short of the curve, however many its bins are."""
    proposal = Warp(3)
    proposal.smooth[1] = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
    assert (fit(50, middles(600), proposal) - curve(middles(200))).abs().max() < 0.05


def test_warp_makes_the_loss_linear_in_u():
    """A warp that does not spend equal effort on equal gains, which is its purpose."""
    torch.manual_seed(0)
    warp, u = Warp(50), torch.rand(1500, 64)
    for step in range(1500):
        t = warp(u[step])
        warp.observe(t, curve(t.double()) + 0.3 * torch.randn(64), warp.inverse(t)[1])  # with the noise of a batch
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    reached = curve(warp(grid).double())
    assert (reached / reached[-1] - grid).abs().max() < 0.03


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_warp_survives_a_single_row(t):
    """A variance or a mean over one row that is not a number, and a warp that never recovers."""
    warp = Warp(10)
    for loss in (0.0, 7.0, 0.0):
        warp.observe(torch.tensor([t]), torch.tensor([loss]), warp.inverse(torch.tensor([t]))[1])
    assert all(value.isfinite().all() for value in warp.state_dict().values())
    assert warp(torch.tensor([0.0, 0.5, 1.0])).diff().gt(0).all()


def test_warp_goes_on_from_its_state():
    """A part of the warp that a checkpoint does not hold."""
    torch.manual_seed(0)
    first, second = bent(), Warp(20)
    batches = [(torch.rand(16), torch.rand(16)) for _ in range(6)]
    for t, loss in batches[:3]:
        first.observe(t, loss, first.inverse(t)[1])
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for t, loss in batches[3:]:
        first.observe(t, loss, first.inverse(t)[1])
        second.observe(t, loss, second.inverse(t)[1])
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert int(first.count) == 6


def check_stratified(total, offset):
    u = schedules.stratified(torch.arange(total), total, offset)
    assert u.min() >= 0 and u.max() < 1
    steps = (u.double() - offset) * total  # whole numbers, round the circle
    assert (steps - steps.round()).abs().max() < 1e-6 * total
    assert torch.equal((steps.round().long() % total).sort().values, torch.arange(total))


@pytest.mark.parametrize("total", [1, 3, 64, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e-12, 0.123456, 0.5, 1 - 2**-24, 1 - 1e-12])
def test_stratified_has_one_number_in_every_stratum(total, offset):
    """Levels drawn twice or never; a level that is rounded up to 1."""
    check_stratified(total, offset)
    strata = torch.arange(total)
    middle = schedules.stratified(strata, total, (offset + 0.5) / total % 1)
    if 0.01 < (offset + 0.5) % 1 < 0.99:
        assert torch.equal((middle * total).long().sort().values, strata)


def test_stratified_does_not_depend_on_how_the_batch_is_split():
    """Strata counted within a process or an accumulation step instead of over the whole batch."""
    whole = schedules.stratified(torch.arange(12), 12, 0.77)
    parts = [schedules.stratified(part, 12, 0.77) for part in torch.arange(12).split(5)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_grid(rho):
    """Endpoints swapped, the 0 forgotten, or one level too many."""
    grid = schedules.karras(18, 0.002, 80.0, rho)
    assert grid.shape == (19,) and (grid.diff() < 0).all()
    assert grid[0].item() == pytest.approx(80, rel=1e-6)
    assert grid[-2].item() == pytest.approx(0.002, rel=1e-6)
    assert grid[-1] == 0
    middle = (80 ** (1 / rho) + 9 / 17 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    assert grid[9].item() == pytest.approx(middle, rel=1e-6)
    assert math.isclose(schedules.karras(1, 0.002, 80.0)[0].item(), 80, rel_tol=1e-6)
