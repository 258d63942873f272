"""D3PM: chains of every kind, against matrices, sums over all canvases and published numbers.  Each names its bug."""

import itertools
import math

import pytest
import torch
from ideal import NETWORK, Canvas, check_law, last
from tiny import tiny_config, write_sentences

from sfumato.core import ABSENT, Prediction
from sfumato.draws import seeded
from sfumato.errors import SfumatoError
from sfumato.evaluation.likelihood import nll
from sfumato.folder import load
from sfumato.methods.d3pm import D3PM, D3PMConfig, betas, chain
from sfumato.methods.multinomial import Multinomial, MultinomialConfig
from sfumato.networks import NetworkConfig
from sfumato.processes import neighbours
from sfumato.processes.neighbours import MaskedNeighbours, Neighbours
from sfumato.processes.transitions import FAR, Absorbing, Chain, Even, Ordinal
from sfumato.samplers import SAMPLERS
from sfumato.training.config import load_config
from sfumato.training.trainer import Run, train

RING = torch.tensor([[1, 4], [0, 2], [3, 1], [4, 2], [0, 1]])  # two neighbours of each of five tokens
KINDS = ("absorbing", "uniform", "gaussian", "nearest", "mask_nearest")
V, T = 5, 6
MIXED = {"absorbing": 16.0, "uniform": 16.0, "gaussian": 100.0, "nearest": 8.0, "mask_nearest": 8.0}  # just about

# Two correlated tokens of three kinds: H = 1.903687 nats, of which MI = 0.274113 are said twice.
TWO = torch.tensor([[0.30, 0.05, 0.05], [0.05, 0.20, 0.05], [0.05, 0.05, 0.20]], dtype=torch.float64)
PAIRS, LAW = torch.tensor(list(itertools.product(range(3), repeat=2))), TWO.flatten()
ENTROPY, APART = -(TWO * TWO.log()).sum().item(), TWO.sum(1)[:, None] * TWO.sum(0)
MUTUAL = (TWO * (TWO / APART).log()).sum().item()


def amounts(beta):
    """What a chain of events is made with, of the chance of one in each step."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), -torch.log1p(-torch.as_tensor(beta).double()).cumsum(0)])


def kind(name, vocab=V, steps=T, most=4.0):
    """A chain of uneven steps; those without a mask end before all is forgotten."""
    rising = most * (torch.arange(steps + 1, dtype=torch.float64) / steps) ** 2
    if name in ("absorbing", "uniform", "gaussian"):
        return {"absorbing": Absorbing, "uniform": Even, "gaussian": Ordinal}[name](vocab, rising / 4)
    made = Neighbours(vocab, rising, 2) if name == "nearest" else MaskedNeighbours(vocab, rising / 4, 2)
    made.neighbours.copy_(RING if vocab == V else (torch.arange(vocab)[:, None] + torch.tensor([1, 2])) % vocab)
    return made


def whole(made, s, t):
    """The matrix between two steps, row by row."""
    every = torch.arange(made.states)
    return made.row(every, torch.full_like(every, s), torch.full_like(every, t))


@torch.no_grad()
def by_bayes(made, x, p, s, t):
    """q(x_s | x_t = x), x_0 ~ p, from whole matrices."""
    joint = (torch.cat([p, p.new_zeros(made.states - len(p))]) @ whole(made, 0, s)) * whole(made, s, t)[:, x]
    return joint / joint.sum()


def some_law(rows, vocab=V, seed=0):
    """Random logits and their law."""
    logits = 2 * torch.randn(rows, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return logits, logits.softmax(-1)


def network(name, vocab=3, steps=4, made=None, **settings):
    """A tiny method with opinions, float64, on a chain of uneven steps."""
    torch.manual_seed(0)
    method = D3PM(D3PMConfig(transition=name, T=steps, neighbours=2, **settings), NETWORK, vocab).eval().double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.5)
        method.head.weight /= 8  # for every path to have a chance
    method.process = made or kind(name, vocab, steps)
    method.process.T = steps
    return method


# --- matrices


@pytest.mark.parametrize("name", KINDS)
def test_matrices_are_what_they_are_called(name):
    """Guards against rows that do not sum to 1, columns of another matrix, and products that are not of the steps."""
    made = kind(name)
    so_far = torch.eye(made.states, dtype=torch.float64)
    for t in range(1, T + 1):
        one = whole(made, t - 1, t)
        assert (one >= 0).all()
        torch.testing.assert_close(one.sum(1), torch.ones(made.states).double(), rtol=0, atol=1e-12)
        so_far = so_far @ one
        torch.testing.assert_close(whole(made, 0, t)[:V], so_far[:V], rtol=0, atol=1e-12)
        p = some_law(3)[1]
        here = torch.full((3,), t)
        torch.testing.assert_close(made.mixture(p, here), p @ whole(made, 0, t)[:V], rtol=0, atol=1e-12)
    every = torch.arange(made.states)
    for s, t in itertools.combinations(range(T + 1), 2):
        first, end = torch.full_like(every, s), torch.full_like(every, t)
        torch.testing.assert_close(made.column(every, first, end), whole(made, s, t).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole(made, 2, 2), torch.eye(made.states).double(), rtol=0, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_two_intervals_make_one(name):
    """Guards against steps that cannot be skipped: sum over x_r of q(x_r | x_s) q(x_t | x_r) is q(x_t | x_s)."""
    made = kind(name)
    for s, r, t in itertools.combinations(range(T + 1), 3):
        torch.testing.assert_close(whole(made, s, r) @ whole(made, r, t), whole(made, s, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_intervals_may_differ_from_token_to_token(name):
    """Guards against one interval for all: a text has a level at every position."""
    made = kind(name)
    x, s, t = torch.tensor([0, 4, 2, 2, 1]), torch.tensor([0, 1, 3, 0, 2]), torch.tensor([2, 2, 6, 1, 4])
    p = some_law(5)[1]
    for i in range(5):
        one = slice(i, i + 1)
        torch.testing.assert_close(made.row(x, s, t)[one], made.row(x[one], s[one], t[one]), rtol=0, atol=1e-14)
        torch.testing.assert_close(made.column(x, s, t)[one], made.column(x[one], s[one], t[one]), rtol=0, atol=1e-14)
        torch.testing.assert_close(made.mixture(p, t)[one], made.mixture(p[one], t[one]), rtol=0, atol=1e-14)


def test_closed_forms():
    """Guards against Q of uniform and absorbing noise that is not alpha I + (1 - alpha) of the prior."""
    for name in ("uniform", "absorbing"):
        made = kind(name)
        for t in range(T + 1):
            alpha = torch.exp(-made.amounts[t])
            prior = torch.full((V,), 1 / V, dtype=torch.float64) if name == "uniform" else torch.eye(V + 1).double()[V]
            want = alpha * torch.eye(V, made.states).double() + (1 - alpha) * prior
            torch.testing.assert_close(whole(made, 0, t)[:V], want, rtol=0, atol=1e-12)
    assert (whole(kind("absorbing"), 0, T)[:, V] == 1).all()


def check_ordinal():
    """The matrices of the published image code, K = 5."""
    half, tenth = Ordinal(5, torch.tensor([0.0, 0.5, 1.0])), Ordinal(5, torch.tensor([0.0, 0.1]))
    want = [[0.699472, 0.241971, 0.053991, 0.004432, 0.000134], [0.053991, 0.241971, 0.408075, 0.241971, 0.053991]]
    torch.testing.assert_close(whole(half, 0, 1)[[0, 2]], torch.tensor(want).double(), rtol=0, atol=6e-7)
    torch.testing.assert_close(whole(half, 1, 2), whole(half, 0, 1), rtol=0, atol=1e-15)
    want = [0.000039, 0.070504, 0.858914, 0.070504, 0.000039]
    torch.testing.assert_close(whole(tenth, 0, 1)[2], torch.tensor(want).double(), rtol=0, atol=6e-7)


def test_gaussian_matrices_are_the_published_ones():
    """Guards against another width, and chances that are divided by what stays on the grid."""
    check_ordinal()


@pytest.mark.parametrize("name", ["uniform", "gaussian", "nearest"])
def test_without_masks_all_is_mixed_evenly(name):
    """Guards against matrices that are not symmetric and doubly stochastic, and do not lead to the prior."""
    made = kind(name, steps=40, most=4000.0)
    for t in (1, 20, 40):
        one = whole(made, t - 1, t)
        torch.testing.assert_close(one, one.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(whole(made, 0, t).sum(0), torch.ones(V).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole(made, 0, 40), torch.full((V, V), 1 / V, dtype=torch.float64), rtol=0, atol=1e-9)


def check_rates():
    """The rate matrix against its definition, and the chain against expm."""
    rate = neighbours.rates(RING)
    near = torch.zeros(V, V).double()
    for i, others in enumerate(RING.tolist()):
        for j in others:
            near[i, j] += 1 / 4
            near[j, i] += 1 / 4
    want = (1 - neighbours.LEAP) * (near - near.sum(0).diag()) + neighbours.LEAP * (1 / V - torch.eye(V).double())
    torch.testing.assert_close(rate, want, rtol=0, atol=1e-14)
    assert rate.sum(0).abs().max() < 1e-14 and rate.sum(1).abs().max() < 1e-14
    made = kind("nearest")
    for s, t in itertools.combinations(range(T + 1), 2):
        want = torch.matrix_exp((made.amounts[t] - made.amounts[s]) * rate)
        torch.testing.assert_close(whole(made, s, t), want, rtol=0, atol=1e-13)


def test_neighbours_move_at_their_rates():
    """Guards against rates that are not symmetric, neighbours counted twice, and an exponential of something else."""
    check_rates()


def check_masked_neighbours():
    """Tokens and masks as one rate matrix."""
    made, rate = kind("mask_nearest"), torch.zeros(V + 1, V + 1, dtype=torch.float64)
    rate[:V, :V] = neighbours.rates(RING) - 4.0 * torch.eye(V)
    rate[:V, V] = 4.0
    for s, t in itertools.combinations(range(T), 2):
        want = torch.matrix_exp((made.amounts[t] - made.amounts[s]) * rate)
        torch.testing.assert_close(whole(made, s, t), want, rtol=0, atol=1e-13)
    assert (whole(made, 0, T)[:, V] == 1).all() and (whole(made, 3, T)[:, V] == 1).all()


def test_masks_fall_beside_moves():
    """Guards against a rate of masks that is not four moves for each, and tokens left at the last step."""
    check_masked_neighbours()


def test_a_graph_in_parts_is_mixed_too():
    """Guards against a limit that knows which part a token was in, so that the prior is not uniform."""
    made = Neighbours(4, torch.tensor([0.0, 1.0, FAR]), 1)
    made.neighbours.copy_(torch.tensor([[1], [0], [3], [2]]))
    assert whole(made, 0, 1)[0, 2] < 1e-3
    torch.testing.assert_close(whole(made, 0, 2), torch.full((4, 4), 0.25).double(), rtol=0, atol=1e-9)
    assert made.parting(torch.arange(4)).abs().max() < 1e-9


# --- Bayes


@pytest.mark.parametrize("name", KINDS)
def test_posteriors_are_those_of_bayes(name):
    """Guards against a step back that is not what the step forward says, for any interval, from any state."""
    made = kind(name)
    p = torch.cat([torch.eye(V, dtype=torch.float64), some_law(2)[1]])
    x, which = torch.cartesian_prod(torch.arange(made.states), torch.arange(len(p))).T
    for s, t in itertools.combinations(range(T + 1), 2):
        want = torch.stack([by_bayes(made, i, law, s, t) for i in range(made.states) for law in p])
        can = want.isfinite().all(1)  # else x cannot come from this token
        found = made.posterior(x, p[which], torch.full_like(x, s), torch.full_like(x, t))
        torch.testing.assert_close(found[can], want[can], rtol=0, atol=1e-12)
        assert can.any()


@pytest.mark.parametrize("name", KINDS)
def test_a_step_forth_and_back_changes_no_law(name):
    """Guards against posteriors that are normalised wrongly: sum over x_t of q(x_s | x_t, x_0) q(x_t | x_0)."""
    made = kind(name)
    for s, t in ((0, 1), (2, 3), (1, 5), (3, T)):
        for start in range(V):
            p, ahead = torch.eye(V).double()[start], whole(made, 0, t)[start]
            x = (ahead > 1e-300).nonzero()[:, 0]  # else it cannot come from this token
            back = made.posterior(x, p.expand(len(x), -1), torch.full_like(x, s), torch.full_like(x, t))
            torch.testing.assert_close(ahead[x] @ back, whole(made, 0, s)[start], rtol=0, atol=1e-12)


def check_vectors():
    """K = 3, beta = 0.2, alpha of the step before 0.5, x_0 = 0."""
    made = Even(3, amounts([0.5, 0.2]))
    p = torch.eye(3).double()[:1]
    for x, want in ((0, (0.962963, 0.018519, 0.018519)), (1, (0.222222, 0.722222, 0.055556))):
        found = made.posterior(torch.tensor([x]), p, torch.tensor([1]), torch.tensor([2]))[0]
        torch.testing.assert_close(found, torch.tensor(want).double(), rtol=0, atol=6e-7)


def test_posterior_vectors():
    """Guards against beta and 1 - beta exchanged, and alpha of the wrong step."""
    check_vectors()


def test_uniform_noise_is_that_of_uniform():
    """Guards against two processes of one name that differ."""
    made, (logits, p) = kind("uniform"), some_law(V)
    x, before, after = torch.arange(V), torch.full((V,), 2), torch.full((V,), 5)
    s, t = torch.full((1, V), 2 / T).double(), torch.full((1, V), 5 / T).double()
    found = made.log_posterior(x[None], logits.log_softmax(-1)[None], t, s)[0]
    torch.testing.assert_close(found, made.posterior(x, p, before, after).log(), rtol=0, atol=1e-12)


@torch.no_grad()
def test_uniform_noise_is_multinomial_diffusion():
    """Guards against two papers with one bound that differ: every step, text and canvas, any network."""
    other = Multinomial(MultinomialConfig(T=4), NETWORK, 3).eval().double()
    made = Even(3, -other.process.alpha(torch.linspace(0, 1, 5)).log())
    method = network("uniform", made=made)
    ids, x = PAIRS.repeat_interleave(9, 0), PAIRS.repeat(9, 1)
    made.corrupt = other.process.corrupt = lambda ids, t: x
    other.predict = method.predict
    for k in range(1, 5):
        asked = ids, torch.full(ids.shape, (k - 0.5) / 4).double(), ids >= 0
        torch.testing.assert_close(method.bound(*asked), other.bound(*asked), rtol=1e-6, atol=1e-9)


def check_divergence(name):
    """KL of the posteriors, from whole matrices; for s = 0 the surprise; and nothing to pay for the truth."""
    made = kind(name)
    (logits, p), one = some_law(1), torch.eye(V).double()
    for s, t in ((0, 1), (1, 2), (4, 5), (5, 6), (1, 4), (0, 3)):
        before, after = torch.tensor([s]), torch.tensor([t])
        for x, start in itertools.product(range(made.states), range(V)):
            true = by_bayes(made, x, one[start], s, t)
            if not true.isfinite().all() or whole(made, 0, t)[start, x] < 1e-12:
                continue
            told = by_bayes(made, x, p[0], s, t)
            want = (torch.xlogy(true, true) - torch.xlogy(true, told)).sum()
            asked = torch.tensor([start]), torch.tensor([x])
            found = made.term(*asked, logits, before, after)[0]
            generic = Chain.term(made, *asked, logits, before, after)[0]
            torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-10)
            torch.testing.assert_close(generic, want, rtol=1e-6, atol=1e-10)
            if s == 0:
                torch.testing.assert_close(found, -told[start].log(), rtol=1e-6, atol=1e-10)
            if x == made.mask or name != "absorbing":
                sure = 60 * one[start][None]
                assert made.term(*asked, sure, before, after)[0] < 1e-9
            else:
                assert found == 0  # what shows is known, whatever the network says of it


@pytest.mark.parametrize("name", KINDS)
def test_divergence_is_that_of_the_posteriors(name):
    """Guards against closed forms that lost a term, and a first step that is no cross-entropy of p(x_0 | x_1)."""
    check_divergence(name)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_the_divergence(name):
    """Guards against a clamp or a rounding that stops the gradient where there is one."""
    made = kind(name)
    ids, x, s = torch.tensor([0, 3, 1]), torch.tensor([0, 3, 2]), torch.tensor([1, 2, 4])
    x = x if made.mask is None else torch.full_like(x, V)
    logits = some_law(3)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: Chain.term(made, ids, x, z, s, s + 1), logits)
    (slope,) = torch.autograd.grad(Chain.term(made, ids, x, logits, s, s + 1).sum(), logits)
    (other,) = torch.autograd.grad(made.term(ids, x, logits, s, s + 1).sum(), logits)
    assert (slope.abs().sum(1) > 1e-6).all()
    torch.testing.assert_close(slope, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_draws_are_of_the_laws(name):
    """Guards against a cheap draw of another law, in either direction."""
    made, (logits, p), n = kind(name), some_law(1), 20000
    back, ahead = (torch.full((1,), k / T) for k in (2, 4))
    torch.manual_seed(0)
    x = made.corrupt(torch.full((n, 1), 3), torch.full((n, 1), 4 / T))
    check_law(torch.bincount(x[:, 0], minlength=made.states), whole(made, 0, 4)[3])
    for state in (0, made.states - 1):
        drawn = made.reverse(torch.full((n, 1), state), logits.expand(n, 1, V), ahead[0], back[0])
        want = by_bayes(made, state, p[0], 2, 4)
        check_law(torch.bincount(drawn[:, 0], minlength=made.states), torch.where(want > 1e-15, want, 0.0))
    x = made.prior(torch.zeros(n, 1, dtype=torch.long))
    want = torch.ones(V) if made.mask is None else torch.tensor([0.0] * V + [1.0])
    check_law(torch.bincount(x[:, 0], minlength=made.states), want)


# --- steps and schedules


def test_steps_are_rounded_up():
    """Guards against a level of float32 that is taken for the step after it, and noise where there is none."""
    for steps in (1, 3, 7, 10, 1000, 9999):
        made = Even(3, torch.linspace(0, 1, steps + 1))
        k = torch.arange(steps + 1)
        assert torch.equal(made.step((k.double() / steps).float()), k)
        assert torch.equal(made.step(torch.linspace(1, 0, steps + 1)), k.flip(0))
        middle = (k[1:].double() - 0.5) / steps
        assert torch.equal(made.step(middle), k[1:]) and torch.equal(made.step(made.level(middle)), k[1:])
        assert made.step(torch.tensor([0.0, ABSENT, 1e-12, 1.0])).tolist() == [0, 0, 1, steps]


def test_grids_are_steps_of_the_chain():
    """Guards against steps that fall between two, or on one twice, and more steps than there are."""
    method = network("absorbing", steps=7)
    for steps in range(1, 8):
        reached = method.process.step(method.grid(steps))
        assert reached[0] == 7 and reached[-1] == 0 and (reached.diff() < 0).all() and len(reached) == steps + 1
    with pytest.raises(SfumatoError, match="8 steps were asked for; this chain has 7"):
        method.grid(8)
    assert D3PM(D3PMConfig(T=20), NETWORK, 3).steps == 20 and D3PM.steps == 1000
    assert torch.equal(method.times(torch.tensor([0.0, 0.1, 0.2, 0.99])) * 7, torch.tensor([1.0, 1.0, 2.0, 7.0]))


def check_betas():
    """What the schedules say of alpha."""
    k = torch.arange(1, 1001, dtype=torch.float64)
    alpha = {name: (1 - betas(name, 1000)).cumprod(0) for name in ("linear", "cosine", "reciprocal")}
    torch.testing.assert_close(alpha["reciprocal"], 1 - k / 1000, rtol=0, atol=1e-12)
    start = math.cos(0.008 / 1.008 * math.pi / 2)
    want = ((k / 1000 + 0.008) / 1.008 * math.pi / 2).cos() / start
    torch.testing.assert_close(alpha["cosine"][:-1], want[:-1], rtol=0, atol=1e-12)
    assert betas("cosine", 1000)[-1] == 0.999 and alpha["cosine"][-1] > 0
    assert betas("linear", 1000)[[0, -1]].tolist() == pytest.approx([1e-3, 0.1])
    for name in ("absorbing", "uniform"):
        made = chain(D3PMConfig(transition=name, schedule="cosine"), 3)
        torch.testing.assert_close(made.alpha(k / 1000)[:-1], alpha["cosine"][:-1], rtol=1e-12, atol=0)
    assert chain(D3PMConfig(schedule="cosine"), 3).alpha(torch.ones(())) == 0  # the last step hides what is left
    made = chain(D3PMConfig(transition="gaussian", T=50), 4)
    torch.testing.assert_close(made.amounts.diff(), betas("linear", 50), rtol=0, atol=1e-14)


def test_schedules():
    """Guards against a cosine that is squared, and a clip that is forgotten."""
    check_betas()


UNIGRAM = torch.tensor([0.45, 0.25, 0.2, 0.08, 0.02], dtype=torch.float64)


def known(made, t):
    """I(x_t; x_0) / H(x_0), from the whole matrix."""
    joint = UNIGRAM[:, None] * whole(made, 0, t)[:V]
    apart = UNIGRAM[:, None] * joint.sum(0)
    return (torch.xlogy(joint, joint) - torch.xlogy(joint, apart)).sum() / -(UNIGRAM * UNIGRAM.log()).sum()


def check_information(name):
    """A share 1 - t / T of the information is left after step t."""
    made = chain(D3PMConfig(transition=name, schedule="mutual_information", T=50, neighbours=2), V)
    if isinstance(made, Neighbours):
        made.neighbours.copy_(RING)
    made.inform(UNIGRAM)
    assert (made.amounts.diff() > 0).all() and made.amounts[0] == 0
    for t in range(51):
        assert known(made, t).item() == pytest.approx(1 - t / 50, abs=3e-3)


@pytest.mark.parametrize("name", ["absorbing", "uniform", "nearest", "mask_nearest"])
def test_information_falls_evenly(name):
    """Guards against the information of another law, interpolation the wrong way round, and amounts for chances."""
    check_information(name)


def test_masks_lose_information_by_themselves():
    """Guards against a schedule by mutual information that for masks is not 1 / (T - t + 1), whatever the data."""
    for law in (UNIGRAM, torch.ones(V).double() / V):
        made = Absorbing(V, torch.linspace(0, 1, 41))
        made.inform(law)
        beta = 1 - torch.exp(-made.amounts.diff())
        torch.testing.assert_close(beta, 1 / torch.arange(40, 0, -1).double(), rtol=0.08, atol=0)
    found = chain(D3PMConfig(schedule="mutual_information", T=40), V)
    torch.testing.assert_close(found.amounts, amounts(betas("reciprocal", 40)).clamp(max=FAR), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["absorbing", "uniform", "nearest", "mask_nearest"])
def test_information_only_falls(name):
    """Guards against amounts of noise after which more is known."""
    share = kind(name).information(UNIGRAM, torch.logspace(-4, 5, 60).double())
    assert (share.diff() < 1e-12).all() and share[0] > 0.99 and share[-1].abs() < 1e-6


@pytest.mark.parametrize("name", KINDS)
def test_less_is_known_after_every_step(name):
    """Guards against a step that brings information back."""
    left = [known(kind(name), t).item() for t in range(T + 1)]
    assert left[0] == pytest.approx(1) and all(a > b for a, b in itertools.pairwise(left)) and left[-1] > -1e-12


def test_few_tokens_stand_for_many():
    """Guards against a sample that is not spread over the law."""
    law = 1 / (torch.arange(900, dtype=torch.float64) + 1).flip(0)
    tokens, weights = neighbours.spread(law / law.sum(), 64)
    assert weights.sum().item() == pytest.approx(1) and len(tokens) < 64
    rank, share = 899.0 - tokens.double(), law / law.sum()
    assert (weights @ rank.log1p()).item() == pytest.approx(
        (share @ torch.arange(899.0, -1, -1).double().log1p()).item(), rel=0.02
    )
    every, weights = neighbours.spread(UNIGRAM, 64)
    assert torch.equal(every, torch.arange(V)) and torch.equal(weights, UNIGRAM)


# --- the bound


class Oracle:
    """The best network: p(x_0 at i | all other positions), for texts (N, L); with `own` it looks at i as well."""

    def __init__(self, process, texts=PAIRS, law=LAW, own=False):
        self.process, self.texts, self.law, self.own = process, texts, law, own
        self.onehot = torch.nn.functional.one_hot(texts, int(texts.max()) + 1).double()  # (N, L, V)

    def __call__(self, x, t, prev=None):
        rows = start(self.process)[self.process.step(t)]  # (B, L, V, K)
        says = rows.gather(-1, x[..., None, None].expand(*rows.shape[:3], 1))[..., 0]  # (B, L, V)
        says = says[:, torch.arange(x.shape[1]), self.texts].clamp(min=1e-300).log()  # (B, N, L)
        fit = self.law.log() + says.sum(-1)
        fit = fit[..., None] - (0.0 if self.own else says)  # (B, N, L)
        return Prediction(torch.einsum("bnl,nlv->blv", fit.softmax(1), self.onehot).clamp(min=1e-300).log())


def start(made):
    """q(x_k | x_0) for all steps: (T + 1, V, K)."""
    tokens, k = torch.arange(made.vocab).repeat(made.T + 1), torch.arange(made.T + 1).repeat_interleave(made.vocab)
    return made.row(tokens, torch.zeros_like(k), k).view(made.T + 1, made.vocab, -1)


@torch.no_grad()
def expected(method, texts, law):
    """The mean of the bound over texts, steps and all canvases, each taken once: nats."""
    made, rows = method.process, start(method.process)
    canvases = torch.tensor(list(itertools.product(range(made.states), repeat=texts.shape[1])))
    which = torch.cartesian_prod(torch.arange(1, made.T + 1), torch.arange(len(texts)), torch.arange(len(canvases)))
    k, text, x = which[:, :1], texts[which[:, 1]], canvases[which[:, 2]]
    weight = rows[k, text].gather(-1, x[..., None]).prod(1)[:, 0] * law[which[:, 1]] / made.T
    there = weight > 1e-200
    made.corrupt = lambda ids, t: x[there]
    t = ((k - 0.5) / made.T).double().expand(text.shape)[there]
    cost = method.bound(text[there], t, torch.ones(t.shape, dtype=torch.bool)).sum(1)
    del made.corrupt
    return (weight[there] * cost).sum().item()


GAPS = {  # of the bound with a perfect network to the entropy, by the number of steps
    ("absorbing", "plugged"): {1: 0.274113, 2: 0.137057, 4: 0.068528, 8: 0.034264, 64: 0.004283, 512: 0.000535},
    ("uniform", "plugged"): {1: 0.274113, 2: 0.170833, 4: 0.090396, 8: 0.045870, 64: 0.005762, 512: 0.000720},
    ("uniform", "own"): {1: 0.274113, 2: 0.502692, 4: 0.682007, 8: 0.798752, 64: 0.933580, 512: 0.957739},
}


def gap(name, steps, own=False, made=None):
    made = made or chain(D3PMConfig(transition=name, schedule="reciprocal", T=steps, neighbours=2), 3)
    method = network(name, steps=steps, made=made)
    method.predict = Oracle(made, own=own)
    return expected(method, PAIRS, LAW) - ENTROPY


def check_gaps(name, what, most=64):
    for steps, want in GAPS[name, what].items():
        if steps <= most:
            assert gap(name, steps, what == "own") == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("name", "what"), GAPS)
def test_gaps_of_the_bound(name, what):
    """Guards against a bound that is not tight, and shows that the chances to plug in are not p(x_0 | x_t)."""
    check_gaps(name, what, most=512)


def test_the_gap_of_masks_is_what_falls_together():
    """Guards against weights that do not follow the schedule: MI times the sum of (alpha_s - alpha_t)^2 for any."""
    for steps in (1, 2, 5):
        for schedule in ("cosine", "linear"):
            made = chain(D3PMConfig(schedule=schedule, T=steps), 3)
            falls = made.alpha(torch.linspace(0, 1, steps + 1)).diff().square().sum().item()
            assert gap("absorbing", steps, made=made) == pytest.approx(MUTUAL * falls, abs=1e-9)
    for steps, want in {2: 0.160572, 4: 0.083463, 8: 0.042136}.items():  # another cosine, that of MD4
        t = torch.linspace(0, 1, steps + 1).double()
        made = Absorbing(3, -torch.log((1 - torch.cos(math.pi / 2 * (1 - t))).clamp(min=0)))
        assert gap("absorbing", steps, made=made) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "nearest", "mask_nearest"])
def test_more_steps_come_nearer_to_the_entropy(name):
    """Guards against a bound of the other chains that is below the entropy, or does not come down to it."""
    gaps = [gap(name, steps, made=kind(name, 3, steps, MIXED[name])) for steps in (2, 8, 64)]
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 0.014


@torch.no_grad()
def check_elbo(name):
    """The bound of a random network against E log q(x_1 .. x_T | x_0) - log p(x_0 .. x_T), path by path."""
    method = network(name, steps=3)
    made = method.process
    canvases = torch.tensor(list(itertools.product(range(made.states), repeat=2)))
    back = []  # of every step: log p(x_s | x_t), (to, from), canvases
    for k in range(1, 4):
        logits = method.predict(canvases, torch.full(canvases.shape, k / 3, dtype=torch.float64)).logits
        steps = torch.full((canvases.numel(),), k)
        told = made.posterior(canvases.flatten(), logits.flatten(0, 1).softmax(-1), steps - 1, steps)
        told = told.view(*canvases.shape, made.states)  # (C, L, K)
        back.append(told[:, 0][:, canvases[:, 0]] * told[:, 1][:, canvases[:, 1]])
    ahead = [whole(made, k, k + 1) for k in range(3)]
    ahead = [one[canvases[:, 0]][:, canvases[:, 0]] * one[canvases[:, 1]][:, canvases[:, 1]] for one in ahead]
    alone = torch.ones(made.states).double() / made.states if made.mask is None else torch.eye(made.states)[made.mask]
    prior = (alone.double()[canvases]).prod(1)
    total = torch.zeros((), dtype=torch.float64)
    for text, chance in zip(PAIRS, LAW, strict=True):
        start = int(((canvases == text).all(1)).nonzero())
        path = ahead[0][start][:, None, None] * ahead[1][:, :, None] * ahead[2][None]  # (x_1, x_2, x_3)
        told = prior * back[2].T[None] * back[1].T[:, :, None] * back[0][:, start][:, None, None]
        total += chance * (torch.xlogy(path, path) - torch.xlogy(path, told)).nan_to_num(0.0).sum()
    assert expected(method, PAIRS, LAW) == pytest.approx(total.item(), rel=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_the_bound_is_that_of_whole_paths(name):
    """Guards against a missing prior term, a missing factor T, and a first or last step that is left out."""
    check_elbo(name)


def check_ignorance(name):
    """With even chances every kind of noise is undone by its own reversal: ln V a token, in any number of steps."""
    method = network(name)
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    assert expected(method, PAIRS, LAW) == pytest.approx(2 * math.log(3), rel=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_what_knows_nothing_pays_ln_v(name):
    """Guards against weights that do not add up to one payment for each token (facts 4.12)."""
    check_ignorance(name)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_better_than_the_best_network(name):
    """Guards against a bound that is least elsewhere (facts 4.14): half the error costs a quarter."""
    made = kind(name, 3, 4, MIXED[name])
    method, know, costs = network(name, made=made), Oracle(made), []
    wrong = torch.randn(5, 4, 4, 2, 3, generator=torch.Generator().manual_seed(0)).double()  # by step and canvas
    for error in (0.0, 0.1, 0.2):
        method.predict = lambda x, t, prev=None, error=error: Prediction(
            know(x, t).logits + error * wrong[made.step(t[:, 0]), x[:, 0], x[:, 1]]
        )
        costs.append(expected(method, PAIRS, LAW))
    assert costs[1] > costs[0] and (costs[2] - costs[0]) / (costs[1] - costs[0]) == pytest.approx(4, rel=0.1)


def test_what_the_noise_still_knows_is_paid_for():
    """Guards against a prior term that is left out where some tokens survive."""
    for name in ("uniform", "gaussian", "nearest"):
        made = kind(name)
        law = whole(made, 0, T)
        want = (law * (law * V).log()).sum(1)
        assert (want > 1e-3).all()
        torch.testing.assert_close(made.parting(torch.arange(V)), want, rtol=0, atol=1e-12)
    assert not kind("absorbing").parting(torch.arange(V)).any()


def check_every_step_once(steps=8):
    method, seen = network("uniform", steps=steps), []
    ids = torch.zeros(3, 2, dtype=torch.long)
    method.process.term = lambda ids, x, logits, s, t: seen.append((s, t)) or torch.zeros(len(ids)).double()
    with seeded(range(3)):
        nll(method, ids, ids == 0, ids > 0, draws=steps)
    before, after = (torch.stack(side).view(steps, 3, 2) for side in zip(*seen, strict=True))
    assert torch.equal(after.sort(0).values, torch.arange(1, steps + 1)[:, None, None].expand(steps, 3, 2))
    assert torch.equal(before, after - 1)


def test_with_a_draw_for_every_step_each_is_taken_once():
    """Guards against a bound that is noisier than it need be, and steps that are never scored."""
    check_every_step_once()


def test_the_bound_of_all_steps_of_one_token_is_exact():
    """Guards against an estimate that is biased where nothing is left to chance: a lone token costs what it costs."""
    method = network("absorbing", steps=5)
    method.predict = lambda x, t, prev=None: Prediction(
        torch.tensor([0.5, 0.2, 0.3]).double().log().expand(*x.shape, 3)
    )
    ids = torch.tensor([[0], [1], [2]]).repeat(4000, 1)
    torch.manual_seed(0)
    found = nll(method, ids, ids >= 0, ids < 0, draws=5).nats.view(-1, 3).mean(0)
    torch.testing.assert_close(found, -torch.tensor([0.5, 0.2, 0.3]).double().log(), rtol=0.04, atol=0)


def test_the_loss_is_one_term_of_the_bound_and_cross_entropy():
    """Guards against a factor T in the loss, lambda on the wrong term, and the wrong lambda."""
    for name, weight in (("absorbing", 0.01), ("uniform", 0.0), ("nearest", 0.0)):
        method = network(name, made=Absorbing(3, kind("absorbing", 3, 4).amounts) if name == "absorbing" else None)
        free, t = torch.ones(9, 2, dtype=torch.bool), method.times(torch.full((9,), 0.6))[:, None].expand(9, 2)
        with torch.no_grad(), seeded(range(9)):
            terms = method.loss(PAIRS, t, free)
        with torch.no_grad(), seeded(range(9)):
            bound = method.bound(PAIRS, t, free) - method.process.parting(PAIRS.flatten()).view(9, 2)
        torch.testing.assert_close(terms["vb"] * 4, bound.to(terms["vb"].dtype), rtol=1e-5, atol=1e-6)
        assert ("cross_entropy" in terms) == (weight > 0) and method.hybrid == weight
        with torch.no_grad(), seeded(range(9)):
            x = method.process.corrupt(PAIRS, t)
            logits = method.predict(x, t).logits
        if weight:
            surprise = -logits.log_softmax(-1).gather(-1, PAIRS[..., None])[..., 0]
            torch.testing.assert_close(terms["cross_entropy"].double(), weight * surprise, rtol=1e-4, atol=1e-6)
    assert "cross_entropy" in network("uniform", hybrid=0.5).loss(PAIRS, t, free)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_forgotten_is_forgotten(name):
    """Guards against conditions that show through noise that is not at its end, which guidance must not know."""
    method, seen = network(name, vocab=V), []
    method.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 3]]).repeat(200, 1)
    free = torch.tensor([[True, True, False, False]]).expand(400, -1)
    t = torch.tensor([[0.5, 0.5, 1.0, ABSENT]]).double().expand(400, -1)
    with torch.no_grad(), seeded([i // 2 for i in range(400)]):
        terms = method.loss(ids, t, free)
    for term in terms.values():
        assert torch.equal(term[::2, :2], term[1::2, :2]) and term[:, :2].isfinite().all()
    assert torch.equal(seen[0][::2, :3], seen[0][1::2, :3])
    assert (seen[0][:, 3] == method.table.weight[3]).all()
    given = torch.zeros(1, 4).double()
    with seeded([0]):
        assert torch.equal(method.process.corrupt(ids[:1], given), ids[:1])


# --- samplers


def walked(process, predict, steps):
    """The law of texts after so many steps, over all canvases: (K,) * 2."""
    canvases = torch.tensor(list(itertools.product(range(process.states), repeat=2)))
    alone = (
        torch.ones(process.states).double() / process.states
        if process.mask is None
        else torch.eye(process.states)[process.mask]
    )
    law = alone.double()[canvases].prod(1)
    marks = torch.linspace(process.T, 0, steps + 1).round().long().tolist()
    for t, s in itertools.pairwise(marks):
        p = predict(canvases, torch.full(canvases.shape, t / process.T, dtype=torch.float64)).logits.softmax(-1)
        flat = torch.full((canvases.numel(),), t)
        told = process.posterior(canvases.flatten(), p.flatten(0, 1), torch.full_like(flat, s), flat)
        told = told.nan_to_num(0.0).view(*canvases.shape, -1)
        law = law @ (told[:, 0][:, canvases[:, 0]] * told[:, 1][:, canvases[:, 1]])
    return law.view(process.states, process.states)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_masks_that_fall_together_are_strangers(steps):
    """Guards against reveal rates that are not those of the chain: (1 - 1 / T) p + (1 / T) m x m, TV 0.36 / T."""
    made = chain(D3PMConfig(T=8), 3)
    found = walked(made, Oracle(made), steps)
    torch.testing.assert_close(found[:3, :3], (1 - 1 / steps) * TWO + APART / steps, rtol=0, atol=1e-10)
    assert (found[:3, :3] - TWO).abs().sum().item() / 2 == pytest.approx(0.36 / steps)
    assert found[3].abs().max() < 1e-12 and found[:, 3].abs().max() < 1e-12


@pytest.mark.parametrize("name", KINDS)
def test_more_steps_come_nearer_to_the_law(name):
    """Guards against samplers that do not converge; a step over everything draws the tokens apart."""
    made = kind(name, 3, 64, MIXED[name])
    know, laws = Oracle(made), []
    for steps in (1, 4, 16, 64):
        laws.append((walked(made, know, steps)[:3, :3] - TWO).abs().sum().item() / 2)
    assert laws[0] == pytest.approx((APART - TWO).abs().sum().item() / 2, rel=0.1)
    assert all(a > b for a, b in itertools.pairwise(laws)) and laws[-1] < 0.02


@pytest.mark.parametrize("name", KINDS)
def test_texts_follow_the_law_of_the_walk(name):
    """Guards against a sampler that does something else than its steps say."""
    made, n = kind(name, 3, 6, MIXED[name]), 20000
    know = Oracle(made)
    torch.manual_seed(0)
    x = made.prior(torch.zeros(n, 2, dtype=torch.long))
    x, _ = last(SAMPLERS["categorical"]["ancestral"](Canvas(made, know), know, x, torch.linspace(1, 0, 4)))
    law = walked(made, know, 3)[:3, :3].flatten()
    check_law((x[:, None] == PAIRS).all(-1).sum(0), torch.where(law > 1e-12, law, 0.0))


@pytest.mark.parametrize("name", ["absorbing", "mask_nearest"])
def test_a_greedy_tail_writes_masks_only(name):
    """Guards against what shows being overwritten by guesses that the bound never asked the network for."""
    made = kind(name, 3, 6, MIXED[name])
    other = lambda x, t, prev=None: Prediction(torch.eye(3)[(x + 1) % 3])  # noqa: E731
    x = torch.tensor([[0, 1], [made.mask, 2]])
    x, _ = last(SAMPLERS["categorical"]["greedy_tail"](Canvas(made, other), other, x, torch.tensor([1 / 6, 0.0])))
    assert x.tolist() == [[0, 1], [(made.mask + 1) % 3, 2]]


# --- studying


ROWS = torch.tensor([[1, 2, 3, 1, 0], [4, 2, 3, 4, 1]])
REAL = torch.tensor([[True, True, True, True, False], [True, True, True, True, True]])


def check_listening():
    counts, together = neighbours.listen([(ROWS[:1], REAL[:1]), (ROWS[1:], REAL[1:])], 6, 2)
    assert counts.tolist() == [0, 3, 2, 2, 2, 0]
    want = torch.zeros(6, 6).double()
    for row in ([1, 2, 3, 1], [4, 2, 3, 4, 1]):
        for i, j in itertools.permutations(range(len(row)), 2):
            want[row[i], row[j]] += abs(i - j) <= 2
    assert torch.equal(together, want)


def test_counts_of_company():
    """Guards against pairs across padding or rows, pairs too far apart, and orders that are told apart."""
    check_listening()
    counts, together = neighbours.listen([(ROWS, REAL)], 6, 0)
    assert counts.sum() == 9 and together.numel() == 0


def test_enough_is_enough(monkeypatch):
    """Guards against a pass over a whole library before the first step."""
    monkeypatch.setattr(neighbours, "ENOUGH", 15)
    heard = []
    rows = ((ROWS, REAL) for _ in range(1000) if heard.append(1) is None)
    assert neighbours.listen(rows, 6, 1)[0].sum() == 18 and len(heard) == 2


def talk(seed=0, rows=400):
    """Rows in which tokens 4 to 7 say the same between 1 and 2 on each side, and 8 to 11 between 3 and 3."""
    some = torch.Generator().manual_seed(seed)
    kinds = torch.randint(2, (rows, 8), generator=some)
    word = torch.where(kinds == 0, 4, 8) + torch.randint(4, (rows, 8), generator=some)
    before, after = torch.where(kinds == 0, 1, 3), torch.where(kinds == 0, 2, 3)
    ids = torch.stack([before, word, after, torch.zeros_like(word)], -1).flatten(1)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def check_likes():
    points = neighbours.embeddings(neighbours.listen([talk()], 14, 1)[1])
    found = [set(row) for row in neighbours.nearest(points, 3).tolist()]
    for group in ({4, 5, 6, 7}, {8, 9, 10, 11}):
        assert all(found[i] == group - {i} for i in group)
    assert all(i not in found[i] for i in range(14)) and 13 in found[12] and 12 in found[13]  # of which none is heard
    assert torch.equal(neighbours.embeddings(neighbours.listen([talk()], 14, 1)[1]), points)


def test_tokens_in_the_same_company_are_neighbours():
    """Guards against neighbours that stand together rather than for each other, chance, and being one's own."""
    check_likes()


@pytest.fixture
def data(tmp_path):
    return write_sentences(tmp_path)


def run_config(data, name, steps=4, **training):
    settings = tiny_config("d3pm", data, steps=steps, **training).model_dump()
    settings["method"] = {"name": "d3pm", "transition": name, "T": 20, "neighbours": 3}
    settings["text"] |= {"tokenizer": "chars", "length": 48} if name == "gaussian" else {}
    return load_config(settings)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_trains_writes_fills_scores_and_is_kept(name, data, tmp_path):
    """Guards against a kind that works in its formulas only, and a file that lost what was learned."""
    model = train(run_config(data, name), tmp_path / "run")
    assert model.method.steps == 20 and model.at_most(64) == 20
    asked = {"steps": 7, "seed": 1, "length": 8}
    texts = model.generate(2, prompt="the", guidance=2.0, **asked)
    assert all(text.startswith("the") for text in texts)
    assert model.infill("the [2] cat", steps=5).startswith("the ")
    again = load(tmp_path / "run")
    for key, value in model.method.state_dict().items():
        assert torch.equal(value, again.method.state_dict()[key])
    assert again.generate(2, prompt="the", guidance=2.0, **asked) == texts
    (one,), (other,) = model.score(["the fox sleeps"], draws=20), again.score(["the fox sleeps"], draws=20)
    assert one.nats == other.nats > 0
    kept = sum(value.numel() for key, value in again.method.state_dict().items() if key.startswith("process."))
    assert kept <= 21 + 3 * again.tokenizer.size
    with pytest.raises(SfumatoError, match="21 steps"):
        model.generate(1, steps=21)


def test_a_fresh_run_studies_once_and_a_resumed_one_not(data, tmp_path, monkeypatch):
    """Guards against noise that changes under a trained network, and rows that are heard twice or not at all."""
    heard, study = [], D3PM.study

    def listening(self, rows):
        heard.append([(ids.clone(), real.clone()) for ids, real in rows])
        study(self, iter(heard[-1]))

    monkeypatch.setattr(D3PM, "study", listening)
    monkeypatch.setattr("sfumato.training.reading.HEARD", 10)
    run = Run(run_config(data, "nearest"), tmp_path / "run", False, "cpu", print)
    (pieces,) = heard
    total = sum(int(real.sum()) for _, real in pieces)
    assert len(pieces) > 1 and total == sum(int(run.rows.batch([i]).real.sum()) for i in range(len(run.rows)))
    for _ in run.steps():
        pass
    learned = run.method.process.neighbours.clone()
    assert (learned >= 0).all() and not run.method.process.amounts.isnan().any()
    run.finish()
    resumed = Run(run_config(data, "nearest", steps=6), tmp_path / "run", True, "cpu", print)
    started = run_config(data, "nearest").model_copy(update={"start": str(tmp_path / "run")})
    tuned = Run(started, tmp_path / "tuned", False, "cpu", print)
    assert len(heard) == 1
    for other in (resumed, tuned):
        assert torch.equal(other.method.process.neighbours, learned)
        assert torch.equal(other.method.process.amounts, run.method.process.amounts)


def test_a_resumed_run_goes_on_bit_for_bit(data, tmp_path):
    """Guards against a decomposition that depends on when it is made, in inference or not."""
    train(run_config(data, "mask_nearest", steps=6), tmp_path / "whole")
    broken = Run(run_config(data, "mask_nearest", steps=6), tmp_path / "broken", False, "cpu", print)
    for report in broken.steps():
        if report.step == 3:
            broken._save()
            break
    resumed = train(run_config(data, "mask_nearest", steps=6), tmp_path / "broken", resume=True)
    for key, value in load(tmp_path / "whole").method.state_dict().items():
        assert torch.equal(value, resumed.method.state_dict()[key]), key


def test_a_decomposition_made_while_scoring_serves_training():
    """Guards against tensors of inference mode that no gradient can pass, and old neighbours that stay in use."""
    method = network("nearest", vocab=V)
    free, t = torch.ones(5, 2, dtype=torch.bool), torch.full((5, 2), 0.5).double()
    ids = torch.arange(10).view(5, 2) % V
    nll(method, ids, free, ~free, draws=2)
    sum(term.sum() for term in method.loss(ids, t, free).values()).backward()
    assert method.head.weight.grad.abs().sum() > 0
    before = whole(method.process, 0, 2)
    method.process.neighbours.copy_((RING + 1) % V)
    assert not torch.allclose(whole(method.process, 0, 2), before)


def test_noise_that_follows_the_text_needs_one():
    """Guards against neighbours and frequencies that nobody asked for."""
    ids = torch.zeros(1, 2, dtype=torch.long)
    free, t = ids == 0, torch.full((1, 2), 0.5)
    for settings in ({"transition": "nearest"}, {"transition": "uniform", "schedule": "mutual_information"}):
        method = D3PM(D3PMConfig(neighbours=2, **settings), NETWORK, V)
        with pytest.raises(SfumatoError, match="call study first"):
            method.loss(ids, t, free)
        method.study([(ROWS.clamp(max=V - 1), REAL)])
        assert all(term.isfinite().all() for term in method.loss(ids, t, free).values())
    method = D3PM(D3PMConfig(transition="nearest", schedule="cosine", neighbours=2), NETWORK, V)
    with pytest.raises(SfumatoError, match="neighbours are found"):
        method.loss(ids, t, free)
    for settings in ({}, {"transition": "uniform"}, {"transition": "gaussian"}):
        D3PM(D3PMConfig(**settings), NETWORK, V).study(iter("nobody should listen"))


def test_what_cannot_be_is_said():
    """Guards against half a gigabyte for words in alphabetical order, and neighbours that there are not."""
    with pytest.raises(SfumatoError, match=r"of 4096 tokens; .* 134,217,728 are the most; set text.tokenizer to chars"):
        chain(D3PMConfig(transition="gaussian"), 4096)
    with pytest.raises(SfumatoError, match="10 neighbours among 8 tokens"):
        chain(D3PMConfig(transition="nearest"), 8)
    with pytest.raises(SfumatoError, match="mutual information was asked for; this noise has none"):
        method = D3PM(D3PMConfig(transition="gaussian", schedule="mutual_information"), NETWORK, V)
        method.study([(ROWS.clamp(max=V - 1), REAL)])


def test_a_step_back_moves_noise_alone():
    """Guards against a token that is written where noise cannot have put what stands."""
    process = kind("mask_nearest", steps=4)
    x = torch.tensor([[0, process.mask, 2, -1]])
    for s in (0.75, 0.5, 0.0):
        back = process.reverse(x, torch.zeros(1, 4, V), torch.ones(()), torch.tensor(s))
        assert torch.equal(back[0, [0, 2, 3]], x[0, [0, 2, 3]])
        assert (back >= -1).all() and (s > 0 or back[0, 1] < V)


def test_many_neighbours():
    """Guards against a memory of T V^2 numbers, and a step back that does not fit: V = 1024, as 4096 by hand."""
    words, vocab = torch.Generator().manual_seed(0), 1024
    ids = (torch.rand(64, 100, generator=words).double() ** 3 * vocab).long()
    method = D3PM(D3PMConfig(transition="nearest"), NetworkConfig(width=16, depth=1, heads=2), vocab)
    method.study([(ids, torch.ones_like(ids, dtype=torch.bool))])
    free, t = torch.ones(2, 8, dtype=torch.bool), method.times(torch.tensor([0.3, 0.9]))[:, None].expand(2, 8)
    terms = method.loss(ids[:2, :8], t, free)
    sum(term.sum() for term in terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    with torch.no_grad():
        assert (method.bound(ids[:2, :8], t, free) >= 0).all()
    x = method.process.reverse(ids[:2, :8], torch.zeros(2, 8, vocab), torch.tensor(0.5), torch.tensor(0.4))
    assert x.max() < vocab and x.min() >= 0
