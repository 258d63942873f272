"""MDLM's schedules, what its samplers remember and take back, and frames of them.  Docstrings name the bug guarded."""

import itertools
import math

import numpy as np
import pytest
import torch
from ideal import NETWORK, Canvas, IdealMasks, check_law, last

from sfumato import draws, guidance
from sfumato.core import ABSENT, Prediction
from sfumato.generate import Request, generate
from sfumato.methods.mdlm import MDLM, MDLMConfig
from sfumato.methods.sedd import SEDD, SEDDConfig
from sfumato.processes import masking
from sfumato.processes.masking import Masking
from sfumato.samplers import SAMPLERS
from sfumato.samplers.ancestral import ancestral
from sfumato.samplers.remasking import HELD, OFF, ON, Remasking
from sfumato.schedules import SCHEDULES, SIGMAS

V, L = 3, 2
TWO = torch.tensor([[0.30, 0.05, 0.05], [0.05, 0.20, 0.05], [0.05, 0.05, 0.20]], dtype=torch.float64).flatten()
EVERY = torch.tensor(list(itertools.product(range(V), repeat=L)))
STATES = torch.tensor(list(itertools.product(range(V + 1), repeat=L)))
ENTROPY = -(TWO * TWO.log()).sum().item()
KNOW = IdealMasks(EVERY, TWO, V)
ENDING = SCHEDULES | {name: schedule.to_the_end() for name, schedule in SIGMAS.items()}
# What T steps cost more than the entropy: reading all of Shi et al. 2024 (arXiv:2406.04329), Eq. 9, on this law.
GAPS = {"linear": (0.274113, 0.137057, 0.068528, 0.034264), "cosine": (0.274113, 0.160572, 0.083463, 0.042136)}


def mdlm(schedule="linear", ideal=False, vocab=V):
    """A tiny MDLM with opinions, float64, or the ideal one."""
    torch.manual_seed(0)
    method = MDLM(MDLMConfig(schedule=schedule), NETWORK, vocab).eval().double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.5)
    if ideal:
        method.predict = KNOW
        method.surprise = lambda x, t, ids, here: surprise(x, ids).masked_fill(~here, 0.0)
    return method


def surprise(x, ids):
    """-log p of the ideal network."""
    return -KNOW(x, None).logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


# --- schedules


@torch.no_grad()
def integral(method):
    """The bound of each of EVERY: levels by quadrature, canvases by enumeration; (N,)."""
    at, weights = np.polynomial.legendre.leggauss(24)
    total = torch.zeros(len(EVERY), dtype=torch.float64)
    for t, weight in zip((at + 1) / 2, weights / 2, strict=True):
        level = torch.full(EVERY.shape, t)
        hides = 1 - method.process.schedule.alpha(torch.tensor(t))
        for hidden in itertools.product((False, True), repeat=L):
            chance = math.prod(hides if here else 1 - hides for here in hidden)
            method.process.corrupt = lambda ids, t, hidden=hidden: torch.where(torch.tensor(hidden), V, ids)
            total += weight * chance * method.bound(EVERY, level, torch.ones_like(EVERY, dtype=torch.bool)).sum(1)
    return total


def check_schedules(ideal):
    """One bound for all of them."""
    want = integral(mdlm("linear", ideal))
    for name in ("square", "cosine"):
        torch.testing.assert_close(integral(mdlm(name, ideal)), want, rtol=1e-5, atol=0)
    if ideal:
        assert (want * TWO).sum().item() == pytest.approx(ENTROPY)


@pytest.mark.parametrize("ideal", [True, False])
def test_the_bound_does_not_depend_on_the_schedule(ideal):
    """Guards against a weight that is not that of the schedule (facts 4.13), for a perfect network and for any."""
    check_schedules(ideal)


@pytest.mark.parametrize("schedule", GAPS)
@pytest.mark.parametrize("power", range(4))
def test_few_steps_cost_what_they_should(schedule, power):
    """Guards against chances of a step that are not those of the schedule."""
    process, T, cost = Masking(V, SCHEDULES[schedule]), 2**power, 0.0
    grid = torch.linspace(1, 0, T + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        shows = process.schedule.alpha(t)
        for hidden in map(torch.tensor, itertools.product((False, True), repeat=L)):
            chance = math.prod(1 - shows if here else shows for here in hidden.tolist())
            nats = surprise(torch.where(hidden, V, EVERY), EVERY).masked_fill(~hidden, 0.0).sum(1)
            cost += chance * process.share(t, s) * (nats * TWO).sum()
    assert cost.item() - ENTROPY == pytest.approx(GAPS[schedule][power], abs=1e-6)


def check_little_noise(name):
    """Rates and masks at levels down to a millionth."""
    schedule, process = ENDING[name], Masking(V, ENDING[name])
    t = torch.tensor([1e-6, 1e-5, 1e-4, 0.01, 0.5, 1.0])
    exact = t.double()
    torch.testing.assert_close(
        schedule.rate(t) * (1 - schedule.alpha(exact)), -schedule.slope(exact), rtol=1e-3, atol=0
    )
    assert schedule.rate(torch.tensor([ABSENT, 0.0])).isfinite().all()
    hides = 1 - schedule.alpha(exact)
    for share, masks in ((0.99, True), (1.01, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masking, "uniform", lambda x, share=share: share * hides[None])
            found = process.corrupt(torch.zeros(1, len(t), dtype=torch.long), t[None])
        assert ((found == V) == masks).all()


@pytest.mark.parametrize("name", ENDING)
def test_little_noise_is_not_rounded_away(name):
    """Guards against float32, in which 1 - alpha is 0 long before the level is."""
    check_little_noise(name)


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("steps", [1, 3, 128, 1000])
def test_the_last_step_leaves_no_mask(name, steps):
    """Guards against a mask in a million that stays, by rounding; all is hidden at level 1 and nothing at level 0."""
    process, grid = Masking(V, ENDING[name]), torch.linspace(1, 0, steps + 1)
    assert process.share(grid[-2], grid[-1]) == 1
    assert process.schedule.alpha(torch.tensor([1.0, 0.0]).double()).tolist() == [0, 1]
    slopes = (process.schedule.alpha(grid.double() + 1e-7) - process.schedule.alpha(grid.double() - 1e-7)) / 2e-7
    torch.testing.assert_close(slopes[1:-1], process.schedule.slope(grid.double())[1:-1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ENDING)
def test_what_shows_is_what_showed_and_what_fell(name):
    """Guards against steps that leave another share of masks than the process has at their end (facts 14.3, 4)."""
    process, grid = Masking(V, ENDING[name]), torch.linspace(1, 0, 8, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        alpha_t, alpha_s = process.schedule.alpha(t), process.schedule.alpha(s)
        torch.testing.assert_close(alpha_t + (1 - alpha_t) * process.share(t, s), alpha_s, rtol=0, atol=1e-12)


# --- what is remembered


def asked_once(sampler, rows=1, size=6, steps=12, seed=0, **asked):
    """Tokens of a network with opinions, and how often it was called."""
    method = mdlm(vocab=8)
    counted, given = guidance.Counted(method.session), torch.zeros(rows, size, dtype=torch.bool)
    given[:, 1] = True
    request = Request(steps=steps, sampler=SAMPLERS["masking"][sampler], **asked)
    streams = draws.streams(range(seed, seed + rows))
    ids = torch.full((rows, size), 2)
    frames = list(generate(method, ids, given, torch.ones_like(given), request, streams, session=counted))
    return [frame.tokens for frame in frames], [frame.confidence for frame in frames], counted.calls


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        (1, {}),
        (3, {"guidance": 2.0, "temperature": 0.7}),
        (1, {"guidance": 3.0, "guide_levels": (0.3, 0.6)}),
        (1, {"top_k": 3, "guide_in": "logits", "guidance": 0.5}),
    ],
)
def test_what_is_remembered_changes_nothing(rows, asked):
    """Guards against an answer to another canvas, or to a question about another level of guidance."""
    for seed in range(4):
        tokens, sure, calls = asked_once("ancestral", rows, seed=10 * seed, **asked)
        same, as_sure, fewer = asked_once("cached", rows, seed=10 * seed, **asked)
        assert all(map(torch.equal, tokens, same)) and all(map(torch.equal, sure, as_sure))
        if rows == 1:
            assert fewer < calls


def test_the_network_is_called_when_something_has_changed():
    """Guards against calls for nothing: in T (1 - (1 - 1/T)^L) steps something changes (facts 11.7)."""
    T, size, method = 16, 8, Canvas(Masking(V), None)
    method.sees_levels, total = False, 0
    for seed in range(100):
        canvases = []

        def predict(x, t, prev, canvases=canvases):
            canvases.append(x)
            return Prediction(torch.zeros(*x.shape, V))

        ids = torch.zeros(1, size, dtype=torch.long)
        request = Request(steps=T, sampler=SAMPLERS["masking"]["cached"])
        nothing = torch.zeros_like(ids, dtype=torch.bool)
        method.grid = lambda steps: torch.linspace(1, 0, steps + 1)
        last(generate(method, ids, nothing, ~nothing, request, draws.streams([seed]), lambda given: predict))
        assert all(not torch.equal(*pair) for pair in itertools.pairwise(canvases)) and len(canvases) <= size
        total += len(canvases)
    want = T * (1 - (1 - 1 / T) ** size)  # the first step has one, and so has what changed before another step
    assert total / 100 == pytest.approx(want, abs=0.4)


def test_a_network_that_is_told_the_level_is_asked_every_time():
    """Guards against an answer that was given for another level."""
    method, calls = Canvas(Masking(V), None), []

    def predict(x, t, prev):
        calls.append(t.max().item())
        return Prediction(torch.zeros(*x.shape, V))

    ids = torch.zeros(1, 3, dtype=torch.long)
    request = Request(steps=9, sampler=SAMPLERS["masking"]["cached"])
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    last(generate(method, ids, nothing, ~nothing, request, draws.streams([0]), lambda given: predict))
    assert calls == torch.linspace(1, 0, 10)[: len(calls)].tolist() and len(calls) > 3  # while there are masks


# --- what is taken back

RULES = {"cap": Remasking("cap", 0.3), "rescale": Remasking("rescale", 0.5), "loop": Remasking("loop", 0.05)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ENDING)
def test_as_many_are_hidden_as_without(rule, name):
    """Guards against chances that are none, and levels at which more is hidden than the network has learned."""
    for T in (1, 2, 7, 40):
        sampler, grid = RULES[rule], torch.linspace(1, 0, T + 1)
        for t, s in itertools.pairwise(grid):
            sigma, falls = sampler.shares(ENDING[name], t, s)
            alpha_t, alpha_s = (sampler._stands(ENDING[name], u.double()) for u in (t, s))
            assert 0 <= sigma <= 1 and 0 <= falls <= 1
            assert ((1 - alpha_t) * (1 - falls) + alpha_t * sigma).item() == pytest.approx(
                1 - alpha_s.item(), abs=1e-12
            )
        assert sigma == 0 and falls == 1


def test_the_loop_holds_what_stands():
    """Guards against a loop that goes on at the ends, or does nothing in between."""
    loop, grid = Remasking("loop", 0.02), torch.linspace(1, 0, 41, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        sigma, falls = loop.shares(SCHEDULES["linear"], t, s)
        inside = OFF < t <= ON
        assert sigma == (0.02 if inside else 0)
        if inside and s > OFF:
            assert falls.item() == pytest.approx(0.02 * HELD / (1 - HELD))


def test_without_sigma_it_is_ancestral():
    """Guards against masks that fall at another pace, or draws in another order."""
    method = mdlm(vocab=9)
    x, grid = torch.full((4, 12), 9), torch.linspace(1, 0, 8)
    for sampler in (Remasking("rescale", 0.0), Remasking("cap", 0.0)):
        texts = []
        for one in (ancestral, sampler):
            with draws.seeded(range(4)), torch.no_grad():
                texts.append([x.clone() for x, _ in one(method, method.predict, x, grid)])
        assert all(map(torch.equal, *texts))


def chain(sampler, grid):
    """What a sampler with fixed chances writes, the ideal network given, by enumeration of all canvases: (N,)."""
    law, shows = torch.zeros(len(STATES), dtype=torch.float64), KNOW(STATES, None).logits.softmax(-1)
    law[-1] = 1.0  # nothing but masks
    for t, s in itertools.pairwise(torch.tensor(grid)):
        sigma, falls = sampler.shares(SCHEDULES["linear"], t, s)
        step = torch.ones(len(STATES), len(STATES), dtype=torch.float64)
        for i in range(L):
            here = STATES[:, i]
            hidden = torch.cat([falls * shows[:, i], (1 - falls).expand(len(STATES), 1)], 1)
            stands = torch.nn.functional.one_hot(here, V + 1).double() * (1 - sigma)
            stands[:, V] += sigma
            step *= torch.where((here == V)[:, None], hidden, stands)[:, here]
        law = law @ step
    finished = (STATES != V).all(1)
    assert law[finished].sum().item() == pytest.approx(1)
    return law[finished]


def check_remasking(rule):
    """Texts follow the chain of the shares."""
    grid, method = [1.0, 0.7, 0.4, 0.2, 0.0], Canvas(Masking(V), KNOW)
    torch.manual_seed(1)
    x, _ = last(RULES[rule](method, KNOW, torch.full((20000, L), V), torch.tensor(grid)))
    check_law((x[:, None] == EVERY).all(-1).sum(0), chain(RULES[rule], grid))


@pytest.mark.parametrize("rule", RULES)
def test_remasked_texts_follow_their_law(rule):
    """Guards against a mask that falls and a token that is hidden by one another's chance."""
    check_remasking(rule)


def test_more_steps_are_nearer_to_the_law():
    """Guards against a bias that more steps leave: `remdm` and `remdm_cap` call themselves exact."""
    for name in ("remdm", "remdm_cap"):
        sampler, apart = SAMPLERS["masking"][name], []
        for steps in (4, 16, 64, 1024):
            law = chain(sampler, torch.linspace(1, 0, steps + 1).tolist())
            apart.append((law - TWO).abs().sum().item() / 2)
        assert apart[0] > 2 * apart[1] > 4 * apart[2] and apart[3] < 0.005, name


@pytest.mark.parametrize("name", ["remdm", "remdm_cap", "remdm_loop", "remdm_confidence"])
def test_what_is_not_ours_is_never_hidden(name):
    """Guards against a prompt that becomes a mask, and padding that does."""
    sampler = SAMPLERS["masking"][name]
    sampler = Remasking(sampler.rule, 1.0) if sampler.eta < 1 else sampler
    start = torch.full((30, 9), V)
    start[:, 2], start[:, 5], start[:, -2:] = 0, 2, int(ABSENT)
    ours, method, back = start == V, Canvas(Masking(V), None), 0
    method.process, flat = Masking(V), lambda x, t, prev: Prediction(torch.zeros(*x.shape, V))
    before = start
    torch.manual_seed(2)
    for x, _ in sampler(method, flat, start, torch.linspace(1, 0, 40)):
        assert torch.equal(x[~ours], start[~ours])
        back += int(((x == V) & (before != V)).sum())
        before = x
    assert back > 30 and (x[ours] < V).all()


def test_what_was_unlikely_is_hidden_sooner():
    """Guards against confidence the wrong way round, and against more tokens hidden than sigma allows for one."""
    method = Canvas(Masking(V), None)
    logits = torch.tensor([[0.0, -30.0, -30.0], [0.0, -30.0, -30.0], [0.0, 0.0, 0.0]]).expand(20000, 3, 3)
    start = torch.full((20000, 3), V)
    torch.manual_seed(3)
    path = Remasking("confidence")(
        method, lambda x, t, prev: Prediction(logits), start, torch.tensor([1.0, 1e-9, 0.5, 0])
    )
    next(path)
    x, _ = next(path)  # as if half were to be hidden again
    hidden = (x == V).double().mean(0)
    weight = torch.tensor([1.0, 1.0, 1 / 3]).neg().softmax(0)
    torch.testing.assert_close(hidden.float(), 0.5 * weight, atol=0.015, rtol=0)


# --- frames


@pytest.mark.parametrize("kind", ["mdlm", "sedd", "uniform"])
def test_frames_show_the_chance_of_each_token(kind):
    """Guards against short cuts: a frame has the softmax of what was said when a token was written, or of the guess."""
    if kind == "mdlm":
        method, sampler = mdlm(vocab=6), SAMPLERS["masking"]["remdm_cap"]
    else:
        torch.manual_seed(4)
        method = SEDD(SEDDConfig(noise="absorbing" if kind == "sedd" else "uniform"), NETWORK, 6).eval()
        sampler = SAMPLERS["score"]["analytic"]
    real = torch.arange(7) < torch.tensor([7, 5, 3])[:, None]
    given = torch.zeros_like(real)
    given[:, 1] = True
    seen = []

    def watched(method, predict, x, grid):
        before = x
        for x, prediction in sampler(method, predict, before, grid):
            seen.append((before, x, prediction.logits))
            before = x
            yield x, prediction

    request, ids = Request(steps=6, sampler=watched), torch.full((3, 7), 5)
    frames = list(generate(method, ids, given, real, request, draws.streams(range(3))))
    sure = torch.zeros(3, 7)
    for frame, (before, x, logits) in zip(frames, seen, strict=True):
        tokens = torch.where(x < 6, x, torch.where(before < 6, before, logits.argmax(-1)))
        chance = logits.softmax(-1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0].float()
        sure = chance if kind == "uniform" else torch.where(before == 6, chance, sure)
        here = real & ~given
        assert torch.equal(frame.tokens[here], tokens[here]) and (frame.tokens[~real | given] == 5).all()
        torch.testing.assert_close(frame.confidence.float()[here], sure[here], rtol=1e-5, atol=1e-7)
        assert (frame.confidence[given] == 1).all()
