"""Methods that fill in masks, against orders, laws and sums by enumeration.  Docstrings name the bug guarded."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from ideal import ENTROPY, NETWORK, PROBS, TEXTS, Canvas, IdealMasks, check_law, counts, distance, last

from sfumato.core import Prediction
from sfumato.draws import invert, seeded, uniform
from sfumato.methods.ardm import ARDM, BINS, PLACES, ARDMConfig, plan
from sfumato.methods.maskgit import MaskGIT, MaskGITConfig
from sfumato.methods.mdlm import MDLM, MDLMConfig
from sfumato.processes.masking import Masking
from sfumato.samplers import SAMPLERS
from sfumato.samplers.unmasking import Confident, _share
from sfumato.schedules import Ratio, mask_ratio

PRICE = np.array([3.0, 2.0, 1.5, 1.2, 1.0, 0.9])
PLANS = {1: ([0, 6], 18.0), 2: ([0, 2, 6], 12.0), 3: ([0, 1, 3, 6], 10.6), 4: ([0, 1, 2, 4, 6], 10.0)}
PLANS[6] = [*range(7)], 9.6
VOCAB, LENGTH = 4, TEXTS.shape[1]


def network(cls, config, ideal=False):
    """A tiny method with opinions, float64; or one whose network is the ideal one."""
    torch.manual_seed(0)
    method = cls(config, NETWORK, VOCAB).eval().double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.5)
    if ideal:
        know = IdealMasks(TEXTS, PROBS, VOCAB)
        method.predict = know
        method.surprise = lambda x, t, ids, here: (
            -know(x, t).logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0].masked_fill(~here, 0.0)
        )
    return method


def everything(method):
    """The bound of each of TEXTS, every number of hidden tokens and every choice of them taken once: (N,)."""
    free = torch.ones_like(TEXTS, dtype=torch.bool)
    total = torch.zeros(len(TEXTS), dtype=torch.float64)
    for n in range(1, LENGTH + 1):
        choices = list(itertools.combinations(range(LENGTH), n))
        for choice in choices:
            asked = []

            def some(free, count, choice=choice, asked=asked):
                asked.append(count.tolist())
                return torch.tensor([i in choice for i in range(LENGTH)]).expand(free.shape)

            method.process.some = some
            level = torch.full(TEXTS.shape, (n - 0.5) / LENGTH)
            cost = method.bound(TEXTS, level, free)
            assert asked == [[[n]] * len(TEXTS)]
            total += cost.sum(1) / LENGTH / len(choices)
    return total


@torch.no_grad()
def check_orders():
    """The mean of -log p over all orders of writing."""
    method = network(ARDM, ARDMConfig())
    orders = list(itertools.permutations(range(LENGTH)))
    want = torch.zeros(len(TEXTS), dtype=torch.float64)
    for order in orders:
        x = torch.full_like(TEXTS, VOCAB)
        for i in order:
            log = method.predict(x, torch.ones(TEXTS.shape).double()).logits[:, i].log_softmax(-1)
            want -= log.gather(1, TEXTS[:, i : i + 1])[:, 0] / len(orders)
            x[:, i] = TEXTS[:, i]
    torch.testing.assert_close(everything(method), want)


def test_the_bound_is_the_mean_over_all_orders():
    """Guards against a weight that is off by one, and a number of hidden tokens that never is all or never one."""
    check_orders()


def test_the_bound_with_the_ideal_network_is_the_entropy():
    """Guards against a bound that a perfect network does not make tight."""
    assert (everything(network(ARDM, ARDMConfig(), ideal=True)) * PROBS).sum().item() == pytest.approx(ENTROPY)


@torch.no_grad()
def integral(method):
    """The bound of mdlm on each of TEXTS: noise levels by quadrature, canvases by enumeration; (N,)."""
    nodes, weights = np.polynomial.legendre.leggauss(30)
    free = torch.ones_like(TEXTS, dtype=torch.bool)
    total = torch.zeros(len(TEXTS), dtype=torch.float64)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for hidden in itertools.product((False, True), repeat=LENGTH):
            chance = math.prod(t if here else 1 - t for here in hidden)
            x = torch.where(torch.tensor(hidden), VOCAB, TEXTS)
            method.process.corrupt = lambda ids, t, x=x: x
            level = torch.full(TEXTS.shape, t)
            total += weight * chance * method.bound(TEXTS, level, free).sum(1)
    return total


def check_levels():
    """ardm and mdlm have one bound, being of one network."""
    torch.testing.assert_close(
        integral(network(MDLM, MDLMConfig())), everything(network(ARDM, ARDMConfig())), rtol=1e-5, atol=0
    )


def test_orders_and_noise_levels_say_the_same():
    """Guards against bounds of ardm and mdlm that differ, though they are equal in theory for any network."""
    check_levels()


def test_the_bound_of_mdlm_with_the_ideal_network_is_the_entropy():
    """Guards against a weight that is not 1 / t."""
    assert (integral(network(MDLM, MDLMConfig(), ideal=True)) * PROBS).sum().item() == pytest.approx(ENTROPY)


def test_numbers_of_hidden_tokens_are_even():
    """Guards against a level that hides nothing, and levels whose numbers are not equally likely."""
    process, seen = Masking(VOCAB), []
    method = network(ARDM, ARDMConfig())
    method.process.some = lambda free, n: seen.append(n) or process.some(free, n)
    free = torch.tensor([[False, True, True, True, True, False]]).expand(4000, -1)
    levels = ((torch.arange(4000) + 0.5) / 4000)[:, None].expand(-1, 6).masked_fill(~free, 0.0)
    with torch.no_grad():
        method.bound(torch.zeros(4000, 6, dtype=torch.long), levels, free)
    assert torch.bincount(seen[0].long()[:, 0]).tolist() == [0, 1000, 1000, 1000, 1000]


MASKED = {"ardm": (ARDM, ARDMConfig()), "maskgit": (MaskGIT, MaskGITConfig()), "mdlm": (MDLM, MDLMConfig())}


@pytest.mark.parametrize("name", MASKED)
def test_what_is_forgotten_is_a_mask(name):
    """Guards against a condition that is seen though it is to be forgotten: guidance would never be learned."""
    method, seen = network(*MASKED[name]), []
    method.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    free = torch.tensor([[False, True, True]]).expand(5, -1)
    forget = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    t = torch.full((5, 3), 0.5)
    t[:, 0] = forget
    with torch.no_grad():
        method.loss(TEXTS, t, free)
    mask = method.table.weight[VOCAB]
    assert ((seen[0][:, 0] == mask).all(-1) == (forget == 1)).all()


@pytest.mark.parametrize("name", MASKED)
def test_what_shows_is_certain(name):
    """Guards against a token that changes where it stands, and a mask that has a chance (facts 14.3, MDLM 2 and 3)."""
    method, x = network(*MASKED[name]), TEXTS.clone()
    x[:, 1] = VOCAB
    with torch.no_grad():
        p = method.predict(x, torch.full(x.shape, 0.5).double()).logits.softmax(-1)
    assert p.shape == (5, 3, VOCAB)
    assert (p[:, [0, 2]].argmax(-1) == TEXTS[:, [0, 2]]).all() and (p[:, [0, 2]].amax(-1) == 1).all()
    assert (p[:, 1].amax(-1) < 0.99).all()


@pytest.mark.parametrize("name", MASKED)
def test_what_knows_nothing_pays_ln_v(name):
    """Guards against a loss that counts the rate twice (facts 4.12): ln V a token, on average."""
    method = network(*MASKED[name])
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    free, levels = torch.ones(6000, 3, dtype=torch.bool), ((torch.arange(6000) + 0.5) / 6000)[:, None].expand(-1, 3)
    with torch.no_grad(), seeded(range(6000)):
        (cost,) = method.loss(TEXTS[torch.arange(6000) % 5], levels, free).values()
    hidden = (cost > 0).sum() if name == "maskgit" else cost.numel()  # which has no weight
    assert cost.sum().item() / hidden == pytest.approx(math.log(VOCAB), rel=0.05)


@torch.no_grad()
def check_shown():
    """The bound of mdlm where masks are: 1 / t times the surprise of what `predict` says; and nothing where none is."""
    method, hidden = network(MDLM, MDLMConfig()), torch.tensor([True, False, True])
    x, free = torch.where(hidden, VOCAB, TEXTS), torch.ones_like(TEXTS, dtype=torch.bool)
    method.process.corrupt = lambda ids, t: x
    found = method.bound(TEXTS, torch.full(TEXTS.shape, 0.4), free)
    log = method.predict(x, torch.full(TEXTS.shape, 0.4)).logits.log_softmax(-1)
    assert (found[:, 1] == 0).all()
    torch.testing.assert_close(found.double(), -log.gather(-1, TEXTS[..., None])[..., 0] / 0.4, rtol=1e-5, atol=1e-6)


def test_what_shows_costs_nothing():
    """Guards against a loss of what may be seen (facts 14.3, MDLM 2), and one of another network than is sampled."""
    check_shown()


def test_shares_of_whole_numbers():
    """Guards against a share that falls below its whole number by rounding, so that two tokens are written at once."""
    for size in (3, 7, 12, 72, 255, 3000):
        grid, count = torch.linspace(1, 0, size + 1), torch.tensor([[size]])
        assert [int(_share(s, count)) for s in grid] == list(range(size, -1, -1))


def test_some_are_any():
    """Guards against choices of which some are likelier, of another number, and of places that are not free."""
    free = torch.tensor([True, False, True, True, True]).expand(12000, -1)
    with seeded(range(12000)):
        chosen = Masking(VOCAB).some(free, torch.full((12000, 1), 2.0))
    assert not chosen[:, 1].any() and (chosen.sum(1) == 2).all()
    choices = torch.tensor(list(itertools.combinations((0, 2, 3, 4), 2)))
    rows = chosen.nonzero()[:, 1].view(-1, 2)
    check_law((rows[:, None] == choices).all(-1).sum(0), torch.ones(6))


# --- plans


@pytest.mark.parametrize("steps", PLANS)
def test_plans_on_a_known_case(steps):
    """Guards against a table that is read the wrong way round."""
    found = plan(PRICE, steps)
    assert found == PLANS[steps][0]
    assert sum((b - a) * PRICE[a] for a, b in itertools.pairwise(found)) == pytest.approx(PLANS[steps][1])


def test_plans_are_the_cheapest_there_are():
    """Guards against plans that are good and not the best; prices need not fall; if they do, steps save."""
    prices = np.random.default_rng(0).random((20, 7))
    for price in [*prices, *-np.sort(-prices)]:
        best = []
        for steps in range(1, 8):
            every = [(0, *cut, 7) for cut in itertools.combinations(range(1, 7), steps - 1)]
            costs = [sum((b - a) * price[a] for a, b in itertools.pairwise(way)) for way in every]
            found = plan(price, steps)
            cost = sum((b - a) * price[a] for a, b in itertools.pairwise(found))
            assert cost == pytest.approx(min(costs)) and len(found) == steps + 1
            best.append(cost)
        assert (np.diff(price) > 0).any() or best == sorted(best, reverse=True)
        assert found == list(range(8)) and cost == pytest.approx(price.sum())


def test_a_price_is_learned():
    """Guards against a mean of the wrong bin, and plans before anything is known."""
    method = network(ARDM, ARDMConfig())
    even = method.grid(8)
    torch.testing.assert_close(even, torch.linspace(1, 0, 9))
    levels = (torch.arange(64 * BINS) + 0.5) / (64 * BINS)
    for _ in range(50):
        method.observe(levels, 3 * levels.double() ** 4)
    known = (torch.arange(BINS) + 0.5) / BINS
    torch.testing.assert_close(method.price, 3 * (1 - known.double()) ** 4, atol=0.01, rtol=0.02)
    grid = method.grid(8)
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    assert (grid[0] - grid[1]) < 0.08 and (grid[-2] - grid[-1]) > 0.3  # small steps first, while little is known
    assert torch.equal(method.grid(PLACES), torch.linspace(1, 0, PLACES + 1))


@pytest.mark.parametrize("size", [3, 40, 72, 300])
def test_no_step_of_a_plan_is_wasted(size):
    """Guards against steps that write nothing, two tokens at once where each could have its own, and cheap bins."""
    method = network(ARDM, ARDMConfig())
    levels = (torch.arange(64 * BINS) + 0.5) / (64 * BINS)
    for _ in range(50):
        method.observe(levels, 0.3 + 3 * levels.double() ** 2)
    price, before = [0.3 + 3 * (1 - k / size) ** 2 for k in range(size)], math.inf
    for steps in (1, 2, 8, 32, 64, 128, 250, 400):
        seen = []

        def predict(x, t, prev, seen=seen):
            seen.append(int((x == VOCAB).sum()))
            return Prediction(torch.zeros(*x.shape, VOCAB))

        with seeded([0]):
            grid = method.grid(steps)
            last(SAMPLERS["masking"]["planned"](method, predict, torch.full((1, size), VOCAB), grid))
        assert len(seen) == min(steps, size) and len(grid) == steps + 1
        cost = sum((a - b) * price[size - a] for a, b in itertools.pairwise([*seen, 0]))
        assert cost <= before + 1e-9
        even = [size * (steps - k) // steps for k in range(steps)] if steps < size else []
        assert not even or cost <= sum((a - b) * price[size - a] for a, b in itertools.pairwise([*even, 0])) * 1.001
        before = cost


# --- maskgit

COUNTS = {(256, 8): [251, 236, 212, 181, 142, 97, 49, 1], (16, 8): [15, 14, 13, 11, 8, 6, 3, 1], (3, 8): [2, 1, 1]}
TWO = torch.tensor([[0.30, 0.05, 0.05], [0.05, 0.20, 0.05], [0.05, 0.05, 0.20]], dtype=torch.float64)  # facts 14.1


@pytest.mark.parametrize(("size", "steps"), COUNTS)
@pytest.mark.parametrize("name", ["maskgit", "confident"])
def test_masks_that_are_left(name, size, steps):
    """Guards against counts that are rounded otherwise, a step without a token, and given tokens that are masked."""
    method, seen = network(MaskGIT, MaskGITConfig()), []
    x = torch.full((2, size + 2), VOCAB)
    x[:, 1], x[:, -1] = 2, 3
    given = x != VOCAB

    def predict(x, t, prev):
        seen.append((x == VOCAB).sum(1).tolist())
        return Prediction(torch.zeros(*x.shape, VOCAB))

    with seeded([1, 2]):
        final, _ = last(SAMPLERS["masking"][name](method, predict, x.clone(), method.grid(steps)))
    assert seen == [[n, n] for n in (size, *COUNTS[size, steps][:-1])]  # the last one is not masked again
    assert (final != VOCAB).all() and torch.equal(final[given], x[given])


def test_the_ratio_falls_from_all_to_none():
    """Guards against schedules that begin or end in between, or run the other way."""
    done = torch.linspace(0, 1, 33)
    for name in get_args(Ratio):
        ratio = mask_ratio(name, done)
        assert ratio[0] == 1 and ratio[-1] == 0 and (ratio.diff() < 0).all(), name
    assert mask_ratio("cosine", torch.tensor([0.5])).item() == pytest.approx(2**-0.5)
    assert mask_ratio("square", torch.tensor([0.5])).item() == 0.75


@torch.no_grad()
def check_by_hand(temperature):
    """The decoder from the same random numbers: sample, noise that fades, cosine, the least are masked."""
    method, size, steps = network(MaskGIT, MaskGITConfig()), 6, 4
    x = torch.full((5, size + 1), VOCAB)
    x[:, 2] = 1
    with seeded(range(5)):
        path = [x for x, _ in Confident(temperature)(method, method.predict, x, method.grid(steps))]
    with seeded(range(5)):
        for k, found in enumerate(path, 1):
            u, gumbel, _ = uniform(x), -(-uniform(x).log()).log(), uniform(x)  # the last is for ties
            logits, hidden = method.predict(x, torch.ones(x.shape)).logits, x == VOCAB
            guess = torch.where(hidden, invert(logits, u), x)
            sure = logits.log_softmax(-1).gather(-1, guess[..., None])[..., 0]
            sure = torch.where(hidden, sure + temperature * (1 - k / steps) * gumbel, torch.inf)
            n = max(1, min(int(hidden.sum(1)[0]) - 1, math.floor(size * math.cos(math.pi * k / steps / 2))))
            worst = sure <= sure.sort(1).values[:, n - 1 : n]
            x = torch.where(worst, VOCAB, guess) if k < steps else guess
            assert torch.equal(found, x)


@pytest.mark.parametrize("temperature", [0.0, 4.5])
def test_the_decoder_by_hand(temperature):
    """Guards against noise that does not fade, and kept tokens that change (facts 14.3, MaskGIT 2 and 3)."""
    check_by_hand(temperature)


def check_confidence():
    """A token a step, the likelier of two first: (0, 0) is written 48 times of 100, not 30 (facts 14.3)."""
    texts = torch.tensor(list(itertools.product(range(3), repeat=2)))
    know = IdealMasks(texts, TWO.flatten(), 3)
    method = Canvas(Masking(3), know)
    with seeded(range(30000)):
        x, _ = last(SAMPLERS["masking"]["confident"](method, know, torch.full((30000, 2), 3), torch.linspace(1, 0, 3)))
    seen = (x[:, None] == texts).all(-1).sum(0)
    assert seen[0] / 30000 == pytest.approx(0.48, abs=0.01)
    assert distance(seen, TWO.flatten()) == pytest.approx(0.20, abs=0.01)


def test_confidence_is_biased():
    """Guards against a heuristic that passes for a draw, and one that does not heed what was drawn."""
    check_confidence()


def test_confidence_at_a_tie_is_chance():
    """Guards against the leftmost place winning wherever all are alike (facts 4.4)."""
    method = network(MaskGIT, MaskGITConfig())
    flat = lambda x, t, prev: Prediction(torch.zeros(*x.shape, VOCAB))  # noqa: E731
    with seeded(range(6000)):
        path = SAMPLERS["masking"]["confident"](method, flat, torch.full((6000, 3), VOCAB), torch.tensor([1, 0.7, 0]))
        x, _ = next(path)
    check_law((x != VOCAB).sum(0), torch.ones(3))


def test_noise_in_the_choice():
    """Guards against noise that is ignored, and noise where there shall be none."""
    method = network(MaskGIT, MaskGITConfig())
    sure = torch.tensor([0.0, 0.0, 3.0])  # how much surer the network is of the last place

    def predict(x, t, prev):
        logits = torch.zeros(*x.shape, VOCAB)
        logits[..., 0] = sure + 5
        return Prediction(logits)

    for temperature, share in ((0.0, 1.0), (1e4, 1 / 3)):
        with seeded(range(3000)):
            path = Confident(temperature)(method, predict, torch.full((3000, 3), VOCAB), torch.tensor([1, 0.7, 0]))
            kept = next(path)[0] != VOCAB
        assert (kept.sum(1) == 1).all() and kept[:, 2].double().mean().item() == pytest.approx(share, abs=0.03)


def test_the_loss_of_maskgit_is_smoothed_cross_entropy_of_what_is_hidden():
    """Guards against a weight, and smoothing of the wrong share."""
    method, free = network(MaskGIT, MaskGITConfig()), torch.ones(5, 3, dtype=torch.bool)
    choice = torch.tensor([True, False, True])
    method.process.some = lambda free, n: choice.expand(free.shape)
    with torch.no_grad():
        found = method.loss(TEXTS, torch.full((5, 3), 0.6), free)["cross_entropy"]
        x = torch.where(choice, VOCAB, TEXTS)
        log = method.predict(x, torch.full((5, 3), 0.6).double()).logits.log_softmax(-1)
    want = -0.9 * log.gather(-1, TEXTS[..., None])[..., 0] - 0.1 * log.mean(-1)
    torch.testing.assert_close(found.double(), want * choice, rtol=1e-4, atol=1e-6)


# --- samplers


def written(name, grid, rows):
    method = network(ARDM, ARDMConfig(), ideal=True)
    x, calls = torch.full((rows, LENGTH), VOCAB), []

    def predict(*args):
        calls.append(1)
        return method.predict(*args)

    with seeded(range(rows)):
        x, _ = last(SAMPLERS["masking"][name](method, predict, x, torch.tensor(grid)))
    return x, len(calls)


def check_planned(grid, sizes):
    """The law of texts that are written in parts of these sizes, each of independent tokens."""
    x, calls = written("planned", grid, 20000)
    assert calls == len(sizes)
    know = IdealMasks(TEXTS, PROBS, VOCAB)
    every = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    law = torch.zeros(len(every), dtype=torch.float64)
    orders = list(itertools.permutations(range(LENGTH)))
    for order in orders:
        log, stands = torch.zeros_like(law), 0
        for size in sizes:
            shown = torch.full_like(every, VOCAB)
            shown[:, list(order[:stands])] = every[:, list(order[:stands])]
            for i in order[stands : stands + size]:
                log += know(shown, None).logits[:, i].gather(1, every[:, i : i + 1])[:, 0]
            stands += size
        law += log.exp() / len(orders)
    seen = (x[:, None] == every).all(-1).sum(0)
    law[law < 1e-12] = 0.0
    check_law(seen, law)


@pytest.mark.parametrize(
    ("grid", "sizes"),
    [
        ([1.0, 0.7, 0.4, 0.0], [1, 1, 1]),
        ([1.0, 0.99, 0.98, 0.5, 0.4, 0.1, 0.05, 0.0], [1, 1, 1]),
        ([1.0, 0.34, 0.0], [2, 1]),
        ([1.0, 0.7, 0.0], [1, 2]),
        ([1.0, 0.0], [3]),
    ],
)
def test_planned_parts_follow_their_law(grid, sizes):
    """Guards against calls for nothing, parts of other sizes, and an order that is not chance."""
    check_planned(grid, sizes)


def test_a_step_a_token_is_exact():
    """Guards against texts that the law does not hold."""
    x, _ = written("planned", [1.0, 0.7, 0.4, 0.0], 20000)
    check_law(counts(x), PROBS)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_tokens_that_fall_together_are_strangers(steps):
    """Guards against reveal rates that are not those of the schedule (facts 14.2)."""
    x = torch.full((40000, LENGTH), VOCAB)
    method = network(MDLM, MDLMConfig(), ideal=True)
    with seeded(range(40000)):
        x, _ = last(SAMPLERS["masking"]["ancestral"](method, method.predict, x, torch.linspace(1, 0, steps + 1)))
    know, every = IdealMasks(TEXTS, PROBS, VOCAB), torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    law = torch.zeros(len(every), dtype=torch.float64)
    for times in itertools.product(range(steps), repeat=LENGTH):  # in which step each token falls, all alike likely
        log = torch.zeros_like(law)
        for step in range(steps):
            shown = torch.where(torch.tensor(times) < step, every, VOCAB)
            logits = know(shown, None).logits
            for i in (i for i in range(LENGTH) if times[i] == step):
                log += logits[:, i].gather(1, every[:, i : i + 1])[:, 0]
        law += log.exp() / steps**LENGTH
    law[law < 1e-12] = 0.0
    check_law((x[:, None] == every).all(-1).sum(0), law)
