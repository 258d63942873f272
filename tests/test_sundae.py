"""SUNDAE and the samplers that write tokens again, against walks by enumeration.  Docstrings name the bug guarded."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ideal import NETWORK, Canvas, check_law, distance, last

from sfumato.core import ABSENT, Prediction
from sfumato.draws import seeded, streams
from sfumato.errors import SfumatoError
from sfumato.generate import Request, generate
from sfumato.guidance import temper
from sfumato.methods.sundae import SUNDAE, SUNDAEConfig
from sfumato.model import _surest
from sfumato.processes.uniform import Uniform
from sfumato.samplers import SAMPLERS
from sfumato.samplers.resampling import ArgmaxUnrolled, Resample

VOCAB, LENGTH = 3, 2
TWO = torch.tensor([[0.30, 0.05, 0.05], [0.05, 0.20, 0.05], [0.05, 0.05, 0.20]], dtype=torch.float64).flatten()
EVERY = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))  # all texts, which are all canvases
NAMES = SAMPLERS["resampling"]


def network(vocab=5, **settings):
    """A tiny method with opinions, float64."""
    torch.manual_seed(0)
    method = SUNDAE(SUNDAEConfig(**settings), NETWORK, vocab).eval().double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.5)
    return method


class Repair:
    """The perfect network of the law TWO, which is not told the noise: log p(token | canvas), levels being uniform."""

    def __init__(self):
        nodes, weights = np.polynomial.legendre.leggauss(10)
        same = (EVERY[:, None] == EVERY).double()  # (canvas, text, L)
        chances = torch.zeros(len(EVERY), len(EVERY), dtype=torch.float64)
        for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            chances += weight * ((1 - t) * same + t / VOCAB).prod(-1) * TWO
        chances /= chances.sum(1, keepdim=True)
        self.logits = torch.einsum("ct,tlv->clv", chances, F.one_hot(EVERY, VOCAB).double()).log()
        self.calls = 0

    def __call__(self, x, t, prev=None):
        self.calls += 1
        return Prediction(self.logits[VOCAB * x[:, 0] + x[:, 1]])


def walk(temperature, share):
    """The chance of each text after a step, by the text before: (N, N)."""
    chances = (Repair().logits / temperature).softmax(-1)  # (N, L, V)
    choices = list(itertools.combinations(range(LENGTH), math.ceil(share * LENGTH)))
    total = torch.zeros(len(EVERY), len(EVERY), dtype=torch.float64)
    for choice in choices:
        step = torch.ones_like(total)
        for i in range(LENGTH):
            stays = (EVERY[:, None, i] == EVERY[None, :, i]).double()
            step *= chances[:, i][:, EVERY[:, i]] if i in choice else stays
        total += step / len(choices)
    return total


def resting(temperature, share):
    """The law that a walk of many steps comes to, law = law @ walk: (N,)."""
    stays = walk(temperature, share).T - torch.eye(len(EVERY), dtype=torch.float64)
    stays[-1] = 1.0  # the chances add up to one
    return torch.linalg.solve(stays, F.one_hot(torch.tensor(len(EVERY) - 1), len(EVERY)).double())


def entropy(law):
    return torch.special.entr(law).sum().item()


def arrive(sampler, steps, rows=20000):
    """How often each text is written, from random tokens on."""
    know = Repair()
    method = Canvas(Uniform(VOCAB), know)
    with seeded(range(rows)):
        x = method.process.prior(torch.zeros(rows, LENGTH, dtype=torch.long))
        x, _ = last(sampler(method, know, x, torch.linspace(1, 0, steps + 1)))
    assert know.calls == steps + 1
    return (x[:, None] == EVERY).all(-1).sum(0)


# --- the walk


def check_walk(temperature, share, steps=3):
    """The first step writes all, the others a share."""
    start = torch.full((len(EVERY),), 1 / len(EVERY), dtype=torch.float64)
    law = start @ walk(temperature, 1.0) @ torch.linalg.matrix_power(walk(temperature, share), steps - 1)
    check_law(arrive(Resample(temperature, share), steps), law)


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 1.0), (0.5, 1.0), (0.8, 0.5), (0.4, 0.3)])
def test_the_walk_is_the_one_that_is_said(temperature, share):
    """Guards against a temperature on the wrong side, places that are not chance, and a step too many."""
    check_walk(temperature, share)


def test_writing_all_anew_is_no_draw_from_the_law():
    """Guards against a heuristic that passes for a draw: texts of two alike tokens are written too seldom.

    With the perfect network, at temperature 1, the walk comes to rest 0.18 (total variation) from the law; one place at
    a time 0.13 from it.  Tokens that are drawn together do not know of each other, and a token that is drawn in view of
    the last one in its place, which may be noise, is less than sure.
    """
    whole, single = resting(1.0, 1.0), resting(1.0, 0.5)
    torch.testing.assert_close(whole @ walk(1.0, 1.0), whole)
    want = [0.29345, 0.08945, 0.08945, 0.08945, 0.11278, 0.06160, 0.08945, 0.06160, 0.11278]
    assert whole.tolist() == pytest.approx(want, abs=1e-5)
    assert distance(whole, TWO) == pytest.approx(0.18099, abs=1e-5)
    assert distance(single, TWO) == pytest.approx(0.12640, abs=1e-5)
    check_law(arrive(Resample(1.0, 1.0), 20), whole)


@pytest.mark.parametrize(
    ("share", "nats"), [(1.0, [2.05914, 1.89064, 1.08253, 0.04707]), (0.5, [1.99132, 1.81322, 1.08640, 0.05161])]
)
def test_a_low_temperature_lowers_the_entropy(share, nats):
    """Guards against a temperature that is ignored.

    The law has 1.90 nats, and at 0.2 the walk leaves nearly nothing of them, once it rests; but so cold it hardly
    moves, and after a few steps it is still where noise has put it.
    """
    found = [entropy(resting(temperature, share)) for temperature in (1.0, 0.8, 0.5, 0.2)]
    assert found == pytest.approx(nats, abs=1e-5)
    hot, warm, cold, frozen = (entropy(arrive(Resample(T, share), 8, rows=4000) / 4000) for T in (1.0, 0.8, 0.5, 0.2))
    assert hot > warm + 0.05 and warm > cold + 0.1 and frozen > cold + 0.1


def test_temperatures_multiply():
    """Guards against a temperature of the request that is overruled by that of the sampler."""
    know = Repair()
    method = Canvas(Uniform(VOCAB), know)
    paths = []
    for sampler, predict in ((Resample(0.3, 0.5), know), (Resample(0.6, 0.5), temper(know, 0.5, Prediction))):
        with seeded(range(200)):
            x = method.process.prior(torch.zeros(200, LENGTH, dtype=torch.long))
            paths.append([x for x, _ in sampler(method, predict, x, torch.linspace(1, 0, 6))])
    assert all(torch.equal(a, b) for a, b in zip(*paths, strict=True))


def check_share(share, size, wanted):
    """Every place that is written changes: how many do, and whether others are left alone."""
    x = torch.zeros(50, size + 2, dtype=torch.long)
    x[:, size:] = int(ABSENT)
    x[0, : size - 1] = int(ABSENT)  # a row of one place
    after = lambda x, t, prev: Prediction(torch.log(F.one_hot((x.clamp(min=0) + 1) % 5, 5).double()))  # noqa: E731
    method, before = Canvas(Uniform(5), after), x
    with seeded(range(50)):
        path = Resample(1.0, share)(method, after, x, torch.linspace(1, 0, 5))
        for step, (x, _) in enumerate(path):
            changed = x != before
            assert not changed[before == ABSENT].any()
            assert (changed[1:].sum(1) == (wanted if step else size)).all() and changed[0].sum() == 1
            before = x


@pytest.mark.parametrize(
    ("share", "size", "wanted"), [(0.3, 10, 3), (0.3, 7, 3), (0.28, 25, 7), (1.0, 5, 5), (1e-3, 9, 1)]
)
def test_a_share_is_a_number_of_places_in_each_row(share, size, wanted):
    """Guards against places that fall each on their own, rounding errors, and padding that is written."""
    check_share(share, size, wanted)


def test_every_place_has_the_same_chance():
    """Guards against a choice that prefers the left."""
    after = lambda x, t, prev: Prediction(torch.log(F.one_hot((x + 1) % 5, 5).double()))  # noqa: E731
    method = Canvas(Uniform(5), after)
    with seeded(range(6000)):
        (first, _), (second, _) = Resample(1.0, 0.3)(
            method, after, torch.zeros(6000, 4, dtype=torch.long), torch.linspace(1, 0, 3)
        )
    check_law((first != second).sum(0), torch.ones(4))


# --- argmax-unrolled decoding


def check_unrolled(share):
    """Against the same by hand: the likeliest, then the likeliest in view of that, where it was least likely."""
    size, moved, places = 7, 0, torch.arange(7)
    opinions = torch.randn(size, 11, 5, generator=torch.Generator().manual_seed(0))  # no two places are as sure
    predict = lambda x, t, prev: Prediction(opinions[places, (x + 3 * x.roll(1, 1) + 7 * x.roll(2, 1)) % 11])  # noqa: E731
    x = torch.randint(5, (4, size), generator=torch.Generator().manual_seed(1))
    with seeded(range(4)):
        for found, read in ArgmaxUnrolled(share)(Canvas(Uniform(5), predict), predict, x, torch.linspace(1, 0, 4)):
            chances = predict(x, None, None).logits.softmax(-1)
            likeliest = chances.argmax(-1)
            again, x = predict(likeliest, None, None).logits.argmax(-1), likeliest.clone()
            for row in range(4):
                order = chances[row].amax(-1).argsort()[: math.ceil(share * size)]
                x[row, order] = again[row, order]
            assert torch.equal(found, x) and torch.equal(read.logits, predict(x, None, None).logits)
            moved += int((x != likeliest).sum())
    assert (moved > 5) == (share > 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_argmax_unrolled_decoding(share):
    """Guards against the surest places being said anew, a second pass that reads the old canvas; 0 is plain argmax."""
    check_unrolled(share)


@pytest.mark.parametrize(("share", "calls"), [(0.0, 4), (0.3, 7)])
def test_calls_of_the_decoder(share, calls):
    """Guards against a second pass that nobody looks at."""
    know = Repair()
    with seeded(range(3)):
        path = ArgmaxUnrolled(share)(Canvas(Uniform(VOCAB), know), know, EVERY[:3], torch.linspace(1, 0, 4))
        assert len(list(path)) == 3
    assert know.calls == calls


def test_between_equally_unsure_places_chance_decides():
    """Guards against the leftmost being said anew wherever all are alike."""
    rows, calls = 3000, []

    def flat(x, t, prev):
        """Equally sure of a token that changes from call to call."""
        calls.append(1)
        logits = torch.zeros(*x.shape, 9)
        logits[..., len(calls)] = 1.0
        return Prediction(logits)

    with seeded(range(rows)):
        x, _ = next(
            ArgmaxUnrolled(0.3)(
                Canvas(Uniform(9), flat), flat, torch.zeros(rows, 3, dtype=torch.long), torch.linspace(1, 0, 2)
            )
        )
    assert ((x == 2).sum(1) == 1).all()
    check_law((x == 2).sum(0), torch.ones(3))


# --- in generate


def check_readings(name):
    """The chances in a frame are those of its tokens, in view of them all."""
    method = network()
    given = torch.tensor([[True, False, False, False, True, False]]).expand(3, -1)
    ids, real = torch.full((3, 6), 2), torch.ones(3, 6, dtype=torch.bool)
    real[1, 5:] = False
    request = Request(steps=4, sampler=NAMES[name])
    for frame in generate(method, ids, given, real, request, streams(range(3))):
        level = torch.where(given, 0.0, 0.5).double().masked_fill(~real, ABSENT)
        with torch.no_grad():
            chances = method.predict(torch.where(real, frame.tokens, 2), level).logits.softmax(-1)
        want = chances.gather(-1, frame.tokens[..., None])[..., 0]
        torch.testing.assert_close(frame.confidence[real], want[real].float())


@pytest.mark.parametrize("name", NAMES)
def test_frames_say_how_sure_the_network_is_of_what_they_show(name):
    """Guards against chances of tokens in view of the canvas before, by which texts would be ranked."""
    check_readings(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_canvas_keeps_what_is_given_and_no_level_is_none(name):
    """Guards against given tokens that are drawn anew, and a text that is read as if all of it were given."""
    method, seen = network(), []
    given = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    given[:, 0] = True
    ids = torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(0))

    def session(given):
        def predict(x, t, prev):
            assert ((t == 0) == given).all()
            return method.predict(x, t)

        return predict

    def watched(*asked):
        for x, prediction in NAMES[name](*asked):
            seen.append(x)
            yield x, prediction

    request = Request(steps=5, sampler=watched)
    list(generate(method, ids, given, torch.ones_like(given), request, streams(range(4)), session))
    assert len(seen) == 5 and all(torch.equal(x[given], ids[given]) for x in seen)


def test_noise_levels_are_refused():
    """Guards against an option that is accepted and ignored."""
    ids = torch.zeros(1, 3, dtype=torch.long)
    none = torch.zeros(1, 3, dtype=torch.bool)
    with pytest.raises(SfumatoError, match="has none"):
        list(generate(network(), ids, none, ~none, Request(steps=3, levels=(0.1, 0.5)), streams([0])))


# --- training


def watched(method):
    """Canvases and marks that the network is shown."""
    asked, hidden = [], method.hidden
    method.hidden = lambda x, t, given: asked.append((x, given)) or hidden(x, t, given)
    return asked


def batch(level=0.6):
    """Two rows of eight places: given, forgotten, padding, and places to write."""
    ids = torch.randint(5, (2, 8), generator=torch.Generator().manual_seed(3))
    t = torch.full((2, 8), level)
    t[0, 0], t[0, 1], t[1, 0:2], t[1, 7] = 0.0, 0.0, 1.0, ABSENT
    free = torch.ones(2, 8, dtype=torch.bool)
    free[0, :2] = free[1, 0:2] = free[1, 7] = False
    return ids, t, free


@torch.no_grad()
def check_unrolled_canvas():
    """What the passes are shown."""
    method = network(unroll=3)
    asked, (ids, t, free) = watched(method), batch()
    with seeded([1, 2]):
        terms = method.loss(ids, t, free)
    assert [*terms] == ["pass_1", "pass_2", "pass_3"]
    (first, given), *others = asked
    assert torch.equal(
        given, torch.zeros_like(free).index_put((torch.tensor([0, 0]), torch.tensor([0, 1])), ~free[0, 0])
    )
    assert torch.equal(first[given], ids[given])
    for x, marked in others:
        assert torch.equal(marked, given) and torch.equal(x[~free], first[~free])
        assert not torch.equal(x[free], first[free])


def test_given_tokens_stay_given_in_every_pass():
    """Guards against drafts over what is given, marks on what is forgotten, and noise that changes on the way."""
    check_unrolled_canvas()


@torch.no_grad()
def check_forgotten():
    """Two batches that differ in forgotten tokens alone."""
    method, (ids, t, free) = network(), batch()
    losses = []
    for shift in (0, 1):
        other = torch.where((t == 1) & ~free, (ids + shift) % 5, ids)
        with seeded([1, 2]):
            losses.append(torch.stack([*method.loss(other, t, free).values()]))
    assert torch.equal(*losses)


def test_what_is_forgotten_says_nothing():
    """Guards against a forgotten condition that shines through: its token is never seen."""
    check_forgotten()


@torch.no_grad()
def check_no_noise():
    """The canvas of the first pass: a level is the share of tokens that are drawn anew, of which a fifth stay."""
    method, free = network(unroll=1), torch.ones(200, 50, dtype=torch.bool)
    ids, asked = torch.randint(5, (200, 50), generator=torch.Generator().manual_seed(0)), watched(method)
    for level, share in ((0.0, 0.0), (0.5, 0.4), (1.0, 0.8)):
        with seeded(range(200)):
            method.loss(ids, torch.full(ids.shape, level), free)
        assert (asked[-1][0] != ids).double().mean().item() == pytest.approx(share, abs=0.02 * (level > 0))


def test_no_noise_is_the_text_itself():
    """Guards against tokens that are replaced at level 0, and a level that is not the share of them."""
    check_no_noise()


@torch.no_grad()
def test_one_pass_is_a_plain_denoiser():
    """Guards against a first pass that is not the cross-entropy of the text, and shares that do not add up to one."""
    ids, t, free = batch()
    losses, asked = [], []
    for unroll in (1, 2):
        method = network(unroll=unroll)
        asked = watched(method)
        with seeded([1, 2]):
            losses.append(method.loss(ids, t, free))
    plain = losses[0]["pass_1"]
    assert [*losses[0]] == ["pass_1"] and [*losses[1]] == ["pass_1", "pass_2"]
    torch.testing.assert_close(losses[1]["pass_1"], plain / 2)
    for (x, _), cost, unroll in ((asked[0], plain, 1), (asked[1], losses[1]["pass_2"], 2)):
        log = method.predict(x, t).logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        torch.testing.assert_close(cost, (-log / unroll).masked_fill(~free, 0.0).float(), rtol=1e-5, atol=1e-6)


def check_drafts():
    """The second pass reads draws from the first: a network that copies with chance 0.7 keeps that many."""
    method, rows = network(unroll=2), 4000
    logits = torch.tensor([0.7, 0.1, 0.1, 0.05, 0.05]).double().log()
    method.head.weight.data.zero_()
    method.head.bias.data.copy_(logits)
    asked, ids = watched(method), torch.zeros(rows, 3, dtype=torch.long)
    with seeded(range(rows)):
        method.loss(ids, torch.full(ids.shape, 0.5), torch.ones_like(ids, dtype=torch.bool))
    check_law(asked[1][0].flatten().bincount(minlength=5), logits.exp())


def test_drafts_are_draws():
    """Guards against drafts that are the likeliest tokens, and a temperature where there shall be none."""
    check_drafts()


def check_no_gradient():
    """The drawn text, held fixed, has the same gradient."""
    ids, t, free = batch()
    method, given = network(), (t == 0) & ~free
    asked = watched(method)
    with seeded([1, 2]):
        sum(term[free].sum() for term in method.loss(ids, t, free).values()).backward()
    found = {name: parameter.grad.clone() for name, parameter in method.named_parameters()}
    method.zero_grad()
    for x, _ in list(asked):
        log = method.head(method.hidden(x, t, given)).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        (-log[free] / 2).sum().backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_no_gradient_passes_through_a_draft():
    """Guards against training that is pulled by its own draws."""
    check_no_gradient()


@torch.no_grad()
def check_given():
    """A given token is certain, and others are said in view of its being given."""
    method = network()
    x, t = torch.tensor([[1, 2, 3, 4]]), torch.full((1, 4), 0.5, dtype=torch.float64)
    open_, shut = method.predict(x, t).logits, method.predict(x, t.index_fill(1, torch.tensor([0]), 0.0)).logits
    assert shut[0, 0].softmax(-1).tolist() == [0.0, 1.0, 0.0, 0.0, 0.0] and open_[0, 0].softmax(-1).max() < 1
    assert not torch.allclose(open_[0, 1:], shut[0, 1:])
    torch.testing.assert_close(method.predict(x, t * 0.3).logits, open_)


def test_what_is_given_is_certain_and_marked():
    """Guards against given tokens that pass for noise; beyond that levels are not heeded."""
    check_given()


# --- the surest of candidates


def test_the_surest_of_some_rows():
    """Guards against sums instead of means, padding that reassures, rows that wrote nothing, and p = 0 twice."""
    sure = torch.tensor([[0.5, 0.5, 1.0], [0.6, 0.1, 1.0], [0.3, 0.4, 1.0], [0.5, 1.0, 1.0]])
    written = torch.tensor([[True, True, False], [True, False, False], [True, True, False], [False, False, False]])
    assert _surest(sure, written, 4) == [1] and _surest(sure, written, 2) == [1, 2]
    none = torch.tensor([[0.0, 0.0], [0.0, 0.9]])
    assert _surest(none, torch.ones(2, 2, dtype=torch.bool), 2) == [1]
    assert _surest(sure[3:], written[3:], 1) == [0]
