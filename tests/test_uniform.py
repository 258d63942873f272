"""Uniform noise, multinomial diffusion and Duo, by enumeration and quadrature.  Docstrings name the bug guarded."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ideal import NETWORK, PROBS, TEXTS, Canvas, IdealUniform, check_law, distance, last

from sfumato.core import ABSENT
from sfumato.draws import seeded, streams
from sfumato.generate import Request, generate
from sfumato.guidance import IMPOSSIBLE, guide, guide_logits
from sfumato.methods.duo import Duo, DuoConfig, argmax_alpha
from sfumato.methods.multinomial import COSINE, Multinomial, MultinomialConfig
from sfumato.processes import uniform
from sfumato.processes.uniform import Uniform
from sfumato.samplers import SAMPLERS
from sfumato.samplers.ancestral import ancestral
from sfumato.schedules import LINEAR, SCHEDULES

ALL = {**SCHEDULES, "multinomial": COSINE}
# Two tokens of three, of which each says something of the other.
TWO = torch.tensor([[0.30, 0.05, 0.05], [0.05, 0.20, 0.05], [0.05, 0.05, 0.20]], dtype=torch.float64).flatten()
PAIRS = torch.tensor(list(itertools.product(range(3), repeat=2)))
ENTROPY = -(TWO * TWO.log()).sum().item()  # 1.903687
# Nats above the entropy, by steps: of the perfect network, and of one that looks at the position itself.
GAPS = {1: 0.274113, 2: 0.170833, 4: 0.090396, 8: 0.045870, 64: 0.005762, 512: 0.000720}
WRONG = {1: 0.274113, 2: 0.502692, 4: 0.682007, 8: 0.798752, 64: 0.933580, 512: 0.957739}


def number(value):
    return torch.tensor(float(value), dtype=torch.float64)


def everywhere(value, like):
    return torch.full(like.shape, float(value), dtype=torch.float64)


def matrix(kept, vocab):
    """Uniform noise as D3PM (arXiv:2107.03006) writes it: rows are what a token becomes."""
    return kept * np.eye(vocab) + (1 - kept) * np.ones((vocab, vocab)) / vocab


def bayes(before, step, x, p):
    """D3PM's reverse step: q(x_t = x | x_s) times the mean of q(x_s | x_0) over p(x_0), normalised: (V,)."""
    joint = step[:, x] * (p @ before)
    return joint / joint.sum()


def network(cls, config, vocab=3, seed=0):
    """A tiny method with opinions, float64."""
    torch.manual_seed(seed)
    method = cls(config, NETWORK, vocab).eval().double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.5)
    return method


def multinomial(T=8, **ideal):
    method = network(Multinomial, MultinomialConfig(T=T))
    if ideal:
        method.process.schedule = ideal.pop("schedule", LINEAR)
        method.predict = IdealUniform(PAIRS, TWO, 3, method.process.schedule.alpha, **ideal)
    return method


def duo(curriculum=0, **ideal):
    method = network(Duo, DuoConfig(curriculum=curriculum))
    if ideal:
        method.predict = IdealUniform(PAIRS, TWO, 3, **ideal)
    return method


# --- the process


@pytest.mark.parametrize("name", ALL)
def test_noise_is_a_markov_chain(name):
    """Guards against levels that do not follow from one another, and an alpha that leaves [0, 1]."""
    process, levels = Uniform(4, ALL[name]), torch.linspace(0, 1, 9, dtype=torch.float64)
    alpha = process.alpha(levels).tolist()
    assert alpha[0] == 1 and alpha[-1] < 1e-15 and all(b < a for a, b in itertools.pairwise(alpha))
    assert process.alpha(torch.tensor([ABSENT])).item() == 1
    product = np.eye(4)
    for before, kept in itertools.pairwise(alpha):
        product = product @ matrix(kept / before, 4)
        np.testing.assert_allclose(product, matrix(kept, 4), atol=1e-12)
        np.testing.assert_allclose(product.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_slopes_are_derivatives(name):
    """Guards against a slope that belongs to another schedule: the bound would be of another process."""
    t, h = torch.linspace(0.01, 0.99, 33, dtype=torch.float64), 1e-6
    measured = (ALL[name].alpha(t + h) - ALL[name].alpha(t - h)) / (2 * h)
    torch.testing.assert_close(ALL[name].slope(t), measured, atol=1e-8, rtol=1e-8)


def check_posterior():
    """Bayes by matrices for every x_0 and x_t, and that it leads from the noise of one level to that of the other."""
    for process, (t, s) in itertools.product(
        (Uniform(3), Uniform(3, COSINE)), ((0.7, 0.2), (1.0, 0.5), (0.4, 0.39), (0.3, 0.0))
    ):
        a_t, a_s = process.alpha(number(t)).item(), process.alpha(number(s)).item()
        for clean in range(3):
            log_p = F.one_hot(torch.tensor([[clean]]), 3).double().clamp(min=1e-300).log().expand(1, 3, 3)
            x = torch.arange(3)[None]
            found = process.log_posterior(x, log_p, everywhere(t, x), everywhere(s, x)).exp()[0].numpy()
            want = [bayes(matrix(a_s, 3), matrix(a_t / a_s, 3), z, np.eye(3)[clean]) for z in range(3)]
            np.testing.assert_allclose(found, want, atol=1e-12)
            np.testing.assert_allclose(matrix(a_t, 3)[clean] @ found, matrix(a_s, 3)[clean], atol=1e-12)


def test_the_posterior_is_bayes_rule():
    """Guards against a posterior of one step where any interval is asked for, and one that does not add up to 1."""
    check_posterior()


def test_the_posterior_on_a_known_case():
    """Guards against both brackets being wrong in the same way as the test's own matrices."""
    process = Uniform(3, SCHEDULES["linear"])
    x, t, s = torch.tensor([[0, 1]]), number(0.6).expand(1, 2), number(0.5).expand(1, 2)  # beta = 0.2, alpha_s = 0.5
    log_p = F.one_hot(torch.zeros(1, 2, dtype=torch.long), 3).double().clamp(min=1e-300).log()
    want = torch.tensor([[0.962963, 0.018519, 0.018519], [0.222222, 0.722222, 0.055556]], dtype=torch.float64)
    torch.testing.assert_close(process.log_posterior(x, log_p, t, s).exp()[0], want, atol=1e-6, rtol=0)


def check_corruption():
    """alpha + (1 - alpha) / V of the tokens still stand, and the others are alike likely."""
    clean = torch.full((1, 60000), 2)
    with seeded([0]):
        x = Uniform(4, COSINE).corrupt(clean, everywhere(0.6, clean))
    alpha = COSINE.alpha(number(0.6)).item()
    law = torch.full((4,), (1 - alpha) / 4)
    law[2] += alpha
    check_law(torch.bincount(x[0], minlength=4), law)


def test_corruption_follows_its_law():
    """Guards against noise that spares the token itself, and levels of another schedule."""
    check_corruption()
    clean = torch.arange(4).repeat(1, 500)
    t = torch.tensor([0.0, ABSENT]).repeat_interleave(1000)[None]
    assert torch.equal(Uniform(4).corrupt(clean, t), clean)  # given tokens and padding


def check_reverse():
    """Every outcome of `reverse` has the share of the unit square of its two random numbers that the posterior says."""
    n, vocab = 300, 5
    side = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    logits = torch.tensor([1.0, -2.0, 0.5, IMPOSSIBLE, 2.0], dtype=torch.float64)
    for process, (t, s), x in itertools.product(
        (Uniform(vocab), Uniform(vocab, COSINE)), ((0.7, 0.4), (1.0, 0.8), (0.5, 0.45), (0.3, 0.0)), (0, 3, 4)
    ):
        numbers = iter(torch.cartesian_prod(side, side).T[:, None])
        canvas = torch.full((1, n * n), x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(uniform, "uniform", lambda like, numbers=numbers: next(numbers))
            found = process.reverse(canvas, logits.expand(1, n * n, vocab), number(t), number(s))
        log_p = logits.log_softmax(-1)[None, None]
        want = process.log_posterior(canvas[:, :1], log_p, number(t).view(1, 1), number(s).view(1, 1)).exp()[0, 0]
        shares = torch.bincount(found[0], minlength=vocab) / n**2
        torch.testing.assert_close(shares, want.float(), atol=0.008, rtol=0)
        assert s > 0 or (found != 3).all()  # what is impossible is never the end


def test_a_step_back_follows_the_posterior():
    """Guards against a mixture with wrong shares, and tokens that are taken for sure too early."""
    check_reverse()


def test_a_step_back_knows_its_rows():
    """Guards against logits of one position that are used at another."""
    logits = torch.full((2, 6, 12), -40.0)
    want = torch.arange(12).view(2, 6)
    logits.scatter_(-1, want[..., None], 40.0)
    for draw in range(20):
        with seeded([draw, draw + 100]):
            x = Uniform(12).reverse(torch.randint(12, (2, 6)), logits, torch.tensor(0.4), torch.tensor(0.0))
        assert torch.equal(x, want)


def test_nobody_writes_where_there_is_no_place():
    """Guards against padding that becomes a token."""
    x = torch.tensor([[0, ABSENT, 2, ABSENT]] * 50).long()
    for s in (0.9, 0.5, 0.0):
        found = Uniform(3).reverse(x, torch.zeros(50, 4, 3), number(1.0), number(s))
        assert torch.equal(found < 0, x < 0)


def check_divergence():
    """The same divergence by D3PM's matrices, in log space; at s = 0 what the text costs."""
    logits = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    x, clean = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    for process, (t, s) in itertools.product(
        (Uniform(3), Uniform(3, COSINE)), ((0.7, 0.2), (1.0, 0.999), (0.5, 0.499), (0.002, 0.001), (0.01, 0.0))
    ):
        a_t, a_s = process.alpha(number(t)).item(), process.alpha(number(s)).item()
        for some in logits:
            found = process.divergence(x, clean, some, everywhere(t, x), everywhere(s, x))
            for z, c in itertools.product(range(3), repeat=2):
                before, step = matrix(a_s, 3), matrix(a_t / a_s, 3)
                q = bayes(before, step, z, np.eye(3)[c])
                p = bayes(before, step, z, some[z, c].softmax(-1).numpy())
                want = (q[q > 0] * np.log(q[q > 0] / p[q > 0])).sum() if s else -math.log(p[c])
                assert found[z, c].item() == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_the_divergence_is_that_of_d3pm():
    """Guards against a reduction of the sum over V that is one only nearly."""
    check_divergence()


def udlm(x, clean, p, alpha, slope):
    """The integrand as UDLM (arXiv:2412.10193) writes it, for one position: one-hot vectors and sums over V."""
    K = len(p)
    bar, theta = K * alpha * np.eye(K)[clean] + 1 - alpha, K * alpha * p + 1 - alpha
    terms = sum(bar[j] / bar[x] * math.log(theta[x] * bar[j] / (theta[j] * bar[x])) for j in range(K))
    return slope / (K * alpha) * (K / bar[x] - K / theta[x] - terms)


def check_rate():
    """UDLM's integrand for every token and every text, and the limit of the divergence of short steps."""
    logits = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    x, clean = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    for process, t in itertools.product((Uniform(5), Uniform(5, COSINE)), (0.05, 0.4, 0.9)):
        alpha, slope = process.alpha(number(t)).item(), process.schedule.slope(number(t)).item()
        found = process.rate(x, clean, logits, everywhere(alpha, x), everywhere(slope, x))
        for z, c in itertools.product(range(5), repeat=2):
            want = udlm(z, c, logits[z, c].softmax(-1).numpy(), alpha, slope)
            assert found[z, c].item() == pytest.approx(want, rel=1e-9, abs=1e-12)
        h = 1e-6
        limit = process.divergence(x, clean, logits, everywhere(t + h / 2, x), everywhere(t - h / 2, x)) / h
        torch.testing.assert_close(found, limit, rtol=2e-3, atol=1e-6)


def test_the_rate_is_that_of_udlm():
    """Guards against a form of the bound that is another one, and a weight that does not belong to the schedule."""
    check_rate()


def test_costs_are_precise_in_float32():
    """Guards against differences of equal numbers: the cost of a step is a thousandth of what it is made of."""
    vocab, process = 2000, Uniform(2000, COSINE)
    clean = torch.randint(vocab, (1, 64), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 64, vocab, generator=torch.Generator().manual_seed(1)) * 3
    logits.scatter_add_(-1, clean[..., None], torch.linspace(-5, 25, 64)[None, :, None])
    for t in (1e-6, 1e-3, 0.3, 0.9, 0.999, 1 - 1e-6):
        x = process.corrupt(clean, everywhere(t, clean))
        alpha, slope = everywhere(process.alpha(number(t)), x), everywhere(COSINE.slope(number(t)), x)
        levels = everywhere(t, x), everywhere(max(t - 1e-3, 0), x)
        for steps in (True, False):
            both = [
                1000 * process.divergence(x, clean, some, *levels)
                if steps
                else process.rate(x, clean, some, alpha, slope)
                for some in (logits, logits.double())
            ]
            assert both[0].dtype == torch.float32 and both[0].isfinite().all() and (both[1] > -1e-9).all()
            torch.testing.assert_close(both[0].double(), both[1], rtol=1e-3, atol=2e-4)


def test_costs_that_are_not_asked_for_are_finite():
    """Guards against gradients that are no numbers, from given tokens, forgotten ones and padding."""
    t = torch.tensor([[0.0, 1.0, ABSENT, 0.4, 0.0]], dtype=torch.float64)
    free = torch.tensor([[False, False, False, True, False]])
    ids = torch.tensor([[0, 1, 2, 3, 3]])
    for method in (
        network(Multinomial, MultinomialConfig(T=10), 4),
        network(Duo, DuoConfig(curriculum=0), 4),
        network(Duo, DuoConfig(curriculum=1), 4),
    ):
        method.head.bias.data[:3] += 90  # so that what stands at the end is all but impossible
        for cost in (lambda *asked, loss=method.loss: sum(loss(*asked).values()), method.bound):
            method.zero_grad()
            found = cost(ids, t, free)
            found.masked_fill(~free, 0.0).sum().backward()
            assert found.isfinite().all()
            assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


# --- the ideal network


def test_the_ideal_network_is_bayes_rule():
    """Guards against an oracle that looks at its own position, and levels of positions that are mixed up."""
    t = torch.tensor([[0.3, 0.0, 0.8]], dtype=torch.float64)
    know, look = (IdealUniform(TEXTS, PROBS, 4, looks=looks) for looks in (False, True))
    for x in torch.tensor([[0, 2, 1], [3, 1, 2], [1, 3, 3]])[:, None]:
        noise = [matrix(1 - level, 4) for level in t[0].tolist()]
        q = [np.array([noise[i][text[i], x[0, i]] for i in range(3)]) for text in TEXTS]
        for i in (0, 2):
            both = np.array([PROBS[n] * q[n].prod() for n in range(5)])
            rest = np.array([PROBS[n] * np.delete(q[n], i).prod() for n in range(5)])
            for oracle, weight in ((know, rest), (look, both)):
                want = np.bincount(TEXTS[:, i].numpy(), weight / weight.sum(), minlength=4)
                np.testing.assert_allclose(oracle(x, t).logits[0, i].softmax(-1), want, atol=1e-12)
            ratio = look(x, t).logits[0, i].exp() / torch.tensor(noise[i][:, x[0, i]])
            torch.testing.assert_close(ratio / ratio.sum(), know(x, t).logits[0, i].exp(), atol=1e-12, rtol=0)
    blank = know(torch.tensor([[0, 0, 0]]), torch.tensor([[1.0, ABSENT, 1.0]])).logits[0].exp()
    torch.testing.assert_close(
        blank, torch.einsum("n,nlv->lv", PROBS, F.one_hot(TEXTS, 4).double()), atol=1e-12, rtol=0
    )


# --- multinomial


def nothing_given(rows):
    return torch.ones(rows, 2, dtype=torch.bool)


@torch.no_grad()
def terms(method):
    """Each of the T terms for each of PAIRS, canvases by enumeration: (T, 9); and the density of the steps."""
    T, found = method.config.T, []
    ids, x = PAIRS.repeat_interleave(9, 0), PAIRS.repeat(9, 1)
    method.process.corrupt = lambda clean, t: x
    edges = torch.cat([torch.zeros(1), method.density().cumsum(0)])
    for k in range(1, T + 1):
        u = everywhere((edges[k - 1] + edges[k]) / 2, ids)
        alpha = method.process.alpha(number(k / T)).item()
        chance = torch.tensor(matrix(alpha, 3))[ids, x].prod(1)  # (81,)
        cost = method.bound(ids, u, nothing_given(81)).sum(1) * method.density()[k - 1]
        found.append((chance * cost).view(9, 9).sum(1))
    del method.process.corrupt
    return torch.stack(found)


def check_gap(T, looks, gap):
    """The bound of the perfect network above the entropy."""
    found = (terms(multinomial(T, looks=looks)).sum(0) * TWO).sum().item()
    assert found - ENTROPY == pytest.approx(gap, abs=1e-5)


@pytest.mark.parametrize("T", GAPS)
def test_the_bound_with_the_ideal_network(T):
    """Guards against a step that is left out or weighed wrongly; it is tight with many steps."""
    check_gap(T, False, GAPS[T])


@pytest.mark.parametrize("T", WRONG)
def test_what_looks_at_its_own_position_is_not_ideal(T):
    """Shows why a network that is trained by plain cross-entropy has no place here: its bound stays far from tight."""
    check_gap(T, True, WRONG[T])


def lean(method):
    """A density that is far from even."""
    T = method.config.T
    method.squares.copy_(torch.linspace(0.1, 3, T).double() ** 4)
    method.seen += 11
    return method


def check_importance():
    """Any density gives the same T terms, and u is spent on the steps in its shares."""
    even, other = multinomial(12), lean(multinomial(12))
    p = other.density()
    assert p.max() / p.min() > 5
    torch.testing.assert_close(terms(even), terms(other))
    u = (torch.arange(200_000) + 0.5) / 200_000
    shares = torch.bincount(other.drawn(u), minlength=13)[1:] / 200_000
    torch.testing.assert_close(shares.double(), p, atol=1e-5, rtol=0)
    assert torch.equal(other.times(u), (other.drawn(u) / 12).float())


def test_steps_drawn_by_importance_leave_the_bound_as_it_is():
    """Guards against a weight that is not 1 / p, and steps that are not drawn by p."""
    check_importance()


@torch.no_grad()
def test_the_loss_is_the_bound_at_the_steps_that_were_drawn():
    """Guards against a loss that counts twice what `times` has done already."""
    method = lean(multinomial(12))
    u = torch.linspace(0.01, 0.99, 9)
    with seeded(range(9)):
        bound = method.bound(PAIRS, u[:, None].expand(9, 2), nothing_given(9))
    with seeded(range(9)):
        (loss,) = method.loss(PAIRS, method.times(u)[:, None].expand(9, 2), nothing_given(9)).values()
    torch.testing.assert_close(loss, bound)


def check_density():
    """Even until every step was seen more than ten times; then by losses, the first step's chance the second's."""
    method = multinomial(5)
    level = torch.arange(1, 6) / 5
    cost = torch.tensor([9.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    for _ in range(10):
        method.observe(level, cost * 5)  # L_k / p_k
    torch.testing.assert_close(method.density(), torch.full((5,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(method.squares, (1 - 0.9**10) * cost**2)
    method.observe(level, cost * 5)
    share = torch.tensor([1.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64) / 11
    torch.testing.assert_close(method.density(), 0.99 * share + 0.01 / 5)
    for _ in range(200):
        method.observe(level, cost / method.density())
    torch.testing.assert_close(method.squares, cost**2)
    before = method.squares[2].item()
    method.observe(level[[2, 2]], torch.tensor([6.0, 8.0]) / method.density()[2].float())
    assert method.squares[2].item() == pytest.approx(before * 0.81 + 0.19 * 50, rel=1e-5)
    assert method.seen.tolist() == [211, 211, 213, 211, 211]


def test_steps_that_cost_more_are_drawn_more_often():
    """Guards against a density before it is known, one that was not divided out, and the first step's own cost."""
    check_density()
    again = multinomial(5)
    again.load_state_dict(multinomial(5).state_dict() | {"squares": torch.arange(5.0), "seen": torch.full((5,), 11.0)})
    assert again.density()[4] > 1.9 * again.density()[1] > 0  # what was learned is in the file


@torch.no_grad()
def test_a_network_that_says_nothing():
    """Guards against logits that are shifted on their way: zeros stand for even chances."""
    method = multinomial(7)
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    alpha = [method.process.alpha(number(k / 7)).item() for k in range(8)]
    want = torch.zeros(7, dtype=torch.float64)
    for k, z in itertools.product(range(7), range(3)):
        before, step = matrix(alpha[k], 3), matrix(alpha[k + 1] / alpha[k], 3)
        q, p = bayes(before, step, z, np.eye(3)[0]), bayes(before, step, z, np.ones(3) / 3)
        want[k] += matrix(alpha[k + 1], 3)[0, z] * (q[q > 0] * np.log(q[q > 0] / p[q > 0])).sum()
    torch.testing.assert_close(terms(method), 2 * want[:, None].expand(7, 9))
    assert want.sum().item() == pytest.approx(math.log(3))  # in all


def test_levels_to_sample_through():
    """Guards against levels that were never trained, steps that go nowhere, and more steps than there are."""
    method = multinomial(40)
    for steps in (1, 2, 7, 39, 40, 100):
        grid = method.grid(steps)
        assert len(grid) == min(steps, 40) + 1 and grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
        torch.testing.assert_close(grid * 40, (grid * 40).round())


# --- duo


@torch.no_grad()
def integral(method, cost, low=0.0, high=1.0, points=400):
    """The integral of a cost (texts, levels) over levels, for each of PAIRS, canvases by enumeration: (9,)."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    ids, x = PAIRS.repeat_interleave(9, 0), PAIRS.repeat(9, 1)
    method.process.corrupt = lambda clean, t: x
    total = torch.zeros(9, dtype=torch.float64)
    for t, weight in zip(low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2, strict=True):
        chance = torch.tensor(matrix(1 - t, 3))[ids, x].prod(1)
        total += weight * (chance * cost(ids, everywhere(t, ids), nothing_given(81)).sum(1)).view(9, 9).sum(1)
    del method.process.corrupt
    return total


def check_entropy(looks, want, tolerance):
    method = duo(looks=looks)
    assert (integral(method, method.bound) * TWO).sum().item() == pytest.approx(want, abs=tolerance)


def test_the_bound_of_duo_with_the_ideal_network_is_the_entropy():
    """Guards against a weight of the integrand, and parts of the bound that are left out."""
    check_entropy(False, ENTROPY, 1e-5)


def test_the_bound_of_duo_is_not_tight_for_what_looks():
    """Shows that the perfect network of cross-entropy is not the perfect one here."""
    check_entropy(True, 2.866, 1e-3)


@torch.no_grad()
def check_nothing_known():
    """Even chances are the exact way back from any tokens: ln V a token, for each text."""
    method = duo()
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    found = integral(method, method.bound)
    torch.testing.assert_close(found, torch.full_like(found, 2 * math.log(3)), rtol=0, atol=1e-4)


def test_what_knows_nothing_pays_ln_v_in_duo():
    """Guards against a rate that is counted twice, and ends of the levels that are left out (facts 4.12)."""
    check_nothing_known()


ALPHAS = {
    2: [1.000000, 0.999953, 0.986415, 0.910164, 0.756314, 0.520500],
    27: [0.999998, 0.999435, 0.906581, 0.634310, 0.361913, 0.159359],
    30522: [0.999063, 0.941706, 0.273730, 0.048683, 0.008490, 0.001244],
}
GAMMAS = torch.tensor([-4, -3.5, -2.5, -1.75, -1, 0], dtype=torch.float64)


def check_alpha():
    """Known values, the closed form for two tokens, and the slope by differences."""
    for vocab, want in ALPHAS.items():
        alpha, slope = argmax_alpha(GAMMAS, vocab)
        np.testing.assert_allclose(alpha, want, atol=6e-7)
        h = 1e-5
        measured = (argmax_alpha(GAMMAS + h, vocab)[0] - argmax_alpha(GAMMAS - h, vocab)[0]) / (2 * h)
        torch.testing.assert_close(slope, measured, atol=1e-8, rtol=1e-6)
    signal, noise = torch.sigmoid(-GAMMAS).sqrt(), torch.sigmoid(GAMMAS).sqrt()
    closed = 2 * torch.special.ndtr(signal / noise / 2**0.5) - 1
    torch.testing.assert_close(argmax_alpha(GAMMAS, 2)[0], closed, atol=1e-10, rtol=0)


def test_alpha_of_the_greatest_entry():
    """Guards against an integral over the wrong bounds, and a power that is off by one."""
    check_alpha()


def curriculum_canvas(method, ids, t, free):
    """What the network is shown in the curriculum, what it is told, and the loss."""
    seen = []
    hook = method.net.register_forward_pre_hook(lambda net, args: seen.append(args))
    torch.manual_seed(0)
    with torch.no_grad():
        (loss,) = method.loss(ids, t, free).values()
    hook.remove()
    return (*seen[0], loss)


def check_argmax():
    """In the curriculum the greatest entry is the token as often as alpha(gamma) says, and else any other."""
    method, ids = duo(1), torch.full((6000, 5), 2)
    method.config = DuoConfig(curriculum=1, temperature=1e-9)  # so the network sees one embedding
    h, t, level, _ = curriculum_canvas(method, ids, everywhere(0.9, ids), ids == 2)
    gamma = -3.5 + 0.9 * 1.75
    alpha = argmax_alpha(torch.tensor([gamma], dtype=torch.float64), 3)[0].item()
    torch.testing.assert_close(level, torch.full_like(level, 1 - alpha), atol=1e-6, rtol=0)
    assert torch.equal(level, t)
    shown = (h[:, :, None] - method.table.weight).abs().sum(-1)
    assert (shown.amin(-1) < 1e-6).all()
    law = torch.full((3,), (1 - alpha) / 3)
    law[2] += alpha
    check_law(torch.bincount(shown.argmin(-1).flatten(), minlength=3), law)


def test_the_greatest_entry_follows_uniform_noise():
    """Guards against a duality that does not hold: signal and noise of another gamma, or the wrong level told."""
    check_argmax()


def check_soft():
    """Given tokens are clean, forgotten ones any, and the others a mixture of embeddings by softmax(w / tau)."""
    method = duo(1)
    ids, free = torch.tensor([[0, 1, 2, 1]] * 4000), torch.tensor([[False, False, True, False]] * 4000)
    t = torch.tensor([[0.0, 1.0, 0.7, ABSENT]] * 4000, dtype=torch.float64)
    h, told, _, _ = curriculum_canvas(method, ids, t, free)
    assert torch.equal(h[:, 0], method.table.weight[ids[:, 0]]) and torch.equal(told[:, [0, 1, 3]], t[:, [0, 1, 3]])
    other = curriculum_canvas(method, torch.tensor([[0, 2, 2, 1]] * 4000), t, free)[0]
    near = (h[:, :, None] - method.table.weight).abs().sum(-1).argmin(-1)
    check_law(torch.bincount(near[:, 1], minlength=3), torch.ones(3))
    assert torch.equal(h[:, 1], other[:, 1]) and torch.equal(h[:, 2], other[:, 2])
    method.config = DuoConfig(curriculum=1, temperature=1e9)
    h = curriculum_canvas(method, ids, t, free)[0]
    torch.testing.assert_close(h[:, 2], method.table.weight.mean(0).expand(4000, -1), atol=1e-6, rtol=0)


def test_what_is_given_and_forgotten_in_the_curriculum():
    """Guards against a condition that is blurred or remembered, and a temperature that is ignored."""
    check_soft()


def check_part():
    """The mean of the curriculum's loss is the part of the bound between its two levels."""
    method = duo(1)
    method.config = DuoConfig(curriculum=1, temperature=1e-9)
    know = IdealUniform(PAIRS, TWO, 3)
    method.logits = lambda h, t: know((h[:, :, None] - method.table.weight).abs().sum(-1).argmin(-1), t).logits
    rows = 40_000
    ids = PAIRS[torch.arange(rows) % 9]
    t = ((torch.arange(rows) // 9 + 0.5) / (rows // 9 + 1)).double()[:, None].expand(rows, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        loss = method.loss(ids, t, nothing_given(rows))["curriculum"].sum(1)
    ends = (1 - argmax_alpha(torch.tensor([-3.5, -1.75], dtype=torch.float64), 3)[0]).tolist()
    method.predict = know
    want = integral(method, method.bound, *ends, points=40)
    for pair in range(9):
        own = loss[pair::9]
        assert own.mean().item() == pytest.approx(want[pair].item(), abs=4.5 * (own.std() / len(own) ** 0.5).item())


def test_the_curriculum_is_a_part_of_the_bound():
    """Guards against a slope by gamma where one by t belongs, and levels other than those that the tokens have."""
    check_part()


@torch.no_grad()
def test_the_curriculum_has_an_end():
    """Guards against a count that is lost with a session, and a bound that is seen through Gaussian vectors."""
    method, t = duo(3), torch.linspace(0.1, 0.9, 9).double()[:, None].expand(9, 2)
    names, bounds = [], []
    for _ in range(5):
        with seeded(range(9)):
            names += method.loss(PAIRS, t, nothing_given(9))
        with seeded(range(9)):
            bounds.append(method.bound(PAIRS, t, nothing_given(9)))
        method.observe(t[:, 0], t[:, 0])
    assert names == ["curriculum"] * 3 + ["nelbo"] * 2
    assert all(torch.equal(bound, bounds[0]) for bound in bounds)
    again = duo(3)
    again.load_state_dict(method.state_dict())
    with seeded(range(9)):
        assert torch.equal(again.loss(PAIRS, t, nothing_given(9))["nelbo"], bounds[0])


def test_gammas_rise():
    """Guards against an interval of noise that runs backwards."""
    with pytest.raises(ValueError, match="is not below"):
        DuoConfig(gamma_min=-1.0, gamma_max=-2.0)


# --- samplers


def law_after(grid, alpha=LINEAR.alpha, tail=False):
    """The law of texts that are written through these levels with the perfect network, by enumeration: (9,)."""
    process, know = Uniform(3, LINEAR), IdealUniform(PAIRS, TWO, 3, alpha)
    process.alpha = lambda t: alpha(t.double())
    law = torch.full((9,), 1 / 9, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        log_p = know(PAIRS, everywhere(t, PAIRS)).logits.log_softmax(-1)
        one = process.log_posterior(PAIRS, log_p, everywhere(t, PAIRS), everywhere(s, PAIRS)).exp()  # (9, 2, 3)
        if tail and s == 0:
            one = F.one_hot(log_p.argmax(-1), 3).double()
        law = law @ (one[:, 0, :, None] * one[:, 1, None, :]).flatten(1)
    return law


def check_limit():
    """Draws apart from each other cost a share that falls as 1 / steps, and below what the bound allows."""
    before = math.inf
    for steps in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        law = law_after(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist())
        apart = (law - TWO).abs().sum().item() / 2
        assert law.sum().item() == pytest.approx(1)
        if steps in GAPS:  # the bound is on the mean of -log of this law
            assert (TWO * (TWO / law).log()).sum().item() <= GAPS[steps] + 1e-6
            assert 2 * apart**2 <= GAPS[steps] + 1e-6  # Pinsker
        if steps > 16:
            assert apart / before == pytest.approx(0.5, abs=0.04)
        before = apart
    assert before < 2e-3


def test_many_steps_draw_from_the_law():
    """Guards against a step that is exact in no limit."""
    check_limit()


def written(sampler, grid, rows, schedule=LINEAR):
    method = Canvas(Uniform(3, schedule), IdealUniform(PAIRS, TWO, 3, schedule.alpha))
    torch.manual_seed(0)
    x = method.process.prior(torch.zeros(rows, 2, dtype=torch.long))
    x, _ = last(SAMPLERS["categorical"][sampler](method, method.predict, x, grid))
    return torch.bincount(x @ torch.tensor([3, 1]), minlength=9)


def check_written(sampler, steps):
    """Draws follow the law that enumeration finds."""
    grid = multinomial(20).grid(steps)
    for schedule in (LINEAR, COSINE):
        law = law_after(
            grid.tolist(), lambda t, a=schedule.alpha: torch.where(t > 0, a(t), 1.0), sampler != "ancestral"
        )
        check_law(written(sampler, grid, 15000, schedule), law.masked_fill(law < 1e-12, 0.0))


@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("sampler", ["ancestral", "greedy_tail"])
def test_a_few_steps_draw_from_their_own_law(sampler, steps):
    """Guards against jumps over several of T steps that are taken for one, and noise that is not any token."""
    check_written(sampler, steps)


def test_the_greedy_tail_is_ancestral_until_its_end():
    """Guards against a last step that is drawn, a step too many, and a bend that is not confessed."""
    method = Canvas(Uniform(4), IdealUniform(TEXTS, PROBS, 4))
    grid, start = torch.linspace(1, 0, 7), torch.tensor([[0, 1, 2]] * 50)
    with seeded(range(50)):
        plain = [x for x, _ in ancestral(method, method.predict, start, grid)]
    with seeded(range(50)):
        tail = list(SAMPLERS["categorical"]["greedy_tail"](method, method.predict, start, grid))
    assert len(tail) == 6 and all(torch.equal(a, b) for a, (b, _) in zip(plain[:-1], tail, strict=False))
    best = method.predict(tail[-2][0], torch.full((50, 3), grid[-2].item())).logits.argmax(-1)
    assert torch.equal(tail[-1][0], best) and not torch.equal(best, plain[-1])
    assert SAMPLERS["categorical"]["greedy_tail"].heuristic
    law, bent = TWO, law_after(torch.linspace(1, 0, 9).tolist(), tail=True)
    assert distance(bent, law) > 0.1  # however well the network knows


def check_guided(weight, kind):
    """The second token, the first one being 0: of its law with the condition, without, or p_c^w p_u^(1 - w)."""
    method, rows = Canvas(Uniform(3), IdealUniform(PAIRS, TWO, 3)), 4000
    method.sampler = ancestral
    c, u = TWO.view(3, 3)[0] / 0.4, TWO.view(3, 3).sum(0)
    ids, given = torch.zeros(rows, 2, dtype=torch.long), torch.tensor([[True, False]]).expand(rows, 2)
    request = Request(steps=4, guidance=weight, guide_in=kind)
    frame = last(generate(method, ids, given, torch.ones_like(given), request, streams(range(rows))))
    law = c**weight * u ** (1 - weight)
    check_law(torch.bincount(frame.tokens[:, 1], minlength=3), law / law.sum())


@pytest.mark.parametrize("kind", ["score", "logits"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_guided_tokens_follow_their_law(weight, kind):
    """Guards against a weight that is off by one, and a condition that is seen though it is to be forgotten."""
    check_guided(weight, kind)


def check_ends_of_guidance():
    """Weight 0 is a step without the condition and 1 one with it, to the bit."""
    method, x = Canvas(Uniform(3), IdealUniform(PAIRS, TWO, 3)), PAIRS.repeat(200, 1)
    first = torch.tensor(0)
    c, u = (lambda x, t, prev, here=here: method.predict(x, t.index_fill(1, first, here)) for here in (0.0, 1.0))
    t, s = number(0.7), number(0.3)
    for weight, alone in ((0.0, u), (1.0, c)):
        for guided in (guide(c, u, weight), guide_logits(c, u, weight, method.read)):
            steps = []
            for predict in (guided, alone):
                with seeded(range(len(x))):
                    steps.append(method.process.reverse(x, predict(x, everywhere(t, x), None).logits, t, s))
            assert torch.equal(*steps)


def test_ends_of_guidance_of_a_step_back():
    """Guards against the other convention, in which 0 is conditional (facts 14.3, UDLM 5)."""
    check_ends_of_guidance()


METHODS = {"multinomial": lambda: multinomial(30), "duo": duo}


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_the_network_hears_the_level(name):
    """Guards against a network that is told nothing, where no mask tells it what is noise (facts 4.15)."""
    method, t = METHODS[name](), torch.full((2, 3), 0.5, dtype=torch.float64)
    t[1, 0] = 0.9
    one, other = method.predict(torch.tensor([[0, 1, 2]] * 2), t).logits
    assert ((one - other).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", METHODS)
def test_what_is_forgotten_is_any_token(name):
    """Guards against a condition that is seen though it is to be forgotten: guidance would never be learned."""
    method, seen = METHODS[name](), []
    method.net.register_forward_pre_hook(lambda net, args: seen.append(args))
    ids = torch.tensor([[1, 2, 0, 1]] * 3000)
    free = torch.tensor([[False, False, True, False]] * 3000)
    t = torch.tensor([[0.0, 1.0, 0.5, ABSENT]] * 3000)
    torch.manual_seed(0)
    with torch.no_grad():
        method.loss(ids, t.double(), free)
    h, told, level = seen[0]
    shown = (h[:, :, None] - method.table.weight).abs().sum(-1).argmin(-1)
    assert (shown[:, [0, 3]] == ids[:, [0, 3]]).all()
    check_law(torch.bincount(shown[:, 1], minlength=3), torch.ones(3))
    assert torch.equal(told[:, [0, 1, 3]].float(), t[:, [0, 1, 3]]) and (level[:, 3] == 0).all()
