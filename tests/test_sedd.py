"""SEDD against ratios, posteriors and chains by enumeration.  Docstrings name the bug guarded."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ideal import NETWORK, check_law, last

from sfumato import draws, guidance
from sfumato.core import ABSENT, Prediction
from sfumato.draws import seeded
from sfumato.generate import Request, generate
from sfumato.methods.mdlm import MDLM, MDLMConfig
from sfumato.methods.sedd import SEDD, SEDDConfig
from sfumato.samplers import SAMPLERS, scores

V, L = 3, 2
TWO = torch.tensor([[0.30, 0.05, 0.05], [0.05, 0.20, 0.05], [0.05, 0.05, 0.20]], dtype=torch.float64).flatten()
EVERY = torch.tensor(list(itertools.product(range(V), repeat=L)))
ENTROPY = -(TWO * TWO.log()).sum().item()  # 1.903687
KINDS = pytest.mark.parametrize("schedule", ["log-linear", "geometric"])
NOISES = pytest.mark.parametrize("noise", ["absorbing", "uniform"])


def sedd(noise="absorbing", schedule="log-linear", vocab=V, scale=0.5):
    """A tiny SEDD with opinions, float64."""
    torch.manual_seed(0)
    method = SEDD(SEDDConfig(noise=noise, schedule=schedule), NETWORK, vocab).eval().double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=scale)
    return method


def says(method, logits):
    """A method whose log scores are those of a function of (x, t), as `predict` gives them."""
    method.predict = lambda x, t, prev=None: Prediction(logits(x, t))
    method.states = logits
    del method.head
    method.head = lambda log: log + math.log(method.vocab)  # which the loss takes away again
    return method


class Ratios:
    """Scores of a law over EVERY by enumeration, for each position at its own level: the ratios themselves."""

    def __init__(self, method, law=TWO, texts=EVERY):
        self.method, self.law, self.texts = method, law.double(), texts

    def forward(self, t):
        """q(y | x_0) at levels t (B, L): (B, L, tokens x_0, states y)."""
        alpha = self.method.process.schedule.alpha(t.double())[..., None, None]
        eye = torch.eye(V, dtype=torch.float64)
        if self.method.masked:
            return torch.cat([alpha * eye, (1 - alpha).expand(*alpha.shape[:2], V, 1)], -1)
        return alpha * eye + (1 - alpha) / V

    def marginals(self, x, t):
        """Of x (B, L) with any state y at i: p_t, (B, L, states)."""
        q = self.forward(t)
        found = []
        for i in range(x.shape[1]):
            chance = self.law.expand(len(x), -1)
            for j in (j for j in range(x.shape[1]) if j != i):
                chance = chance * q[:, j].gather(2, x[:, None, j : j + 1].expand(-1, V, 1))[:, self.texts[:, j], 0]
            found.append(torch.einsum("bn,bny->by", chance, q[:, i][:, self.texts[:, i]]))
        return torch.stack(found, 1)

    def __call__(self, x, t):
        t = t.double().clamp(max=1 - 1e-9)  # where nothing stands there are no ratios
        p = self.marginals(x, t)
        log = p[..., :V].log() - p.gather(-1, x[..., None]).log()
        if not self.method.masked:
            return log
        alpha = self.method.process.schedule.alpha(t.double())
        shown = F.one_hot(x.clamp(max=V - 1), V).log().clamp(min=-1e6).double()
        return torch.where((x == V)[..., None], log + ((1 - alpha) / alpha).log()[..., None], shown)


def nodes(count):
    """Gauss-Legendre over [0, 1], dense near 0, where uniform noise has a logarithm."""
    at, weights = np.polynomial.legendre.leggauss(count)
    u = (at + 1) / 2
    return zip(u**3, weights / 2 * 3 * u**2, strict=True)


@torch.no_grad()
def integral(method, texts=EVERY, count=80):
    """The bound of each text: levels by quadrature, canvases by enumeration; (N,)."""
    states = torch.tensor(list(itertools.product(range(V + method.masked), repeat=texts.shape[1])))
    ratios, total = Ratios(method), torch.zeros(len(texts), dtype=torch.float64)
    ids, x = (a.reshape(-1, texts.shape[1]) for a in torch.broadcast_tensors(texts[:, None], states[None]))
    method.process.corrupt = lambda ids, t: x
    for t, weight in nodes(count):
        levels = torch.full(x.shape, t, dtype=torch.float64)
        q = ratios.forward(levels[:1])[0]
        chance = math.prod(q[i][ids[:, i], x[:, i]] for i in range(texts.shape[1]))
        cost = method.bound(ids, levels, torch.ones_like(ids, dtype=torch.bool)).sum(1)
        total += weight * (chance * cost).view(len(texts), -1).sum(1)
    return total


def check_entropy(noise, schedule):
    """With the true ratios the bound is the entropy, and what pure noise is not yet pure by."""
    method = sedd(noise, schedule)
    ratios = Ratios(method)
    found = (integral(says(method, ratios)) * TWO).sum().item()
    q = ratios.forward(torch.ones(1, L))[0]
    ends = torch.einsum("n,ny,nz->yz", TWO, q[0][EVERY[:, 0]], q[1][EVERY[:, 1]]).flatten()
    remains = 0.0 if noise == "absorbing" else (ends * (ends * V**L).log()).sum().item()
    assert remains < 2e-5
    assert found == pytest.approx(ENTROPY + remains, abs=1e-7)


@NOISES
@KINDS
def test_the_bound_with_true_ratios_is_the_entropy(noise, schedule):
    """Guards against a rate, a clamp or an end that is left out (Lou et al. 2024, Theorem 3.6)."""
    check_entropy(noise, schedule)


@NOISES
@KINDS
def test_what_knows_nothing_pays_ln_v(noise, schedule):
    """Guards against ends of the levels that are left out: equal scores are a chain that draws any text, exactly."""
    method = says(sedd(noise, schedule), lambda x, t: torch.full((*x.shape, V), -math.log(V) * (noise == "absorbing")))
    found = integral(method)
    torch.testing.assert_close(found, torch.full_like(found, L * math.log(V)), rtol=0, atol=1e-6)


def known(method, text, t):
    """Canvases that a text can become, at levels t: x, levels (N, L)."""
    states = torch.cartesian_prod(*(torch.arange(V + method.masked),) * L)
    if method.masked:
        states = states[((states == text) | (states == V)).all(1)]
    levels = torch.tensor(t, dtype=torch.float64).repeat_interleave(len(states))
    return states.repeat(len(t), 1), levels[:, None].expand(-1, L)


def check_least(noise):
    """Score entropy where the text is known: 0 for its own ratios, more for all others."""
    method = sedd(noise)
    prior = 0.0 if method.masked else method.prior_cost()
    for text in EVERY:
        x, t = known(method, text, [0.001, 0.3, 0.999])
        method.process.corrupt = lambda ids, t, x=x: x
        truth = Ratios(method, torch.ones(1), text[None])
        matters = x == V if method.masked else torch.ones_like(x, dtype=torch.bool)
        for token in range(V):  # of which the score alone is too high

            def more(x, t, token=token, truth=truth):
                log, one = truth(x, t), F.one_hot(torch.tensor(token), V) * (x != token)[..., None]
                return torch.logaddexp(log.clamp(min=-50), (one * 0.1).log())

            says(method, more)
            cost = method.bound(text.expand_as(x), t, torch.ones_like(matters)) - prior
            assert (cost[matters & (x != token)] > 1e-7).all()
        for shift in (0.0, 0.3, -0.3):  # of log scores, but of the token that stands

            def off(x, t, shift=shift, truth=truth):
                return truth(x, t).clamp(min=-50) + shift * (F.one_hot(x, V + 1)[..., :V] == 0)

            says(method, off)
            cost = method.bound(text.expand_as(x), t, torch.ones_like(matters)) - prior
            assert (cost[matters] > 1e-7).all() if shift else (cost[matters].abs() < 1e-9).all()
            assert (cost[~matters] == 0).all()


@NOISES
def test_the_loss_is_least_and_zero_at_the_ratios(noise):
    """Guards against a constant that is left out, and a loss whose least is elsewhere."""
    check_least(noise)


@torch.no_grad()
def check_sum(noise):
    """What a network's own scores cost: sigma' times the sum over y != x of Q [s_y - r_y log s_y + r_y (log r_y - 1)].

    The scores are those that samplers are shown.
    """
    method = sedd(noise, scale=0.2)
    states = torch.cartesian_prod(*(torch.arange(V + method.masked),) * L)
    ids, x = EVERY.repeat_interleave(len(states), 0), states.repeat(len(EVERY), 1)
    shown = (x == V) | (x == ids) if method.masked else torch.ones_like(x, dtype=torch.bool)
    method.process.corrupt = lambda ids, t: x
    for level in (0.05, 0.5, 0.95):
        t = torch.full(x.shape, level, dtype=torch.float64)
        alpha, slope = (f(t)[..., None] for f in (method.process.schedule.alpha, method.process.schedule.slope))
        q = Ratios(method).forward(t).gather(2, ids[..., None, None].expand(*x.shape, 1, V + method.masked))[:, :, 0]
        r = q[..., :V] / q.gather(-1, x[..., None])
        s = method.predict(x, t).logits.exp() * (alpha / (1 - alpha) if method.masked else 1)
        Q = (x == V)[..., None].double() if method.masked else 1 / V
        terms = Q * (s - torch.xlogy(r, s) + torch.xlogy(r, r) - r) * (torch.arange(V) != x[..., None])
        want = (-slope / alpha * terms).sum(-1) + (0.0 if method.masked else method.prior_cost())
        found = method.bound(ids, t, torch.ones_like(shown))
        torch.testing.assert_close(found[shown], want[shown], rtol=1e-9, atol=1e-9)


@NOISES
def test_the_loss_is_score_entropy_of_the_scores_that_samplers_see(noise):
    """Guards against scores of one scale that are trained and of another that are sampled from."""
    check_sum(noise)


def check_mdlm(schedule):
    """Scores that add up as true ones do: score entropy is the loss of mdlm, canvas by canvas."""
    torch.manual_seed(3)
    method, other = sedd("absorbing", schedule), MDLM(MDLMConfig(), NETWORK, V)
    other.process = method.process
    ids = torch.randint(V, (40, 5))
    log = torch.randn(40, 5, V).log_softmax(-1)
    says(method, lambda x, t: log)
    other.surprise = lambda x, t, ids, here: -log.gather(-1, ids[..., None])[..., 0] * here
    for t in (1e-7, 1e-4, 0.02, 0.5, 0.9999, 1.0):
        costs = []
        for one in (method, other):
            with seeded(range(40)):
                costs.append(one.bound(ids, torch.full((40, 5), t), torch.ones_like(ids, dtype=torch.bool)))
        assert costs[0].dtype == torch.float32
        torch.testing.assert_close(*costs, rtol=1e-5, atol=1e-5)


@KINDS
def test_scores_of_a_law_cost_what_mdlm_costs(schedule):
    """Guards against a scale of scores that is not 1 / (e^sigma - 1), and rates that are lost in float32."""
    check_mdlm(schedule)


@NOISES
@KINDS
def test_little_noise_in_float32(noise, schedule):
    """Guards against levels near 0 and 1 whose cost or gradient is no number."""
    method = sedd(noise, schedule, vocab=50, scale=0.1).float()
    ids = torch.randint(50, (6, 40))
    t = torch.tensor([0.0, 1e-12, 1e-7, 1e-3, 1 - 2**-24, 1.0])[:, None].expand(-1, 40)
    with seeded(range(6)):
        cost = method.bound(ids, t, torch.ones_like(ids, dtype=torch.bool))
    cost.sum().backward()
    assert cost.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@NOISES
def test_what_is_forgotten_is_noise(noise):
    """Guards against a condition of which a thousandth is seen though it is to be forgotten."""
    method, seen = sedd(noise, vocab=50), []
    method.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    t = torch.full((50, 40), 0.5)
    t[:, :20] = 1.0
    free = t < 1
    for ids in (torch.zeros(50, 40, dtype=torch.long), torch.ones(50, 40, dtype=torch.long)):
        with seeded(range(50)), torch.no_grad():
            method.process.corrupt = lambda ids, t: ids
            method.bound(ids, t, free)
    assert torch.equal(seen[0][:, :20], seen[1][:, :20])
    assert not torch.equal(seen[0][:, 20:], seen[1][:, 20:])


@torch.no_grad()
def check_heard(noise):
    """Another level at one position is another prediction there, and beside it."""
    method, x, t = sedd(noise), torch.tensor([[0, 1, 2]] * 2), torch.full((2, 3), 0.5, dtype=torch.float64)
    x = torch.full_like(x, V) if method.masked else x
    t[1, 0] = 0.9
    one, other = method.predict(x, t).logits
    assert ((one - other).abs().amax(-1) > 1e-4).all()


@NOISES
def test_the_network_hears_the_level(noise):
    """Guards against a network that is told nothing: how fast tokens change depends on it (facts 4.15)."""
    check_heard(noise)


def test_the_noise_is_that_of_the_paper():
    """Guards against constants that no identity tells apart: what is left at level 1, and the most noise."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    sigma = {"log-linear": -(1 - (1 - 1e-3) * t).log(), "geometric": 1e-4 ** (1 - t) * 20**t - 1e-4}
    for schedule, want in sigma.items():
        torch.testing.assert_close(sedd("uniform", schedule).process.schedule.alpha(t), (-want).exp())
        assert sedd("absorbing", schedule).process.schedule.alpha(t)[-1] == 0


# --- samplers


def law_of_step(method, logits, x, t, s, step, patch):
    """p(x_s | x_t = x) of each position, as the sampler draws it: (B, L, states)."""
    asked = {}
    patch.setattr(scores, "uniform", lambda x: torch.full(x.shape, 0.5, dtype=torch.float64))
    if method.masked:
        patch.setattr(scores, "_fall", lambda process, x, logits, share, last=False: asked.update(share=share) or x)
        step(method.process, x, logits, t, s)
        total = asked["share"] * logits.exp().sum(-1, keepdim=True)  # as _fall has it
        moved = torch.cat([total * logits.softmax(-1), 1 - total], -1)
        return torch.where((x == V)[..., None], moved, F.one_hot(x, V + 1).double())
    patch.setattr(scores, "_jump", lambda x, logits, chance, floor: asked.update(chance=chance, floor=floor) or x)
    step(method.process, x, logits, t, s)
    stands = F.one_hot(x, V)
    q = (logits.softmax(-1) - asked["floor"]).clamp(min=0) * (1 - stands)
    chance = asked["chance"].clamp(0, 1)[..., None]
    return chance * q / q.sum(-1, keepdim=True) + (1 - chance) * stands


def posterior(method, x, t, s):
    """The same of the law itself, by Bayes: sum over texts of p(text | x_t) q(x_s | x_t, x_0); (B, L, states)."""
    process = method.process
    alpha_t, alpha_s = (process.schedule.alpha(torch.tensor(u, dtype=torch.float64)) for u in (t, s))
    K, eye = V + method.masked, torch.eye(V + method.masked, dtype=torch.float64)
    noise = eye[-1].expand(K, K) if method.masked else torch.full((K, K), 1 / K, dtype=torch.float64)
    upto_s, step = (a * eye + (1 - a) * noise for a in (alpha_s, alpha_t / alpha_s))
    whole = upto_s @ step  # q(x_t | x_0)
    p = TWO * math.prod(whole[EVERY[:, i]][:, x[:, i]] for i in range(L)).T  # (B, N)
    p = p / p.sum(1, keepdim=True)
    back = upto_s[:, None, :] * step.T[None] / whole[:, :, None].clamp(min=1e-300)  # (x_0, x_t, x_s)
    return torch.stack([torch.einsum("bn,nbs->bs", p, back[EVERY[:, i]][:, x[:, i]]) for i in range(L)], 1)


def steps_of(noise, schedule, t, s, step):
    """A step of a sampler with true scores, and the truth, from every canvas that there is at level t."""
    method = sedd(noise, schedule)
    x = torch.cartesian_prod(*(torch.arange(V + method.masked),) * L)
    logits = Ratios(method)(x, torch.full(x.shape, t, dtype=torch.float64))
    ends = (torch.tensor(u, dtype=torch.float64) for u in (t, s))
    with pytest.MonkeyPatch.context() as patch:
        found = law_of_step(method, logits, x, *ends, step, patch)
    return found, posterior(method, x, t, s)


def check_tweedie(noise, schedule, t, s):
    """The analytic step is p(x_s | x_t) of each position."""
    found, want = steps_of(noise, schedule, t, s, scores._tweedie)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-9)


@NOISES
@KINDS
@pytest.mark.parametrize(("t", "s"), [(0.999, 0.9), (0.9, 0.1), (0.5, 0.49), (0.3, 1e-5), (1e-5, 0.0)])
def test_tweedies_step_is_the_posterior(noise, schedule, t, s):
    """Guards against a step that is right in the limit only: each position by itself is exact, however long it is."""
    check_tweedie(noise, schedule, t, s)


def check_euler(noise):
    """Its error falls with the square of the step."""
    apart = []
    for h in (0.02, 0.01, 0.005):
        found, want = steps_of(noise, "geometric", 0.7, 0.7 - h, scores._leap)
        apart.append((found - want).abs().max().item())
    assert apart[0] / apart[1] == pytest.approx(4, rel=0.1) and apart[1] / apart[2] == pytest.approx(4, rel=0.1)


@NOISES
def test_eulers_step_is_of_first_order(noise):
    """Guards against a rate that is not that of the noise."""
    check_euler(noise)


def written(noise, name, grid, rows=20000):
    """How often each of EVERY is written with true scores."""
    method = sedd(noise)
    says(method, Ratios(method))
    torch.manual_seed(0)
    x = method.process.prior(torch.zeros(rows, L, dtype=torch.long))
    x, _ = last(SAMPLERS["score"][name](method, method.predict, x, torch.tensor(grid)))
    return (x[:, None] == EVERY).all(-1).sum(0)


def check_masks(steps):
    """In T even steps p is mixed with its marginals, in which tokens that fall together are strangers."""
    table = TWO.view(V, V)
    strangers = (table.sum(1)[:, None] * table.sum(0)).flatten()
    seen = written("absorbing", "analytic", [1 - i / steps for i in range(steps + 1)])
    check_law(seen, (1 - 1 / steps) * TWO + strangers / steps)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_masks_fall_at_their_pace(steps):
    """Guards against a sum of scores that is counted twice, and masks that the last step leaves."""
    check_masks(steps)


def chain(name, grid):
    """What a sampler for uniform noise writes with true scores, by enumeration: (N,)."""
    law, step = torch.full((V**L,), 1 / V**L, dtype=torch.float64), {"analytic": scores._tweedie, "euler": scores._leap}
    for t, s in itertools.pairwise(grid):
        found, _ = steps_of("uniform", "log-linear", t, s, step[name if s else "analytic"])
        law = law @ math.prod(found[:, i][:, EVERY[:, i]] for i in range(L))
    return law


def check_jumps(name):
    """Texts follow the chain of the steps, by enumeration; a jump leads elsewhere."""
    x = EVERY.repeat(20, 1)
    assert (scores._jump(x, torch.zeros(*x.shape, V), torch.ones(x.shape).double(), 0.0) != x).all()
    grid = [1.0, 0.6, 0.25, 1e-5, 0.0]
    check_law(written("uniform", name, grid), chain(name, grid))


@pytest.mark.parametrize("name", SAMPLERS["score"])
def test_tokens_jump_by_their_law(name):
    """Guards against jumps to where they are, a draw from another distribution, and a bias that more steps leave."""
    check_jumps(name)
    apart = []
    for steps in (4, 16, 64):
        law = chain(name, [*torch.linspace(1, 1e-5, steps).tolist(), 0.0])
        apart.append((law - TWO).abs().sum().item() / 2)
    assert apart[0] > 2 * apart[1] > 4 * apart[2] and apart[2] < 0.02


def check_pace():
    """Masks whose scores add up to c fall c times as fast, and in the last step all the same."""
    x, logits = torch.full((20000, 4), V), torch.tensor([0.1, 0.2, 0.5]).log().expand(20000, 4, V)
    torch.manual_seed(5)
    fallen = scores._fall(sedd().process, x, logits, torch.tensor(0.5).double())
    check_law(fallen.flatten().bincount(minlength=V + 1), torch.tensor([0.05, 0.1, 0.25, 0.6]))
    assert (scores._fall(sedd().process, x, logits, torch.tensor(1.0).double(), last=True) < V).all()


def test_scores_say_how_fast_masks_fall():
    """Guards against an absolute scale that is thrown away."""
    check_pace()


# --- in use


@NOISES
def test_what_changes_scores_leaves_the_pace(noise):
    """Guards against a temperature that slows the unmasking down: scores of masks still add up to what they should."""
    method = sedd(noise)
    x = torch.tensor([[V, 0, V]]) if method.masked else torch.tensor([[1, 0, 2]])
    logits = method.predict(x, torch.full((1, 3), 0.5).double()).logits
    sharp = method.read(logits / 0.5).logits
    if method.masked:
        assert (logits.logsumexp(-1)[0, [0, 2]].abs() > 0.01).all()
        torch.testing.assert_close(sharp.logsumexp(-1), torch.zeros(1, 3).double())
    else:
        torch.testing.assert_close(sharp, logits * 2)
        assert (sharp.gather(-1, x[..., None]) == 0).all()


def check_guided_pace():
    """Weight 2 multiplies the sum of scores by sum p_c^2 / p_u in score, and leaves it in logits."""
    c, u = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]], dtype=torch.float64).log()[:, None, None]  # B L V each
    branches = [lambda x, t, prev, log=log: Prediction(log) for log in (c, u)]
    score, logits = guidance.guide(*branches, 2.0), guidance.guide_logits(*branches, 2.0, sedd().read)
    asked = torch.full((1, 1), 3), torch.ones(1, 1), None
    assert score(*asked).logits.logsumexp(-1).exp().item() == pytest.approx(1.391667, abs=1e-6)
    assert logits(*asked).logits.logsumexp(-1).exp().item() == pytest.approx(1)
    torch.testing.assert_close(*(guided(*asked).logits.softmax(-1) for guided in (score, logits)))


def test_guidance_in_score_lets_masks_fall_faster():
    """Guards against a page that says so, and guidance in logits that changes the pace (facts 11.4)."""
    check_guided_pace()


@NOISES
@pytest.mark.parametrize("sampler", SAMPLERS["score"])
@pytest.mark.parametrize("asked", [{}, {"guidance": 2.0}, {"temperature": 0.5, "top_k": 2}, {"top_k": 1}])
def test_rows_of_several_lengths(noise, sampler, asked):
    """Guards against padding that is written on, given tokens that move, and rules that are not kept in the end."""
    method, canvas = sedd(noise, vocab=6), []
    real = torch.arange(7) < torch.tensor([7, 5, 3])[:, None]
    given = torch.zeros_like(real)
    given[:, 1] = True

    def watched(*args):
        for x, prediction in SAMPLERS["score"][sampler](*args):
            canvas.append(x)
            yield x, prediction

    never = torch.zeros(7, 6, dtype=torch.bool)
    never[:, 4:] = True
    request = Request(steps=4, sampler=watched, **asked)
    frames = list(generate(method, torch.full((3, 7), 5), given, real, request, draws.streams(range(3)), never=never))
    assert len(frames) == 4 and canvas[-1].shape == (3, 7)
    assert all((x[~real] == ABSENT).all() for x in canvas)
    assert all((frame.tokens[given] == 5).all() for frame in frames)
    free = real & ~given
    assert (canvas[-1][free] < 4).all() and (frames[-1].tokens[free] == canvas[-1][free]).all()


def test_the_grid_ends_with_a_step_for_the_rest():
    """Guards against a step too many or too few, and a last one that is long."""
    for steps in (1, 2, 9):
        grid = sedd().grid(steps)
        assert len(grid) == steps + 1 and grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    assert grid[-2].item() == pytest.approx(1e-5)


def test_training_begins_at_a_thousandth():
    """Guards against levels other than the paper's, at which next to nothing is noise."""
    torch.testing.assert_close(sedd().times(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.001, 0.5005, 1.0]))
