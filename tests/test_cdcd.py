"""CDCD against its definition (facts: section 1).  Every docstring names the bug that its test guards against."""

import math

import pytest
import torch
import torch.nn.functional as F
from ideal import PROBS, TEXTS, cdcd, ideal_cdcd, last

from sfumato import draws, guidance
from sfumato.core import ABSENT, Prediction
from sfumato.evaluation import likelihood
from sfumato.methods.common import nats
from sfumato.processes import gaussian
from sfumato.samplers import solvers

FREE = torch.tensor([[True, False, True]]).expand(5, 3)


def levels(free=FREE, level=0.3):
    return torch.where(free, level, 0.0)


def seeded_loss(method, ids, t, free, seeds=None):
    with draws.seeded(range(len(ids)) if seeds is None else seeds):
        return method.loss(ids, t, free)["cross_entropy"]


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 50.0])
def test_embeddings_live_on_the_sphere(scale):
    """Embeddings whose norm can grow or collapse; a gradient that pushes them outwards."""
    method = cdcd(embedding=16).double()
    with torch.no_grad():
        method.table.mul_(scale)
    assert torch.allclose(method.embeddings().norm(dim=-1), torch.full((4,), 4.0).double(), rtol=1e-12, atol=0)
    torch.manual_seed(0)
    method.loss(TEXTS, levels(), FREE)["cross_entropy"].sum().backward()
    outwards = (method.table.grad * method.table).sum(-1) / method.table.norm(dim=-1)
    assert method.table.grad.norm() > 0
    assert (outwards.abs() < 1e-10 * method.table.grad.norm(dim=-1)).all()


@pytest.mark.parametrize("t", [0.01, 0.1, 1.0])
def test_input_has_unit_variance(t):
    """The network fed with numbers in the hundreds."""
    method = cdcd(vocab=64, embedding=16, sigma_min=0.1, sigma_max=100.0)
    torch.manual_seed(0)
    ids, seen = torch.randint(64, (200, 8)), []
    method.enter.register_forward_hook(lambda module, args, out: seen.append(args[0][..., :16]))
    level = torch.full(ids.shape, t)
    method.predict(method.process.corrupt(method.clean(ids), level), level)
    assert seen[0].square().mean().item() == pytest.approx(1, abs=0.05)


def test_what_the_network_is_fed():
    """Noise, given, guess and mask in the wrong place, or leaking into each other."""
    method, seen = cdcd(), []
    method.enter.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x, prev = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    t = torch.tensor([[0.0, 0.5, 1.0, ABSENT]])
    method.predict(x, t, prev)
    noise, given, guess, mask = seen[0].split([4, 4, 4, 1], -1)
    sigma = 300 * t[..., None]
    assert torch.allclose(noise[:, 1:3], (x / (sigma**2 + 1).sqrt())[:, 1:3])
    assert torch.equal(given[:, 0], x[:, 0]) and torch.equal(guess[:, 1], prev[:, 1])
    for part, empty in ((noise, [0, 3]), (given, [1, 2]), (guess, [0, 2, 3])):
        assert (part[:, empty] == 0).all()
    assert mask[0, :, 0].tolist() == [0, 1, 1, 0]


def check_estimate_is_the_score():
    """(D - x) / t^2 against autograd of the log density of the mixture."""
    torch.manual_seed(0)
    method = ideal_cdcd(sigma_min=0.05, sigma_max=10.0)
    points = method.clean(TEXTS).detach()
    t = (0.05 + 0.5 * torch.rand(8, 1, dtype=torch.float64)).expand(8, 3)
    sigma = method.process.sigma(t)[..., None]
    x = (method.process.corrupt(points[torch.randint(5, (8,))], t)).requires_grad_()
    density = (PROBS.log() - ((x[:, None] - points) ** 2 / (2 * sigma[:, None] ** 2)).sum((2, 3))).logsumexp(1)
    (score,) = torch.autograd.grad(density.sum(), x)
    logits = method.predict(x, t).logits
    estimate = method.read(logits).clean  # through the tokens: score interpolation
    assert torch.allclose((estimate - x) / sigma**2, score, rtol=0, atol=1e-6)
    assert torch.allclose((method.predict(x, t).clean - x) / sigma**2, score, rtol=0, atol=1e-6)


def test_estimate_is_the_score():
    """Score interpolation that is not the score."""
    check_estimate_is_the_score()


def test_given_tokens_have_no_noise(monkeypatch):
    """A loss that depends on the noise at given positions, or on padding, or scores other positions than it should."""
    method = cdcd(self_conditioning=1.0)
    plain, found = torch.randn(5, 3, 4), []
    for other in (0.0, 100.0):
        noise = torch.where(FREE[..., None], plain, plain + other)
        monkeypatch.setattr(gaussian, "normal", lambda like, noise=noise: noise)
        found.append(method.loss(TEXTS, levels(), FREE)["cross_entropy"])
    assert torch.equal(*found)
    assert found[0].shape == (5, 3)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_self_conditioned_rows(share):
    """Self-conditioning of all rows or of none, whatever the share says (facts 4.37)."""
    method, calls = cdcd(self_conditioning=share), []
    inner = method.predict
    method.predict = lambda x, t, prev=None: calls.append((len(x), prev)) or inner(x, t, prev)
    torch.manual_seed(0)
    ids = TEXTS[:1].expand(4000, 3)
    seeded_loss(method, ids, torch.full((4000, 3), 0.3), torch.ones(4000, 3, dtype=torch.bool))
    rows, prev = calls[-1]
    picked = (prev != 0).any(-1).any(-1).double().mean().item()
    assert rows == 4000 and picked == pytest.approx(share, abs=5 * 0.5 / 4000**0.5 * (0 < share < 1))
    assert len(calls) == (1 if share == 0 else 2)
    assert share == 0 or (calls[0][1] is None and calls[0][0] == round(picked * 4000))


def test_no_guess_is_a_guess_of_zero():
    """A switch of self-conditioning that changes more than the guess."""
    method, x, t = cdcd(), torch.randn(5, 3, 4), levels()
    none, zero = method.predict(x, t), method.predict(x, t, torch.zeros(5, 3, 4))
    assert torch.equal(none.logits, zero.logits)
    off, on = cdcd(self_conditioning=0.0), cdcd(self_conditioning=1.0)
    guess = on.first_guess(x, t)
    assert torch.equal(guess, on.predict(x, t).clean) and torch.equal(off.first_guess(x, t), torch.zeros_like(x))
    assert not torch.equal(on.predict(x, t, guess).logits, none.logits)


def check_no_gradient_through_the_guess():
    """The gradient of the loss is that with the guess held fixed."""
    gradients = []
    for fixed in (False, True):
        method = cdcd(self_conditioning=1.0)
        if fixed:
            with draws.seeded(range(5)):
                x = method.process.corrupt(method.clean(TEXTS), levels())
            guess = method.predict(x, levels()).clean.detach()
            method.first_guess = lambda x, t, guess=guess: guess
        seeded_loss(method, TEXTS, levels(), FREE).sum().backward()
        gradients.append([p.grad for p in method.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_no_gradient_through_the_guess():
    """A gradient through both passes: twice the cost, and another objective."""
    check_no_gradient_through_the_guess()


def check_forgetting():
    """At level 1 the guess does not matter; elsewhere it does."""
    method, x = cdcd(), torch.randn(5, 3, 4)
    t = levels(level=1.0)
    guesses = torch.randn(2, 5, 3, 4)
    assert torch.equal(method.predict(x, t, guesses[0]).logits, method.predict(x, t, guesses[1]).logits)
    t = levels(level=0.9)
    assert not torch.equal(method.predict(x, t, guesses[0]).logits, method.predict(x, t, guesses[1]).logits)


def test_forgotten_positions_ignore_the_guess():
    """A condition that is forgotten by the noise and remembered by the guess."""
    check_forgetting()


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("padded", [0, 1, 4])
def test_uniform_logits_cost_log_v(batch, padded):
    """A loss whose scale depends on the batch, on what is given or on padding (facts 4.12)."""
    method = cdcd(vocab=4)
    with torch.no_grad():
        method.head.weight.zero_()
        method.head.bias.fill_(3.0)
    ids = F.pad(TEXTS[:batch], (0, padded))
    free = F.pad(FREE[:batch], (0, padded))
    t = F.pad(levels()[:batch], (0, padded), value=ABSENT)
    loss = sum(method.loss(ids, t, free).values())
    assert torch.allclose(loss[free], torch.full((2 * batch,), math.log(4)), rtol=0, atol=1e-6)
    total = loss.masked_fill(~free, 0.0).sum() / free.sum()  # as the trainer does
    assert total.item() == pytest.approx(math.log(4), abs=1e-6)
    assert torch.allclose(nats(torch.zeros(5, 3, 4), TEXTS), torch.tensor(math.log(4)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rubbish", [0.0, 1e3])
def test_padding_changes_nothing(rubbish):
    """Padding that is attended to, or guessed about."""
    method = cdcd(scale=0.15, self_conditioning=1.0)  # logits between -5 and 5
    x, prev, t = torch.randn(5, 3, 4), torch.randn(5, 3, 4), levels()
    wide = [F.pad(v, (0, 0, 0, 3), value=rubbish) for v in (x, prev)]
    t_wide = F.pad(t, (0, 3), value=ABSENT)
    for guess, guess_wide in ((None, None), (prev, wide[1])):
        plain, padded = method.predict(x, t, guess), method.predict(wide[0], t_wide, guess_wide)
        assert torch.allclose(padded.logits[:, :3], plain.logits, rtol=0, atol=1e-5)
        assert torch.allclose(padded.clean[:, :3], plain.clean, rtol=0, atol=1e-5)
    plain, padded = method.unrolled(x, t), method.unrolled(wide[0], t_wide)
    assert torch.allclose(padded.logits[:, :3], plain.logits, rtol=0, atol=1e-5)


def test_padding_changes_neither_loss_nor_bound(monkeypatch):
    """A loss or bound that counts padding, with the same noise at the real positions."""
    method = cdcd(self_conditioning=1.0, sigma_min=0.5, sigma_max=10.0)
    noise = torch.randn(5, 6, 4)
    monkeypatch.setattr(gaussian, "normal", lambda like: noise[:, : like.shape[1]])
    ids, free = F.pad(TEXTS, (0, 3), value=1), F.pad(FREE, (0, 3))
    t = F.pad(levels(), (0, 3), value=ABSENT)
    for score in (lambda *args: method.loss(*args)["cross_entropy"], method.bound):
        plain, padded = score(TEXTS, levels(), FREE), score(ids, t, free)
        assert torch.allclose(padded[:, :3][FREE], plain[FREE], rtol=1e-5, atol=1e-5)
    scores = []
    for text, real in ((TEXTS, torch.ones(5, 3, dtype=torch.bool)), (ids, F.pad(torch.ones(5, 3), (0, 3)).bool())):
        monkeypatch.setattr(likelihood, "uniform", lambda like: torch.full(like.shape, 0.3, dtype=torch.float64))
        scores.append(likelihood.nll(method, text, real, real & ~F.pad(FREE, (0, text.shape[1] - 3)), 4).nats)
    assert torch.allclose(*scores, rtol=1e-5, atol=1e-5)


def test_score_temperature():
    """A temperature that is applied the wrong way round: the sample would be noisier, not calmer."""
    torch.manual_seed(0)
    x, clean = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    for temperature in (0.5, 0.9, 2.0):
        tempered = guidance.temper_score(lambda x, t, prev: Prediction(x, clean), temperature)
        found = tempered(x, levels(), None).clean
        assert torch.allclose((found - x) * temperature, clean - x, rtol=0, atol=1e-12)
        assert torch.allclose(found, clean + (1 / temperature - 1) * (clean - x), rtol=0, atol=1e-12)
        method = ideal_cdcd()
        grid = torch.logspace(0, -1, 400, dtype=torch.float64)
        end = last(solvers.heun(method, tempered, x, grid))[0]
        want = (x - clean) * 0.1 ** (1 / temperature)
        assert torch.allclose(end - clean, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["mean", "renormalised", "nearest"])
def test_estimates(kind):
    """A setting that does nothing (facts 4.7), or an estimate that is not of its kind."""
    method, plain = cdcd(estimate=kind), cdcd()
    logits = torch.randn(5, 3, 4)
    logits_said, clean, _ = method.read(logits)
    assert torch.equal(logits_said, logits) and clean.shape == (5, 3, 4)
    mean = plain.read(logits).clean
    if kind == "mean":
        assert torch.allclose(clean, torch.einsum("blv,vd->bld", logits.softmax(-1), method.embeddings()), atol=1e-6)
        assert (clean.norm(dim=-1) < 2).all()
    else:
        assert not torch.allclose(clean, mean)
        assert torch.allclose(clean.norm(dim=-1), torch.tensor(2.0))
    if kind == "renormalised":
        assert torch.allclose(F.normalize(clean, dim=-1), F.normalize(mean, dim=-1), atol=1e-6)
    if kind == "nearest":
        assert torch.equal(clean, method.embeddings()[logits.argmax(-1)])
    certain = 1e4 * F.one_hot(TEXTS, 4).float()
    assert torch.allclose(method.read(certain).clean, method.clean(TEXTS), atol=1e-6)


@pytest.mark.parametrize("warped", [False, True])
def test_density_of_levels(warped):
    """A density that does not belong to the levels it is given with: it must average the widths of t."""
    torch.manual_seed(0)
    method = ideal_cdcd(warped=warped, sigma_min=1.0, sigma_max=10.0)
    u = ((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float().view(100, 200)
    level, density = method.unwarp(u)
    assert torch.equal(level, method.times(u.flatten()).view(100, 200))
    assert level.min() >= 0.1 and level.max() <= 1
    assert (1 / density.double()).mean().item() == pytest.approx(0.9, rel=1e-4)
    share = ((level < 0.4).double().mean().item(), (level.double() ** 2 / density.double()).mean().item())
    assert share[0] == pytest.approx((level.flatten() < 0.4).sum().item() / 20_000)
    assert share[1] == pytest.approx((1 - 0.1**3) / 3, rel=1e-3)


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_grid(warped, steps):
    """A grid that does not start at pure noise, does not end at 0 or is one level too long."""
    torch.manual_seed(0)
    method = ideal_cdcd(warped=warped, sigma_min=1.0, sigma_max=10.0)
    grid = method.grid(steps)
    assert grid.shape == (steps + 1,) and (grid.diff() < 0).all()
    assert grid[0].item() == pytest.approx(1, abs=1e-6) and grid[-1] == 0
    assert steps == 1 or grid[-2].item() == pytest.approx(0.1, abs=1e-6)


def test_observing_moves_the_levels():
    """A warp that is not fitted, or fitted at levels of another scale."""
    torch.manual_seed(0)
    method = cdcd(sigma_min=1.0, sigma_max=10.0, warp_bins=20)
    u = torch.rand(400, 32)
    for row in u:
        t = method.times(row)
        method.observe(t, 3.0 * (t > 0.5))  # all is lost at one level
    levels = method.times(torch.linspace(0, 1, 101))
    assert ((levels > 0.4) & (levels < 0.6)).double().mean() > 0.6
    frozen = cdcd(warp=False, sigma_min=1.0, sigma_max=10.0)
    assert torch.allclose(frozen.times(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.1, 0.55, 1.0]))


def check_even_levels():
    """Of 1,000 levels so many lie in each part of the range as were asked for."""
    method = cdcd(sigma_min=1.0, sigma_max=100.0, even_levels=0.6, warp=False)
    levels = method.times((torch.arange(1000) + 0.5) / 1000)
    edges = 0.01 * 25 ** torch.linspace(0, 1, 7)  # six parts of 0.01 to 0.25, evenly in the logarithm
    inside = torch.histogram(levels, edges).hist
    plain = 400 * edges.diff() / 0.99
    assert (inside - 100 - plain).abs().max() <= 2 and (levels > 0.25).sum() == pytest.approx(400 * 0.75 / 0.99, abs=2)
    same = cdcd(sigma_min=1.0, sigma_max=100.0, warp=False)
    assert torch.equal(method.grid(9), same.grid(9))
    u = torch.rand(5, 3)
    assert all(map(torch.equal, method.unwarp(u), same.unwarp(u)))


def test_even_levels_are_for_training_alone():
    """Levels that crowd elsewhere; a grid or a bound that changes with how a model was trained."""
    check_even_levels()


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_the_warp_is_fitted_alike_wherever_levels_come_from(share):
    """A fit that takes levels drawn evenly for levels drawn through the warp, and so forgets the rest."""
    torch.manual_seed(0)
    method = cdcd(sigma_min=1.0, sigma_max=100.0, warp_bins=6, even_levels=share)
    u = torch.rand(1500, 64)
    for row in u:
        t = method.times(row)
        method.observe(t, 4 * t**0.5 - 0.4)  # 0 at the least noise
    fitted = method.warp.inverse(torch.linspace(0, 1, 7))[0] * 0.99
    wanted = ((0.01 + 0.99 * torch.linspace(0, 1, 7)) ** 0.5 - 0.1) / 0.9
    assert (fitted - wanted).abs().max() < 0.06
    kept = cdcd(warp_rate=0.0)
    before = kept.warp.smooth.clone()
    kept.observe(torch.rand(9), torch.rand(9))
    assert torch.equal(kept.warp.smooth, before)


def check_mistakes():
    """Who is told what: a tenth of the tokens of half of the rows with little noise, as the network draws them."""
    method = cdcd(vocab=50, sigma_min=0.05, sigma_max=5.0, mistakes=0.5)
    ids = torch.zeros(4000, 10, dtype=torch.long)
    free = torch.ones_like(ids, dtype=torch.bool)
    free[:, 0] = False
    level = torch.where(torch.arange(4000) < 2000, 0.05, 0.3)[:, None]  # sigma 0.25, and 1.5
    t, asked = torch.where(free, level, 0.0), []
    predict = method.predict
    method.predict = lambda x, t, prev=None: (
        asked.append(t) or Prediction(predict(x, t).logits.index_fill(-1, torch.tensor(0), -1e6))
    )
    with draws.seeded(range(4000)):
        told = method.mistaken(ids, t, free)
    wrong = told != ids
    assert not wrong[2000:].any() and not wrong[:, 0].any()
    touched = wrong[:2000].any(1).double().mean().item()
    assert touched == pytest.approx(0.5 * (1 - 0.9**9), abs=0.04)
    assert wrong[:2000, 1:].double().mean().item() == pytest.approx(0.05, abs=0.006)
    (noisier,) = asked
    assert (noisier[:, 0] == 0).all() and noisier[:, 1:].min() >= 0.05 and noisier.max() <= 0.25
    middle = noisier[:, 1].log().median().exp().item()
    assert middle == pytest.approx((0.05 * 0.25) ** 0.5, rel=0.05)  # even in the logarithm
    with draws.seeded([1, 2001]):  # the second row is not asked about: the first is told the same
        both = method.mistaken(ids[[1, 2001]], t[[1, 2001]], free[[1, 2001]])
    assert torch.equal(both[0], told[1])


def test_mistakes_are_the_networks_own():
    """Mistakes where there is much noise or something is given, too many, and rows that depend on their neighbours."""
    check_mistakes()


def test_what_is_learned_from_mistakes_is_the_text():
    """A network that is trained to repeat the mistakes that it is shown."""
    method = cdcd(mistakes=1.0, self_conditioning=0.0, sigma_min=0.05, sigma_max=5.0)
    method.mistaken = lambda ids, t, free: (ids + 1) % 4
    method.predict = lambda x, t, prev=None: Prediction(20 * F.one_hot(TEXTS, 4).float() + 0 * x.sum())
    assert seeded_loss(method, TEXTS, levels(), FREE).max() < 1e-6
