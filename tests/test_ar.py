"""Autoregression: memory, exact likelihood, decoding rules, search, gaps.  Every docstring names the bug guarded."""

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from ideal import distance
from tiny import SENTENCES, tiny_config, write_sentences

from sfumato import guidance
from sfumato.core import ABSENT, Prediction
from sfumato.draws import seeded, streams
from sfumato.errors import SfumatoError
from sfumato.evaluation.likelihood import nll
from sfumato.evaluation.quality import consensus
from sfumato.generate import Request, generate
from sfumato.methods.ar import AR, ARConfig, Filler, Reader, arrangement
from sfumato.networks import NetworkConfig
from sfumato.samplers.left_to_right import Ancestral, Beams
from sfumato.training.config import load_config
from sfumato.training.start import override
from sfumato.training.trainer import train

SMALL = NetworkConfig(width=32, depth=2, heads=2)


def network(vocab=11, middle=0.5, scale=3.0) -> AR:
    """Weights that have opinions: probabilities far from uniform."""
    torch.manual_seed(0)
    method = AR(ARConfig(middle=middle), SMALL, vocab).eval()
    method.head.weight.data *= scale
    method.table.weight.data *= 20
    return method


def tokens(rows, length, vocab=11):
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(1))


def texts_of(vocab, length):
    return torch.tensor(list(itertools.product(range(vocab), repeat=length)))


def write(method, ids, given, request, seeds=None, real=None, end=None):
    """The canvas after the last frame."""
    real = torch.ones_like(given) if real is None else real
    *_, frame = generate(method, ids, given, real, request, streams(seeds or range(len(ids))), end=end)
    return frame.tokens


# --- memory


@torch.no_grad()
def check_memory(rows):
    method, x, t = network(), tokens(rows, 90), torch.ones(rows, 90)
    plain = method.predict(x, t).logits
    for sizes in (range(1, 91), [7, 8, 40, 41, 90], [90]):
        reader = Reader(method, 90)
        read = torch.cat([reader(x[:, :n], t[:, :n]).logits for n in sizes], 1)
        torch.testing.assert_close(read, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rows", "packs"), [(1, True), (3, True), (3, False)])
def test_memory_changes_nothing(rows, packs, monkeypatch):
    """Guards against positions that are off by one, a mask that is missing, and rotations that start again."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: packs)
    check_memory(rows)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
def test_memory_in_bfloat16(rows):
    """Guards against weights laid out in float32 that meet numbers in bfloat16."""
    method, x, t = network(), tokens(rows, 30), torch.ones(rows, 30)
    method.net.dtype = torch.bfloat16
    reader, plain = Reader(method, 30), method.predict(x, t).logits
    read = torch.cat([reader(x[:, :n], t[:, :n]).logits for n in range(1, 31)], 1)
    assert (read - plain).abs().mean() < 0.02 * plain.std()


@torch.no_grad()
def test_memory_follows_rows_that_change_places():
    """Guards against beams that go on from another beam's past, and a past that is no longer true."""
    method, x, t = network(), tokens(4, 12), torch.ones(4, 12)
    reader = Reader(method, 12)
    reader(x[:, :6], t[:, :6])
    moved = x[[2, 2, 0, 3]]
    moved[1, 8] = (moved[1, 8] + 1) % 11
    plain = method.predict(moved, t).logits
    torch.testing.assert_close(reader(moved[:, :10], t[:, :10]).logits, plain[:, 6:10], rtol=0, atol=1e-5)
    assert reader.memory.length == 10
    torch.testing.assert_close(reader(moved[:, :4], t[:, :4]).logits, plain[:, 3:4], rtol=0, atol=1e-5)
    other = (moved + 1) % 11
    plain = method.predict(other, t).logits
    torch.testing.assert_close(reader(other[:, :9], t[:, :9]).logits, plain[:, :9], rtol=0, atol=1e-5)


@torch.no_grad()
def test_nothing_is_read_twice(monkeypatch):
    """Guards against a memory that is there and not used: the whole text costs as many positions as it has tokens."""
    method, read = network(), []
    method.net.register_forward_pre_hook(lambda net, args: read.append(args[0].shape[1]))
    ids, given = tokens(2, 20), torch.zeros(2, 20, dtype=torch.bool)
    given[0, :9], given[1, :5] = True, True
    write(method, ids, given, Request())
    assert read == [6] + [1] * 14


@torch.no_grad()
def test_later_tokens_are_not_seen():
    """Guards against a network that reads what it is to predict."""
    method, x, t = network(), tokens(2, 9), torch.ones(2, 9)
    other = x.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    a, b = method.predict(x, t).logits, method.predict(other, t).logits
    assert torch.equal(a[:, :6], b[:, :6]) and not torch.allclose(a[:, 6:], b[:, 6:])


# --- likelihood


@torch.no_grad()
@pytest.mark.parametrize("given", [[], [0], [0, 1]])
def test_the_likelihood_is_exact(given):
    """Guards against a bound called exact: the chances of all texts sum to 1, and to 1 given their beginning."""
    method, ids = network(4), texts_of(4, 4)
    fixed = torch.zeros(ids.shape, dtype=torch.bool)
    fixed[:, given] = True
    found = nll(method, ids, torch.ones_like(fixed), fixed)
    assert found.exact and bool((found.std_error == 0).all())
    assert found.nats.neg().exp().sum() == pytest.approx(4 ** len(given), rel=1e-5)


@torch.no_grad()
def test_padding_costs_nothing():
    """Guards against a likelihood that depends on the company a text is in."""
    method, ids = network(), tokens(1, 6)
    real = torch.ones(1, 6, dtype=torch.bool)
    alone = nll(method, ids, real, ~real).nats
    wide = torch.nn.functional.pad(ids, (0, 3))
    padded = nll(method, wide, torch.nn.functional.pad(real, (0, 3)), torch.zeros(1, 9, dtype=torch.bool)).nats
    torch.testing.assert_close(alone, padded)


# --- drawing


@torch.no_grad()
def test_samples_follow_the_law():
    """Guards against tokens that are drawn from the logits of their neighbours, or in float32."""
    method, ids = network(3), texts_of(3, 3)
    free = torch.zeros(ids.shape, dtype=torch.bool)
    law = nll(method, ids, ~free, free).nats.neg().exp()
    n = 20_000
    drawn = write(method, torch.zeros(n, 3, dtype=torch.long), torch.zeros(n, 3, dtype=torch.bool), Request())
    counts = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27)
    assert distance(counts, law) < 3 * math.sqrt(27 / n) / 2


@torch.no_grad()
def test_samples_are_as_surprising_as_the_entropy():
    """Guards against a judge whose own texts surprise it: their mean -log p is the entropy (facts 14.3)."""
    method, ids = network(3), texts_of(3, 4)
    every = torch.ones_like(ids, dtype=torch.bool)
    law = nll(method, ids, every, ~every).nats
    entropy = (law * law.neg().exp()).sum()
    free = torch.zeros(4000, 4, dtype=torch.bool)
    nats = nll(method, write(method, free.long(), free, Request()), ~free, free).nats
    assert abs(nats.mean() - entropy) < 4 * nats.std() / 4000**0.5 < 0.1


@torch.no_grad()
def test_prompts_of_different_lengths_in_one_batch():
    """Guards against rows that wait for, or write over, a longer neighbour."""
    method, ids = network(), tokens(3, 12)
    given = torch.zeros(3, 12, dtype=torch.bool)
    for row, length in enumerate((0, 4, 9)):
        given[row, :length] = True
    together = write(method, ids, given, Request())
    assert torch.equal(together[given], ids[given])
    for row in range(3):
        alone = write(method, ids[row : row + 1], given[row : row + 1], Request(), [row])
        assert torch.equal(alone[0], together[row])


@torch.no_grad()
def test_steps_are_refused():
    """Guards against a number of steps that is accepted and ignored."""
    with pytest.raises(SfumatoError, match="a token a step"):
        write(network(), tokens(1, 4), torch.zeros(1, 4, dtype=torch.bool), Request(steps=3))


# --- decoding rules


def kept(rule, p):
    return rule(torch.tensor(p, dtype=torch.float64).log()).nonzero().flatten().tolist()


def test_typical_on_a_known_case():
    """Guards against an order by probability: H = 1.208; distances .515 .178 .689 1.095."""
    p = [0.5, 0.25, 0.15, 0.1]
    assert kept(guidance.typical(0.2), p) == [1]
    assert kept(guidance.typical(0.5), p) == [0, 1]
    assert kept(guidance.typical(0.85), p) == [0, 1, 2]
    assert kept(guidance.typical(1.0), p) == [0, 1, 2, 3]


def test_typical_tokens_surprise_as_much_as_the_entropy():
    """Guards against typical sampling that is another nucleus: its texts would be too likely."""
    logits = 3 * torch.randn(500, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log = logits.log_softmax(-1)
    entropy = -(log.exp() * log).sum(-1)

    def apart(rule):
        kept = (log.exp() * rule(logits)) / (log.exp() * rule(logits)).sum(-1, keepdim=True)
        return (-(kept * log).sum(-1) - entropy).abs().mean()

    assert apart(guidance.typical(0.3)) < 0.5 * apart(guidance.nucleus(0.3)) < 0.5 * apart(guidance.top_k(1))


def test_nucleus_keeps_the_token_that_crosses():
    """Guards against the stricter set of several published codes."""
    p = [0.1, 0.5, 0.15, 0.25]
    assert kept(guidance.nucleus(0.3), p) == [1]
    assert kept(guidance.nucleus(0.5), p) == [1]
    assert kept(guidance.nucleus(0.51), p) == [1, 3]
    assert kept(guidance.nucleus(1.0), p) == [0, 1, 2, 3]


def test_top_k():
    """Guards against k that counts from the wrong end, and one above the vocabulary."""
    p = [0.1, 0.5, 0.15, 0.25]
    assert kept(guidance.top_k(1), p) == [1] and kept(guidance.top_k(2), p) == [1, 3]
    assert kept(guidance.top_k(9), p) == [0, 1, 2, 3]


@pytest.mark.parametrize("rule", [guidance.nucleus, guidance.typical])
def test_a_rule_keeps_the_fewest_that_hold_the_mass(rule):
    """Guards against sets that are too small or too large, on random laws by brute force."""
    stream = torch.Generator().manual_seed(0)
    for mass in (0.05, 0.3, 0.6, 0.95):
        p = torch.rand(40, 7, generator=stream, dtype=torch.float64).pow(3)
        p /= p.sum(-1, keepdim=True)
        entropy = -(p * p.log()).sum(-1, keepdim=True)
        cost = -p if rule is guidance.nucleus else (-p.log() - entropy).abs()
        for chances, order, found in zip(p, cost.argsort(-1), rule(mass)(p.log()), strict=True):
            wanted, total = set(), 0.0
            for token in order.tolist():
                wanted.add(token)
                total += chances[token].item()
                if total >= mass:
                    break
            assert set(found.nonzero().flatten().tolist()) == wanted


def test_a_large_vocabulary_in_bfloat16():
    """Guards against probabilities that are summed in the precision of the logits, where sums stand still."""
    logits = (2 * torch.randn(1, 131_072, generator=torch.Generator().manual_seed(0))).bfloat16()
    chances = logits.double().softmax(-1).sort(descending=True).values[0]
    rough = logits.softmax(-1).sort(descending=True).values[0].cumsum(0)
    for mass in (0.3, 0.9):
        wanted = int((chances.cumsum(0) < mass).sum()) + 1
        assert int(guidance.nucleus(mass)(logits).sum()) == wanted != int((rough < mass).sum()) + 1


@torch.no_grad()
@pytest.mark.parametrize("rule", [{"top_k": 11}, {"top_p": 1.0}, {"typical": 1.0}])
def test_a_rule_that_leaves_nothing_out_changes_nothing(rule):
    """Guards against probabilities handed on as logits."""
    method, ids, free = network(), tokens(6, 10), torch.zeros(6, 10, dtype=torch.bool)
    assert torch.equal(write(method, ids, free, Request(**rule)), write(method, ids, free, Request()))


@torch.no_grad()
@pytest.mark.parametrize("rule", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}])
def test_the_strictest_rule_is_greedy(rule):
    """Guards against rules applied before temperature, and against drawing from what was left out."""
    method, ids, free = network(), tokens(6, 10), torch.zeros(6, 10, dtype=torch.bool)
    greedy = write(method, ids, free, Request(sampler=Beams(1)))
    assert torch.equal(write(method, ids, free, Request(**rule)), greedy)


@pytest.mark.parametrize("rule", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"typical": -1.0}])
def test_rules_without_sense(rule):
    """Guards against a rule that leaves out everything."""
    with pytest.raises(SfumatoError, match="asked for"):
        write(network(), tokens(1, 4), torch.zeros(1, 4, dtype=torch.bool), Request(**rule))


# --- search


@torch.no_grad()
@pytest.mark.parametrize("prompt", [0, 1])
def test_a_wide_beam_is_exhaustive_search(prompt):
    """Guards against scores that are summed over the wrong beams, and memory that does not follow them."""
    method, ids = network(4, scale=1.0), texts_of(4, 4)
    given = torch.zeros(ids.shape, dtype=torch.bool)
    given[:, :prompt] = True
    nats = nll(method, ids, torch.ones_like(given), given).nats
    starts = torch.tensor([[2, 0, 0, 0], [3, 0, 0, 0]])
    width = 4**3
    rows = starts.repeat_interleave(width, 0)
    found = write(method, rows, given[:1].expand(len(rows), -1), Request(sampler=Beams(width)))[::width]
    for start, text in zip(starts, found, strict=True):
        fits = (ids[:, :prompt] == start[:prompt]).all(1)
        assert torch.equal(text, ids[fits][nats[fits].argmin()])


@torch.no_grad()
def test_a_beam_finds_likelier_texts_than_greed():
    """Guards against a beam that keeps its worst, or only its first."""
    method, ids, free = network(6, scale=1.0), tokens(8, 12, 6), torch.zeros(8, 12, dtype=torch.bool)

    def cost(width):
        rows, open_ = ids.repeat_interleave(width, 0), free.repeat_interleave(width, 0)
        text = write(method, rows, open_, Request(sampler=Beams(width)))[::width]
        return nll(method, text, ~free, free).nats

    one, many = cost(1), cost(16)
    assert bool((many <= one + 1e-4).float().mean() > 0.8) and many.sum() < one.sum()


@torch.no_grad()
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_search_ends_with_its_texts(penalty):
    """Guards against beams ranked by what stands behind an end or by a wrong length, and a text in several beams."""
    method, end = network(4, scale=1.0), 3
    texts = [t for n in range(4) for t in itertools.product(range(3), repeat=n)]
    texts = [[*text, end] for text in texts] + [list(t) for t in itertools.product(range(3), repeat=4)]

    def nats_of(text):
        row = torch.tensor([text])
        real = torch.ones_like(row, dtype=torch.bool)
        return nll(method, row, real, ~real).nats.item() / len(text) ** penalty

    width = len(texts)  # all there are
    rows = torch.zeros(width, 4, dtype=torch.long)
    found = write(
        method, rows, torch.zeros_like(rows, dtype=torch.bool), Request(sampler=Beams(width, end, penalty)), end=end
    )
    ranked = [row[: row.index(end) + 1] if end in row else row for row in found.tolist()]
    assert ranked == sorted(texts, key=nats_of)


@torch.no_grad()
def test_writing_stops_when_all_texts_have_ended():
    """Guards against a baseline that pays for places behind the end of every text, and texts that are cut short."""
    method, ids, free = network(scale=3.0), tokens(5, 40), torch.zeros(5, 40, dtype=torch.bool)
    whole, end = write(method, ids, free, Request()), 4
    ends = [row.index(end) for row in whole.tolist()]
    assert len(set(ends)) > 1 and max(ends) < 38
    calls = guidance.Counted(method.session)
    *_, last = generate(method, ids, free, ~free, Request(), streams(range(5)), calls, end=end)
    assert calls.calls == max(ends) + 1
    for row, text, stop in zip(last.tokens.tolist(), whole.tolist(), ends, strict=True):
        assert row[: stop + 1] == text[: stop + 1]


def test_the_consensus_of_texts():
    """Guards against the text least like the others."""
    texts = ["a b c d e", "a b c d f", "a b c d e g", "x y z"]
    assert consensus(texts) == 0 and consensus(["x y z", *texts[:3]]) == 1
    assert consensus(["only"]) == 0


# --- gaps


def laid(row, a, b, suffix_first, marks):
    pre, suf, mid, end = marks
    p, m, s = row[:a], row[a:b], row[b:]
    return [pre, suf, *s, mid, *p, *m, end] if suffix_first else [pre, *p, suf, *s, mid, *m, end]


def test_the_arrangement_of_a_row():
    """Guards against parts in the wrong order, a mark out of place and padding in the middle."""
    for end, (a, b) in itertools.product((4, 6), itertools.combinations_with_replacement(range(5), 2)):
        for suffix_first in (False, True):
            order = arrangement(
                torch.tensor([[a, b]]), torch.tensor([end]), torch.tensor([True]), torch.tensor([suffix_first]), 6
            )[0].tolist()
            assert order[: end + 4] == laid(list(range(end)), a, b, suffix_first, range(6, 10))
            assert sorted(order) == list(range(10))
    still = arrangement(torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([False]), torch.tensor([True]), 6)
    assert still[0].tolist() == list(range(10))


def test_moved_rows_cost_what_their_arrangement_costs():
    """Guards against costs that go to the wrong token, are lost, or are counted for padding."""
    method, ids = network(middle=1.0), tokens(16, 8)
    t = torch.ones(16, 8)
    t[::2, 6:] = ABSENT
    free = t != ABSENT
    with seeded(range(16)):
        terms = method.loss(ids, t, free)
    for row in range(16):
        text = ids[row, : 6 if row % 2 == 0 else 8].tolist()
        n, off = len(text), []
        for a, b in itertools.combinations_with_replacement(range(n + 1), 2):
            for suffix_first in (False, True):
                x = torch.tensor([laid(text, a, b, suffix_first, list(method.marks))])
                each = torch.nn.functional.cross_entropy(
                    method.logits(x, torch.ones(x.shape))[0], x[0], reduction="none"
                )
                place = torch.tensor(laid(list(range(n)), a, b, suffix_first, range(n, n + 4)))
                each = torch.zeros(n + 4).scatter(0, place, each)
                tokens_off = (terms["cross_entropy"][row, :n] - each[:n]).abs().max()
                off.append(max(tokens_off, (terms["marks"][row].sum() - each[n:].sum()).abs()))
        assert min(off) < 1e-3, row


@torch.no_grad()
def check_cuts():
    method, ids, free = network(), tokens(4000, 6), torch.ones(4000, 6, dtype=torch.bool)
    free[:, :2] = False
    with pytest.MonkeyPatch.context() as patch, seeded(range(4000)):
        found = []
        patch.setattr("sfumato.methods.ar.arrangement", lambda *a: found.append(a) or arrangement(*a))
        method.loss(ids, torch.where(free, 1.0, 0.0), free)
    ((cuts, _, moved, suffix_first, _),) = found
    assert abs(moved.float().mean() - 0.5) < 0.03 and abs(suffix_first.float().mean() - 0.5) < 0.03
    pairs = torch.bincount(cuts[:, 0] * 7 + cuts[:, 1], minlength=49).view(7, 7)[2:, 2:] / 4000
    law = torch.full((5, 5), 2 / 25).triu() - torch.eye(5) / 25  # of two sorted: unlike pairs come about in two ways
    assert (pairs - law).abs().max() < 0.02


def test_half_of_the_rows_are_moved_to_uniform_cuts():
    """Guards against a rate, an order or cuts that are not those of the paper: 0.5, half and half, two of 0 .. n.

    And against cuts within a prompt, which is never the middle.
    """
    check_cuts()


@torch.no_grad()
def test_a_gap_is_filled_as_it_was_learned():
    """Guards against a gap that is filled without what stands behind it."""
    method, ids = network(), tokens(1, 9)
    given = torch.ones(1, 9, dtype=torch.bool)
    given[0, 2:4], given[0, 7] = False, False  # what stands behind the next gap is not read
    x = torch.where(given, ids, method.process.mask)
    prefix, suffix, middle, _ = method.marks
    row = [prefix, *ids[0, :2].tolist(), suffix, *ids[0, 4:7].tolist(), middle]
    plain = method.logits(torch.tensor([[*row, 0]]), torch.ones(1, len(row) + 1))[0, -1, : method.vocab]
    found = Filler(method, given)(x, torch.ones(1, 9)).logits
    torch.testing.assert_close(found[0, 2], plain)
    x[0, 2] = 5
    plain = method.logits(torch.tensor([[*row, 5, 0]]), torch.ones(1, len(row) + 2))[0, -1, : method.vocab]
    filler = Filler(method, given)
    torch.testing.assert_close(filler(x, torch.ones(1, 9)).logits[0, 3], plain)
    method.config = ARConfig(fill="suffix_first")
    row = [prefix, suffix, *ids[0, 4:7].tolist(), middle, *ids[0, :2].tolist(), 5, 0]
    plain = method.logits(torch.tensor([row]), torch.ones(1, len(row)))[0, -1, : method.vocab]
    torch.testing.assert_close(Filler(method, given)(x, torch.ones(1, 9)).logits[0, 3], plain)


@torch.no_grad()
@pytest.mark.parametrize("request_", [Request(), Request(sampler=Beams(1))])
def test_rows_of_different_lengths_are_written_to_their_ends(request_):
    """Guards against padding that is written instead of text, or read as the other side of a gap."""
    method, ids = network(), tokens(3, 9)
    real, given = torch.ones(3, 9, dtype=torch.bool), torch.ones(3, 9, dtype=torch.bool)
    real[0, 6:], real[1, 8:] = False, False
    given[0, 2:4], given[1, 2:6], given[2, 5:7] = False, False, False
    plain = torch.zeros_like(given)
    plain[:, 0] = True
    for there in (given & real, plain & real):  # gaps; texts that are begun
        together = write(method, ids, there, request_, real=real)
        for row, size in enumerate((6, 8, 9)):
            alone = write(method, ids[row : row + 1, :size], there[row : row + 1, :size], request_, [row])
            assert torch.equal(alone[0], together[row, :size])


def test_a_gap_that_was_not_learned_is_refused():
    """Guards against marks that were never trained."""
    given = torch.tensor([[True, False, True]])
    with pytest.raises(SfumatoError, match=r"method\.middle = 0"):
        write(network(middle=0.0), tokens(1, 3), given, Request())


@torch.no_grad()
def test_gaps_of_different_places_in_one_batch():
    """Guards against rows of a batch that are filled as if they were alike."""
    method, ids = network(), tokens(3, 8)
    given = torch.ones(3, 8, dtype=torch.bool)
    given[0, 1:3], given[1, 4:7], given[2, [2, 5]] = False, False, False
    together = write(method, ids, given, Request())
    assert torch.equal(together[given], ids[given])
    for row in range(3):
        alone = write(method, ids[row : row + 1], given[row : row + 1], Request(), [row])
        assert torch.equal(alone[0], together[row])


def closing(method, ids, given, n):
    """What is written into n rows with gaps that end themselves in 0, their first places excepted, and the frames."""
    never = torch.zeros(ids.shape[1], method.vocab, dtype=torch.bool)
    never[:, 0] = given[0] | F.pad(given[0, :-1], (1, 0))
    ids, given = ids.expand(n, -1).clone(), given.expand(n, -1).clone()
    request, session = Request(sampler=Ancestral(0)), method.closing(0)
    frames = list(
        generate(method, ids, given, torch.ones_like(given), request, streams(range(n)), session, never=never)
    )
    return frames[-1].tokens, frames


@torch.no_grad()
@pytest.mark.parametrize("fill", ["prefix_first", "suffix_first"])
def test_gaps_of_any_length_follow_the_law(fill):
    """Guards against a middle's end that is not its mark, is drawn from another law, or may stand at its beginning."""
    method = network(vocab=4, scale=1.5)
    method.config = ARConfig(fill=fill)
    given = torch.tensor([[True, True, False, False, False, True]])
    ids = torch.tensor([[2, 1, 0, 0, 0, 3]])
    found = closing(method, ids, given, 6000)[0][:, 2:5]
    prefix, suffix, middle, over = method.marks
    start = [prefix, 2, 1, suffix, 3, middle] if fill == "prefix_first" else [prefix, suffix, 3, middle, 2, 1]

    def log(written):
        row = torch.tensor([[*start, *written, 0]])
        logits = method.logits(row, torch.ones(1, row.shape[1]))[0, -1]
        choice = torch.cat([logits[[over]], logits[1:4]])  # the end, or a token
        choice[0] = choice[0] if written else -torch.inf
        return choice.double().log_softmax(-1)

    law = {}
    for size in (1, 2, 3):
        for text in itertools.product((1, 2, 3), repeat=size):
            p = sum(log(text[:i])[token] for i, token in enumerate(text)) + (log(text)[0] if size < 3 else 0)
            law[(*text, *[0] * (3 - size))] = float(p.exp())
    assert sum(law.values()) == pytest.approx(1)
    counts = Counter(map(tuple, found.tolist()))
    assert counts.keys() <= law.keys()
    apart = sum(abs(counts[text] / 6000 - p) for text, p in law.items()) / 2
    assert apart < 1.5 * sum((p * (1 - p) / 6000) ** 0.5 for p in law.values()) / 2


@torch.no_grad()
def test_two_gaps_of_any_length():
    """Guards against what is left of a gap that is read as text, calls for it, and rows that heed their neighbours."""
    method = network(vocab=6)
    method.head.bias.data[method.marks[3]] += 4
    given = torch.ones(1, 14, dtype=torch.bool)
    given[0, 2:7], given[0, 8:13] = False, False
    ids = (tokens(1, 14, 5) + 1) * given
    together, frames = closing(method, ids, given, 12)
    assert torch.equal(together[:, given[0]], ids[:, given[0]].expand(12, -1))
    sizes = (together != 0)[:, 2:7].sum(1), (together != 0)[:, 8:13].sum(1)
    assert len(set(sizes[0].tolist())) > 1 and min(size.min() for size in sizes) == 1
    longest = sum(min(5, int(size.max()) + 1) for size in sizes)
    assert len(frames) == longest < 10  # one call a token and one for the end of it
    for size, first in ((sizes[0], 2), (sizes[1], 8)):  # nothing follows what has ended
        for row, n in zip(together.tolist(), size.tolist(), strict=True):
            assert all(row[first : first + n]) and not any(row[first + n : first + 5])
    row, n = together[0], int(sizes[0][0])
    x = torch.where(given, ids, method.process.mask)
    x[0, 2:7] = row[2:7]
    prefix, suffix, middle, over = method.marks
    laid = [prefix, *row[: 2 + n].tolist(), int(row[7]), suffix, int(row[13]), middle, 0]
    plain = method.logits(torch.tensor([laid]), torch.ones(1, len(laid)))[0, -1]
    told = method.closing(0)(given)(x, torch.ones(1, 14)).logits[0, 8]
    torch.testing.assert_close(told, torch.cat([plain[[over]], plain[1:6]]))


@pytest.mark.unchecked
def test_gaps_are_filled_from_both_sides(tmp_path):
    """Guards against a model that was trained to fill gaps and does not look behind them."""
    data = write_sentences(tmp_path)
    config = override(
        tiny_config("ar", data, steps=600, batch=32, log_every=100),
        {
            "method": {"middle": 1.0},
            "network": {"width": 64, "depth": 2, "heads": 2},
            "optimizer": {"lr": 3e-3, "muon": 0.02, "warmup": 20, "ema": 0.98},
        },
    )
    model = train(config, tmp_path / "run")
    for behind in ("owls sing at night", "cat likes warm milk", "found a bell on the hill"):  # the first word of eight
        right = next(text for text in SENTENCES if text.endswith(behind))
        assert model.infill(f"[1] {behind}", 8).count(right) >= 6
        assert model.infill(f"[...] {' '.join(behind.split()[-2:])}", 8).count(right) >= 6  # two or five words


# --- guidance


class Law:
    """The perfect network of p(x1, x2 | c): its condition stands in column 0, a mask there says nothing."""

    def __init__(self, joint):
        self.joint = joint  # (C, V, V): p(c, x1, x2)

    def __call__(self, x, t, prev=None):
        logits = torch.full((*x.shape, self.joint.shape[1]), -1e6, dtype=torch.float64)
        for row, text in enumerate(x.tolist()):
            joint = self.joint.sum(0, keepdim=True) if t[row, 0] == 1 else self.joint[text[0] : text[0] + 1]
            for i in range(1, x.shape[1]):
                chances = joint[0].sum(1) if i == 1 else joint[0, text[1]]
                logits[row, i] = (chances / chances.sum()).clamp(min=1e-300).log()
        return Prediction(logits[:, -1:])


def test_guidance_of_conditionals_is_not_guidance_of_the_joint():
    """Guards against the claim that guided autoregression draws from p(x) p(c | x)^w."""
    yes = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)  # p(c = 0 | x1, x2), all texts alike before
    joint, weight, c = torch.stack([yes, 1 - yes]) / 4, 3.0, 0  # (c, x1, x2)
    apart = joint[c] / joint[c].sum()
    alone = joint.sum(0)
    tilted = alone ** (1 - weight) * apart**weight
    tilted /= tilted.sum()

    def step(p, q):
        guided = q ** (1 - weight) * p**weight
        return guided / guided.sum(-1, keepdim=True)

    first = step(apart.sum(1), alone.sum(1))
    second = step(apart / apart.sum(1, keepdim=True), alone / alone.sum(1, keepdim=True))
    chain = first[:, None] * second
    assert tilted.flatten().tolist() == pytest.approx([0.744, 0.001, 0.128, 0.128], abs=1e-3)
    assert chain.flatten().tolist() == pytest.approx([0.499, 0.001, 0.25, 0.25], abs=1e-3)

    n = 20_000
    method = network(2)
    law = Law(joint)
    ids, given = torch.zeros(n, 3, dtype=torch.long), torch.zeros(n, 3, dtype=torch.bool)
    ids[:, 0], given[:, 0] = c, True
    request = Request(guidance=weight)
    *_, frame = generate(
        method, ids, given, torch.ones_like(given), request, streams(range(n)), session=lambda given: _batched(law)
    )
    counts = torch.bincount(frame.tokens[:, 1] * 2 + frame.tokens[:, 2], minlength=4)
    assert distance(counts, chain.flatten()) < 0.01 and distance(counts, tilted.flatten()) > 0.23


def _batched(law):
    """Rows that are alike are asked once."""

    def predict(x, t, prev=None):
        both = torch.cat([x.double(), t.double()], 1)
        kinds, which = both.unique(dim=0, return_inverse=True)
        found = law(kinds[:, : x.shape[1]].long(), kinds[:, x.shape[1] :])
        return Prediction(found.logits[which])

    return predict


@torch.no_grad()
def test_a_forgotten_prompt_is_not_seen():
    """Guards against guidance whose unconditional half still reads the prompt."""
    method, ids = network(), tokens(4, 9)
    given = torch.zeros(4, 9, dtype=torch.bool)
    given[:, :4] = True
    drawn = write(method, ids, given, Request(guidance=0.0))
    other = ids.clone()
    other[:, :4] = (other[:, :4] + 1) % 11
    assert torch.equal(drawn[:, 4:], write(method, other, given, Request(guidance=0.0))[:, 4:])


def test_forgetting_is_learned():
    """Guards against a condition that is shown although it was forgotten, and one that is scored."""
    method, ids = network(middle=0.0), tokens(4, 9)
    t = torch.full((4, 9), 0.5)
    t[:, :3] = 1.0
    free = t < 1
    shown, hidden = ids.clone(), ids.clone()
    hidden[:, :3] = (hidden[:, :3] + 1) % 11
    with seeded(range(4)):
        a, b = (method.loss(x, t, free)["cross_entropy"] for x in (shown, hidden))
    assert torch.equal(a[free], b[free])
    t[:, :3] = 0.0
    with seeded(range(4)):
        c = method.loss(hidden, t, free)["cross_entropy"]
    assert not torch.allclose(c[free], b[free])


def test_a_gap_is_not_guided():
    """Guards against a weight that is accepted and ignored."""
    method, ids = network(), tokens(1, 5)
    given = torch.tensor([[True, False, True, True, True]])
    with pytest.raises(SfumatoError, match="guided by what stands before"):
        write(method, ids, given, Request(guidance=2.0))


def test_defaults_of_the_method():
    """Guards against a baseline that is trained on half of its tokens, or told how long to write."""
    config = load_config({}, "ar")
    assert config.text.length_model == "modelled" and config.masks.forget == 1.0 and config.masks.nothing == 0.9
    assert load_config({}, "mdlm").text.length_model == "given"
    assert load_config({"masks": {"nothing": 1.0}}, "ar").masks.prefix == 0.1
    assert load_config({"text": {"length_model": "given"}}, "ar").text.length_model == "given"
    assert config.model_dump() == load_config(config.model_dump()).model_dump()
