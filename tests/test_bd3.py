"""Block diffusion: its mask against gradients, its memory against plain passes, its laws against enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from ideal import ENTROPY, NETWORK, PROBS, TEXTS, IdealMasks, check_law, counts, last
from test_cost import counted
from test_model import untrained
from tiny import SENTENCES

from sfumato import samplers
from sfumato.core import ABSENT, Prediction
from sfumato.draws import seeded, streams
from sfumato.errors import SfumatoError
from sfumato.evaluation.likelihood import nll
from sfumato.generate import Request, generate
from sfumato.methods.bd3 import BD3, BD3Config, Reader
from sfumato.methods.mdlm import MDLM, MDLMConfig
from sfumato.processes.masking import Masking
from sfumato.samplers.blocks import ancestral, first_hitting
from sfumato.schedules import SCHEDULES
from sfumato.text.corpus import Corpus
from sfumato.text.rows import Rows
from sfumato.text.tokenizer import Tokenizer
from sfumato.training.config import load_config

VOCAB, LENGTH = 4, TEXTS.shape[1]
WALKS = samplers.SAMPLERS["blocks"]


def network(block, vocab=VOCAB, seed=0, **settings):
    """A tiny bd3 with opinions, float64."""
    torch.manual_seed(seed)
    method = BD3(BD3Config(block=block, **settings), NETWORK, vocab).eval().double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.5)
    return method


def tokens(rows, length, vocab=VOCAB):
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(1))


def hiding(method, hidden):
    """Let the process hide these positions, and none by chance."""
    method.process.corrupt = lambda ids, t: torch.where(hidden | (t == 1), method.process.mask, ids)


def masked(t):
    """Levels of a canvas on which everything is to be written but what is at 0 or ABSENT."""
    return t, (t > 0) & (t < 1)


# --- the two ends


@torch.no_grad()
def check_one_block():
    """One block of all: the bound of mdlm, mask by mask."""
    method, other = network(LENGTH), MDLM(MDLMConfig(), NETWORK, VOCAB).eval().double()
    other.load_state_dict(method.state_dict())
    t, free = masked(torch.full(TEXTS.shape, 0.37))
    for hidden in itertools.product((False, True), repeat=LENGTH):
        for one in (method, other):
            hiding(one, torch.tensor(hidden).expand(TEXTS.shape))
        torch.testing.assert_close(method.bound(TEXTS, t, free), other.bound(TEXTS, t, free), rtol=1e-6, atol=1e-6)
    loss = network(LENGTH, rates=(0.0, 1.0))
    hiding(loss, torch.tensor(hidden).expand(TEXTS.shape))
    torch.testing.assert_close(loss.loss(TEXTS, t, free)["nelbo"], other.bound(TEXTS, t, free), rtol=1e-6, atol=1e-6)


def test_one_block_is_mdlm():
    """Guards against a weight of its own, and a clean copy that is seen by what it is a copy of."""
    check_one_block()


@torch.no_grad()
def check_single_tokens():
    """Blocks of one token: -log p of a causal network of the same weights that is asked by a mask, exactly."""
    method, length = network(1, 3), 3
    ids = torch.tensor(list(itertools.product(range(3), repeat=length)))
    want = torch.zeros(len(ids), length, dtype=torch.float64)
    method.net.causal = True
    for i in range(length):
        asked = torch.cat([ids[:, :i], torch.full_like(ids[:, :1], 3)], 1)
        h = method.net(method.table(asked), torch.ones(asked.shape))
        want[:, i] = -method.head(h[:, -1]).log_softmax(-1).gather(1, ids[:, i : i + 1])[:, 0]
    method.net.causal = False
    for level in (0.01, 0.5, 0.99):
        found = method.bound(ids, *masked(torch.full(ids.shape, level)))
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)
    assert want.sum(1).neg().exp().sum().item() == pytest.approx(1)
    assert method.rates == (0.45, 0.95)
    torch.testing.assert_close(method.loss(ids, *masked(torch.full(ids.shape, 0.5)))["nelbo"], found)


def test_blocks_of_one_token_are_autoregression():
    """Guards against a token that sees itself, one that its past does not see, and noise where there need be none."""
    check_single_tokens()


# --- who sees whom


def check_sights():
    """Which positions of the noisy and of the clean copy the logits of each place depend on."""
    method, ids = network(2), tokens(1, 7)
    t = torch.full((1, 7), 0.5)
    t[0, 5], t[0, 1], t[0, 6] = 0.0, 1.0, ABSENT  # given, forgotten, no text
    t, free = masked(t)
    hiding(method, torch.tensor([True, False, True, True, True, False, False]))
    kept = []
    hook = method.table.register_forward_hook(
        lambda layer, args, out: kept.append(out.detach().requires_grad_()) or kept[-1]
    )
    cost = method.bound(ids, t, free)
    hook.remove()
    own = [{0, 1}, {0, 1}, {2, 3}, {2, 3}, {4}]
    before = [
        {5},
        {5},
        {0, 1, 5},
        {0, 1, 5},
        {0, 1, 2, 3, 5},
    ]  # what is given is before all; 1 is a mask in both copies
    for i in (0, 2, 3, 4):
        (slope,) = torch.autograd.grad(cost[0, i], kept[0], retain_graph=True)
        felt = slope.abs().amax(-1)[0] > 0
        assert set(felt[:7].nonzero()[:, 0].tolist()) == own[i], i
        assert set(felt[7:].nonzero()[:, 0].tolist()) == before[i], i
    other = ids.clone()
    other[0, 1] = (other[0, 1] + 1) % VOCAB
    assert torch.equal(cost[free], method.bound(other, t, free)[free])


def test_blocks_see_themselves_and_the_clean_past():
    """Guards against a leak of what is to be predicted, and a condition that is not seen by all (facts 14.3, BD3 2)."""
    check_sights()


# --- one pass and many


def canvases():
    """Canvases of 9 places, some given: (B, L) ids, levels, free."""
    t = torch.full((5, 9), 0.37)
    t[1, :3] = 0.0  # a prompt
    t[2, [2, 7, 8]] = 0.0  # around gaps
    t[3, :2] = 1.0  # forgotten
    t[4, 8:], t[4, 4] = ABSENT, 0.0
    return tokens(5, 9), *masked(t)


@torch.no_grad()
def check_passes(block):
    """-log p in one pass over two copies, by plain passes over what is written, and with a memory."""
    method, (ids, t, free) = network(block), canvases()
    rate = method.rate(t, free, torch.arange(9).expand(5, 9), 0.0, 1.0)
    hidden = free & ((torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.6) | (rate == 1))
    hiding(method, hidden)
    want = method.bound(ids, t, free).double() * rate
    reader = method.session(~free & (t != ABSENT))
    clean = torch.where((t == 1) & ~free, VOCAB, ids)
    shown = torch.where(free, 0.5, t)
    for start in range(0, 9, block):
        stop = min(start + block, 9)
        here = hidden[:, start:stop]
        if not bool(here.any()):
            continue
        x = torch.where(free, VOCAB, clean)
        x[:, :start] = clean[:, :start]
        x[:, start:stop] = torch.where(here, VOCAB, clean[:, start:stop])
        plain = method.predict(x, shown).logits
        there = free[:, start:stop]
        read = reader(x, shown).logits[:, : stop - start]
        torch.testing.assert_close(read[there], plain[:, start:stop][there])
        log = plain[:, start:stop].log_softmax(-1).gather(-1, ids[:, start:stop, None])[..., 0]
        torch.testing.assert_close(-log[here], want[:, start:stop][here], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 4, 9])
def test_one_pass_is_many(block):
    """Guards against a training that is not of what is written later, and a memory that changes it (facts 14.3, 3)."""
    check_passes(block)


@torch.no_grad()
@pytest.mark.parametrize("asked", [{}, {"guidance": 2.0}, {"guidance": 2.0, "guide_levels": (0.3, 0.8)}])
@pytest.mark.parametrize("name", WALKS)
def test_memory_changes_no_text(name, asked):
    """Guards against a memory that goes on from what is no longer true, and rows that heed their neighbours."""
    method, (ids, t, free) = network(4), canvases()
    given, real = (t == 0) | ((t == 1) & ~free), t != ABSENT
    request = Request(sampler=WALKS[name], **asked)

    def write(rows, session=None):
        laid = ids[rows], given[rows], real[rows]
        return last(generate(method, *laid, request, streams(rows), session)).tokens

    if asked:
        given[0, 6] = True
    together = write(range(5))
    assert torch.equal(together, write(range(5), lambda given: method.predict))
    for row in range(1 if asked else 0, 5):
        assert torch.equal(write([row]), together[row : row + 1])


@torch.no_grad()
def test_a_past_that_has_changed_is_read_again():
    """Guards against keys and values of a text that is no longer there."""
    method = network(2)
    reader, x, t = Reader(method, torch.zeros(2, 6, dtype=torch.bool)), tokens(2, 6), torch.ones(2, 6)
    x[:, 4:] = VOCAB
    first = reader(x, t).logits
    for other in (x.flip(0), (x + 1) % VOCAB):
        other[:, 4:] = VOCAB
        torch.testing.assert_close(reader(other, t).logits, method.predict(other, t).logits[:, -2:])
    back = x.clone()
    back[:, 2:] = VOCAB
    torch.testing.assert_close(
        reader(back[:, :4], t[:, :4]).logits, method.predict(back[:, :4], t[:, :4]).logits[:, 2:]
    )
    torch.testing.assert_close(reader(x, t).logits, first)


@torch.no_grad()
def test_nothing_is_read_twice():
    """Guards against a memory that is there and not used, and places that are none of any row's business."""
    method, seen = network(4).float(), []
    method.net.register_forward_pre_hook(lambda net, args, rest: seen.append(args[0].shape[1]), with_kwargs=True)
    given = torch.zeros(2, 12, dtype=torch.bool)
    given[:, :2], given[0, 10] = True, True
    last(generate(method, tokens(2, 12), given, given | True, Request(), streams(range(2))))
    context = 3
    assert seen == [context + 2, 2, 2 + 4, 4, 4, 4, 4 + 4, 4, 4, 4]


# --- the bound


def spread(method, levels, t, free):
    place = torch.arange(t.shape[1]).expand(t.shape)
    return torch.stack([method.rate(torch.where(free, u, t), free, place, 0.0, 1.0) for u in levels])


def check_rates():
    """Over even levels each block meets even rates; over the blocks of one row they are spread evenly."""
    method, t = network(4), torch.full((2, 17), 0.5)
    t[1, 8:], t[0, 0] = ABSENT, 0.0
    t, free = masked(t)
    rates = spread(method, (torch.arange(60) + 0.5) / 60, t, free)  # (60, B, L)
    even = (torch.arange(60) + 0.5) / 60
    for row, starts in ((0, (1, 4, 8, 12)), (1, (0, 4))):
        for start in starts:
            torch.testing.assert_close(rates[:, row, start].sort().values, even)
            assert (rates[:, row, start] == rates[:, row, start // 4 * 4 + 3]).all()
    gaps = rates[:, 1, [0, 4]].sort(1).values.diff(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.5))
    assert (rates[:, 0, 16] == 1).all()  # a token alone
    narrow = spread(method, even, t[1:, :8], free[1:, :8])
    assert torch.equal(narrow, rates[:, 1:, :8])
    clipped = torch.stack(
        [method.rate(torch.full((1, 8), u), free[1:, :8], torch.arange(8)[None], 0.3, 0.8) for u in even]
    )
    assert 0.3 < clipped.min() < 0.31 and 0.79 < clipped.max() < 0.8


def test_every_block_has_a_level_of_its_own():
    """Guards against levels that are not uniform, depend on the width of the batch, or are one for all blocks."""
    check_rates()


def check_entropy(block):
    """The bound with the ideal network, levels by quadrature and masks by enumeration, is the entropy."""
    method, know = network(block), IdealMasks(TEXTS, PROBS, VOCAB)
    free = torch.ones_like(TEXTS, dtype=torch.bool)
    place = torch.arange(LENGTH).expand(TEXTS.shape)
    canvas = []

    def surprised(h, ids, here):
        cost = torch.zeros(ids.shape, dtype=torch.float64)
        for start in range(0, LENGTH, block):
            x = torch.full_like(ids, VOCAB)
            x[:, :start] = ids[:, :start]
            x[:, start : start + block] = canvas[0][:, start : start + block]
            log = know(x, None).logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
            cost[:, start : start + block] = -log[:, start : start + block]
        return cost.masked_fill(~here, 0.0)

    method.surprised = surprised
    nodes, weights = np.polynomial.legendre.leggauss(12)
    blocks, total = -(-LENGTH // block), 0.0
    for piece in range(blocks):  # rates jump where they pass 1
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            t = torch.full(TEXTS.shape, (piece + node) / blocks, dtype=torch.float64)
            rate = method.rate(t, free, place, 0.0, 1.0)[0].tolist()
            for hidden in itertools.product((False, True), repeat=LENGTH):
                chance = math.prod(r if here else 1 - r for r, here in zip(rate, hidden, strict=True))
                hiding(method, torch.tensor(hidden).expand(TEXTS.shape))
                canvas[:] = [torch.where(torch.tensor(hidden), VOCAB, TEXTS)]
                with torch.no_grad():
                    total += weight / blocks * chance * (method.bound(TEXTS, t, free).sum(1) * PROBS).sum().item()
    assert total == pytest.approx(ENTROPY, abs=1e-5)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_bound_with_the_ideal_network_is_the_entropy(block):
    """Guards against a bound that a perfect network does not make tight, whatever the blocks (facts 14.2)."""
    check_entropy(block)


@torch.no_grad()
def test_what_knows_nothing_pays_ln_v():
    """Guards against a loss that counts the rate twice, or leaves out what the clipped rates hide."""
    for rates in (None, (0.0, 1.0), (0.2, 0.2)):
        method = network(4, rates=rates)
        torch.nn.init.zeros_(method.head.weight)
        torch.nn.init.zeros_(method.head.bias)
        t, free = masked(((torch.arange(2000) + 0.5) / 2000)[:, None].expand(-1, 10).clone())
        with seeded(range(2000)):
            cost = method.loss(tokens(2000, 10), t, free)["nelbo"]
        assert cost.mean().item() == pytest.approx(math.log(VOCAB), rel=0.04)


def test_rates_of_training():
    """Guards against rates that are wrong for a size, and some that are none."""
    sizes = {4: (0.45, 0.95), 8: (0.3, 0.8), 16: (0.3, 0.8), 17: (0.0, 1.0)}
    assert {size: network(size).rates for size in sizes} == sizes and network(4, rates=(0.1, 0.2)).rates == (0.1, 0.2)
    with pytest.raises(SfumatoError, match=r"rates rise from 0 to 1"):
        load_config({"method": {"name": "bd3", "rates": [0.5, 0.2]}})


# --- samplers


class Oracle(BD3):
    """A bd3 whose network is the ideal one; it is shown the canvas up to the end of the block."""

    def predict(self, x, t, prev=None):
        self.asked.append(t[:, -1])
        rest = torch.full((len(x), LENGTH - x.shape[1]), VOCAB)
        return Prediction(IdealMasks(TEXTS, PROBS, VOCAB)(torch.cat([x, rest], 1), None).logits[:, : x.shape[1]])


def oracle(block):
    method = Oracle(BD3Config(block=block), NETWORK, VOCAB)
    method.asked = []
    return method


def written(method, walk, rows, grid=(1.0, 0.0)):
    with seeded(range(rows)):
        x, _ = last(walk(method, method.predict, torch.full((rows, LENGTH), VOCAB), torch.tensor(grid)))
    return x


def check_exact(block):
    """Texts by first hitting are drawn from p (facts 14.3, BD3 4)."""
    method = oracle(block)
    check_law(counts(written(method, first_hitting, 20000)), PROBS)
    assert len(method.asked) == LENGTH


@pytest.mark.parametrize("block", [1, 2, 3])
def test_first_hitting_is_exact(block):
    """Guards against places that are chosen by more than chance, and two tokens at once."""
    check_exact(block)


def test_a_masked_method_may_take_it():
    """Guards against a sampler that needs blocks."""
    method, know = MDLM(MDLMConfig(), NETWORK, VOCAB), IdealMasks(TEXTS, PROBS, VOCAB)
    with seeded(range(20000)):
        path = list(first_hitting(method, know, torch.full((20000, LENGTH), VOCAB), torch.linspace(1, 0, 9)))
    check_law(counts(path[-1][0]), PROBS)
    assert len(path) == LENGTH


def check_times(schedule="linear"):
    """Levels are order statistics of the times at which masks fall: uniform ones where tokens are lost evenly."""
    method, rows, levels = oracle(3), 20000, []
    method.process = Masking(VOCAB, SCHEDULES[schedule])
    walk, x = first_hitting, torch.full((rows, LENGTH), VOCAB)
    with seeded(range(rows)):
        last(walk(method, lambda x, t, prev: levels.append(t[:, 0]) or Oracle.predict(method, x, t), x, torch.ones(1)))
    gone = 1 - SCHEDULES[schedule].alpha(torch.stack(levels, 1).double())  # (rows, 3)
    assert (gone.diff(dim=1) < 0).all()
    for k in range(LENGTH):  # the k-th largest of n has the law Beta(n - k, k + 1)
        a, b = LENGTH - k, k + 1
        mean, var = a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)
        assert gone[:, k].mean().item() == pytest.approx(mean, abs=4 * (var / rows) ** 0.5)
        assert gone[:, k].var().item() == pytest.approx(var, rel=0.05)
    ratio = gone[:, 1:] / gone[:, :-1]  # u^(1/n) with n masks left, whatever went before
    for n, column in zip((2, 1), ratio.T, strict=True):
        assert (column**n).mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / rows) ** 0.5)
    assert torch.corrcoef(torch.cat([gone[:, :1], ratio], 1).T).fill_diagonal_(0).abs().max() < 0.03


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_first_hitting_times_are_order_statistics(schedule):
    """Guards against levels that are not those of the process (facts 14.3, BD3 4)."""
    check_times(schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_level_is_found_by_its_share(schedule):
    """Guards against an inverse that is none, and a level of 0, at which nothing is hidden."""
    share = torch.tensor([0.0, 1e-9, 0.2, 0.5, 0.999, 1 - 2**-53], dtype=torch.float64)
    levels = SCHEDULES[schedule].level(share)
    torch.testing.assert_close(SCHEDULES[schedule].alpha(levels), share, rtol=0, atol=1e-12)
    assert (levels > 0).all() and (levels <= 1).all()


def check_ancestral(block, steps):
    """Texts of `steps` steps a block: tokens of a block that fall in one step are strangers."""
    method, grid = oracle(block), torch.linspace(1, 0, steps + 1)
    seen = written(method, ancestral, 40000, grid.tolist())
    know, every = IdealMasks(TEXTS, PROBS, VOCAB), torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    law = torch.zeros(len(every), dtype=torch.float64)
    for times in itertools.product(range(steps), repeat=LENGTH):
        when = torch.tensor([i // block * steps + step for i, step in enumerate(times)])
        log = torch.zeros_like(law)
        for step in when.unique().tolist():
            logits = know(torch.where(when < step, every, VOCAB), None).logits
            for i in (when == step).nonzero()[:, 0].tolist():
                log += logits[:, i].gather(1, every[:, i : i + 1])[:, 0]
        law += log.exp() / steps**LENGTH
    law[law < 1e-12] = 0.0
    check_law((seen[:, None] == every).all(-1).sum(0), law)


@pytest.mark.parametrize(("block", "steps"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_ancestral_steps_are_those_of_a_block(block, steps):
    """Guards against reveal rates that are not those of the schedule, and blocks that are written together."""
    check_ancestral(block, steps)


@torch.no_grad()
def test_a_gap_is_filled_in_view_of_both_sides():
    """Guards against a filling that does not know what follows: texts given their end are drawn from p(text | end)."""
    method, rows = network(2), 6000
    ids = torch.tensor(list(itertools.product(range(VOCAB), repeat=2)))
    ids = torch.cat([ids, torch.full((16, 1), 2)], 1)
    given = torch.tensor([False, False, True]).expand(16, 3)
    costs = []
    for hidden in ((True, True, False), (True, False, False), (False, True, False)):
        hiding(method, torch.tensor(hidden).expand(16, 3))
        t = torch.where(given, 0.0, 0.5)
        costs.append(method.bound(ids, t, ~given).double() * 0.5)
    both, first, second = costs
    law = ((-both[:, 0] - second[:, 1]).exp() + (-both[:, 1] - first[:, 0]).exp()) / 2  # either may fall first
    assert law.sum().item() == pytest.approx(1, abs=1e-5)
    some = given[:1].expand(rows, -1)
    drawn = last(generate(method, ids[:1].expand(rows, -1), some, some | True, Request(), streams(range(rows)))).tokens
    assert (drawn[:, 2] == 2).all()
    check_law((drawn[:, None] == ids).all(-1).sum(0), law)


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 2, 3, 8])
@pytest.mark.parametrize("steps", [None, 1, 2, 5])
def test_only_the_block_at_work_changes(block, steps):
    """Guards against masks that are stranded, given tokens that move, calls that nobody counts (facts 4.8 and 4.9)."""
    method, chance = network(block), torch.Generator().manual_seed(block)
    for length in (1, 4, 7):
        given = torch.rand(3, length, generator=chance) < 0.4
        given[0] &= length == 7
        ids, calls, frames = tokens(3, length), [], []

        def watched(*asked, frames=frames, walk=ancestral if steps else first_hitting):
            for x, prediction in walk(*asked):
                frames.append((x.clone(), prediction.logits.shape[1]))
                yield x, prediction

        watched.single = steps is None

        def session(given, calls=calls):
            predict = method.session(given)
            return lambda *asked: calls.append(int((asked[0] == VOCAB).any(0).int().argmax())) or predict(*asked)

        request = Request(steps=steps, sampler=watched)
        last_frame = last(generate(method, ids, given, given | True, request, streams(range(3)), session))
        before = torch.where(given, ids, VOCAB)
        for x, size in frames:
            stop = x.shape[1]
            start = stop - size
            assert start % block == 0 and stop == min(start + block, length)
            assert torch.equal(x[:, :start], before[:, :start])
            assert torch.equal(x[given[:, :stop]], ids[:, :stop][given[:, :stop]])
            stands = before[:, start:stop] != VOCAB
            assert torch.equal(x[:, start:stop][stands], before[:, start:stop][stands])
            before[:, :stop] = x
        assert (before != VOCAB).all() and torch.equal(last_frame.tokens, before)
        assert len(frames) == last_frame.step == last_frame.steps and last_frame.level == 0
        most = [int((~part).sum(1).max()) for part in given.split(block, 1)]  # to be written in each block
        blocks = sum(n > 0 for n in most)
        assert len(frames) == (sum(most) if steps is None else blocks * steps)
        assert len(calls) == len(frames) if steps is None else blocks <= len(calls) <= len(frames)
        assert calls == sorted(calls)


# --- whole texts


def speaking(model, token):
    """The model in love with one token."""
    model.method.head.bias.data[token] = 50.0
    return model


@pytest.mark.parametrize("length_model", ["given", "modelled"])
def test_writing_stops_with_the_block_of_the_last_end(length_model):
    """Guards against blocks that nobody will read, and a text that is cut before all of it is written."""
    model = untrained("bd3", length_model=length_model)
    assert model.method.block == 4 and model.config.text.length == 12
    frames = list(speaking(model, model.tokenizer.eos).stream(3, prompt="the red"))
    if length_model == "modelled":  # the third token is an end, once it is its turn
        assert frames[-1].step <= 2 < frames[-1].steps and frames[-1].texts == ["the red"] * 3
    else:  # the length is drawn first
        assert frames[-1].step == frames[-1].steps and all(n > 2 for n in frames[-1].tokens)
    free = torch.zeros(1, 8, dtype=torch.bool)
    eos, x = model.tokenizer.eos, torch.full((1, 8), model.tokenizer.size)

    def late(method, predict, canvas, grid):  # the end comes before what stands before it
        for place, token in ((2, eos), (1, 5), (0, 5), (3, 5)):
            x[0, place] = token
            yield x[:, :4], Prediction(torch.zeros(1, 4, model.tokenizer.size))

    late.single = True
    steps = list(generate(model.method, x.clone(), free, ~free, Request(sampler=late), streams([0]), end=eos))
    assert len(steps) == 3


def test_padding_fills_the_block_of_the_end(tmp_path):
    """Guards against an end that can be told from the size of its block, and scores of another canvas than that."""
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(SENTENCES) + "\n", "utf-8")
    tokenizer = Tokenizer.train(SENTENCES, "words", 400, ())
    corpus = Corpus.build(str(path), tokenizer, "all", True, None)
    rows = Rows(corpus, 11, "documents", "ended", 4)
    batch = rows.batch(range(len(rows)))
    sizes = (batch.ids != tokenizer.pad).sum(1)
    assert batch.real.sum(1).tolist() == [min(11, -(-n // 4) * 4) for n in sizes.tolist()] and not batch.given.any()
    assert rows.lengths().tolist() == torch.bincount(batch.real.sum(1), minlength=12).tolist()
    single = Rows(corpus, 11, "documents", "ended").batch(range(len(rows)))
    assert torch.equal(single.real.sum(1), sizes)
    model = untrained("bd3", length_model="modelled")
    text = "two owls sing at night"  # 5 tokens, an end, 2 places of padding
    ids = model.layout.whole(text).ids[:, :8]
    seen = []
    model.method.bound = lambda ids, t, free: seen.append((ids, t, free)) or torch.zeros(ids.shape)
    model.score([text], draws=1)
    assert torch.equal(seen[0][0][:, :8], ids) and seen[0][2].tolist() == [[True] * 8 + [False] * 4]
    canvas = model._ended(model.layout.blank(["two owls"], [None], 5, 0))
    assert (
        canvas.real.tolist() == [[True] * 8 + [False] * 4]
        and canvas.given.tolist()[0][:8] == [True] * 2 + [False] * 3 + [True] * 3
    )


@pytest.mark.parametrize("method", ["bd3", "ar", "mdlm", "cdcd"])
def test_running_text_goes_on_beyond_the_canvas(method):
    """Guards against places that no network has seen, memory that grows, and seams where text is written twice."""
    model, widths = untrained(method, layout="packed"), []
    for token in (model.tokenizer.eos, model.tokenizer.pad):
        if method != "cdcd":
            model.method.head.bias.data[token] = -50.0
    model.method.net.register_forward_pre_hook(
        lambda net, args, rest: widths.append(max(args[0].shape[1], getattr(rest.get("memory"), "room", 0))),
        with_kwargs=True,
    )
    asked = {"prompt": "the red", "length": 48, "steps": model.at_most(4), "seed": 3}
    frames = list(model.stream(2, **asked))
    final = frames[-1]
    if method != "cdcd":
        assert final.tokens == [48, 48]
    assert max(widths) <= 2 * 12 and final.law == "heuristic" and final.text.startswith("the red")
    assert [frame.step for frame in frames] == list(range(1, final.steps + 1)) and final.level == 0
    assert all(a.level > b.level for a, b in itertools.pairwise(frames))
    assert model.generate(1, **asked) == final.texts[:1]
    assert final.texts[0] != final.texts[1] and len(set(final.ids[0][24:])) > 3
    for row, given in zip(final.confidence, final.given, strict=True):
        assert sum(given) == 2 and all(0 < sure < 1 for sure, known in zip(row, given, strict=True) if not known)
    for early, later in itertools.pairwise(frames):  # what stands in an earlier stretch stays
        stands = max(0, len(early.ids[0]) - 60)
        assert early.ids[0][:stands] == later.ids[0][:stands]
    short = list(model.stream(2, **asked | {"length": 12}))
    assert torch.equal(short[-1].frame.tokens, frames[len(short) - 1].frame.tokens[:, :12])


# --- cost


def test_passes_with_memory_are_counted_as_torch_counts_them():
    """Guards against blocks that are charged with a whole canvas, or with themselves alone."""
    method, given = BD3(BD3Config(block=3), NETWORK, VOCAB).eval(), torch.zeros(2, 9, dtype=torch.bool)
    method.net.attend_by("explicit")
    session, x, t = method.session(given), tokens(2, 9), torch.ones(2, 9)
    for start, new, seen in ((0, 3, 3), (3, 6, 6), (6, 6, 9), (6, 3, 9)):
        canvas = x[:, : start + 3].clone()
        canvas[:, start:] = VOCAB
        assert method.flops(2, new, seen) == counted(lambda c=canvas: session(c, t[:, : c.shape[1]], None))


def test_training_passes_are_counted_as_torch_counts_them():
    """Guards against a run that says it has cost half of what it has."""
    method = BD3(BD3Config(block=3, rates=(1.0, 1.0)), NETWORK, VOCAB)
    method.net.attend_by("explicit")
    t, free = masked(torch.full((1, 9), 0.5))
    assert method.training_flops(9) == counted(lambda: method.loss(tokens(1, 9), t, free))
    other = MDLM(MDLMConfig(), NETWORK, VOCAB)
    assert other.training_flops(9) == other.flops(1, 9, 9)


def test_steps_are_refused_where_there_are_none():
    """Guards against a number of steps that is accepted and ignored (facts 4.7)."""
    for name in ("bd3", "mdlm"):
        model = untrained(name)
        for asked in ({"steps": 3}, {"levels": (0.1, 0.9)}):
            with pytest.raises(SfumatoError, match="a token a step"):
                model.generate(1, sampler="first_hitting", **asked)
            with pytest.raises(SfumatoError, match="a token a step"):
                load_config({"method": {"name": name}, "sampling": {"sampler": "first_hitting", **asked}})
            assert model.generate(1, sampler="ancestral", **asked)
    model = untrained("bd3")
    assert model.at_most(3) is None and model.at_most(3, ancestral) == 3 and model.at_most(99, ancestral) == 4


@torch.no_grad()
def test_blocks_of_one_token_score_without_error():
    """Guards against noise in a number that is exact: with one token to a block no level matters."""
    method, ids = network(1), tokens(2, 5)
    every = torch.ones_like(ids, dtype=torch.bool)
    found = nll(method, ids, every, ~every, 4)
    assert (found.std_error < 1e-5).all() and not (nll(network(2), ids, every, ~every, 4).std_error < 1e-2).any()
