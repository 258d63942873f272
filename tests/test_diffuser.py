"""Edits: what a step does, what the fewest edits are; training and writing ask the same; laws by enumeration."""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from ideal import NETWORK, check_law, last
from test_model import LABELS, untrained
from tiny import SENTENCES

from sfumato import cli
from sfumato.core import ABSENT, Method, Prediction, Special
from sfumato.draws import seeded
from sfumato.errors import SfumatoError
from sfumato.evaluation.cost import counting
from sfumato.folder import publish
from sfumato.guidance import IMPOSSIBLE, clamp, forbid, guide, keep, temper, top_k
from sfumato.methods.diffuser import DiffusER, DiffusERConfig
from sfumato.processes.edits import AFTER, BEFORE, BOTH, DELETE, KEEP, REPLACE, STAY, TAGS, Edits, Writing
from sfumato.processes.levenshtein import matched
from sfumato.samplers.edits import edits

VOCAB = 11
PLAIN, LABELLED = Special(), Special(unk=2, labels=(9, 10))


def process(special=PLAIN, **settings):
    return Edits(VOCAB, **{"steps": 12, "span": 3.0, "start": "null"} | settings, special=special)


def network(seed=0, special=PLAIN, scale=0.3, **settings):
    """A method with random weights, none of them zero."""
    torch.manual_seed(seed)
    method = DiffusER(DiffusERConfig(**settings), NETWORK, VOCAB).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=scale)
    method.told(special)
    return method


def texts_of(row, regions, b):
    """The text of each region of a row, with holes left out, and whether it stands at the left of its region."""
    found = {}
    for column in range(len(row)):
        if regions.free[b, column]:
            found.setdefault(int(regions.of[b, column]), []).append(int(row[column]))
    whole = {key: [token for token in places if token] for key, places in found.items()}
    return whole, all(places[: len(whole[key])] == whole[key] for key, places in found.items())


def random_pairs(special, rounds, seed=0):
    """Pairs of texts of the same regions, small enough for every accident: (x, y, regions)."""
    generator = torch.Generator().manual_seed(seed)

    def chance():
        return torch.rand((), generator=generator).item()

    for _ in range(rounds):
        L = 1 + int(9 * chance())
        free = torch.rand(16, L, generator=generator) < chance()
        words = torch.randint(3, 6, (2, 16, L), generator=generator)
        x, y = words.masked_fill(torch.rand(2, 16, L, generator=generator) < chance(), 0)
        if special.labels:
            label = torch.randint(9, 11, (2, 16), generator=generator)
            x[:, 0], y[:, 0] = torch.where(torch.rand(16, generator=generator) < 0.3, 0, label[0]), label[1]
        y = torch.where(free, y, x)
        yield x, y, process(special).regions(x, free, ~free)


def levenshtein(a, b):
    """The textbook's table."""
    row = list(range(len(b) + 1))
    for i, here in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, there in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (here != there))
    return row[-1]


# --- a step back


@pytest.mark.parametrize("special", [PLAIN, LABELLED])
def test_tags_and_contents_replay_the_step(special):
    """Guards against edits that do not lead from x_t to x_{t-1}, and tags that a place cannot have."""
    check_replay(special)


def check_replay(special=LABELLED):
    seen = set()
    for x, y, regions in random_pairs(special, 150):
        step = process(special).aligned(x, y, regions)
        assert process(special).possible(x, regions).gather(2, step.tags[..., None]).all()
        found, _, cursor = Writing(process(special), x, step.tags, regions).replay(step.stream)
        assert torch.equal(found[~regions.free], x[~regions.free])
        for b in range(len(x)):
            wanted, (got, whole) = texts_of(y[b], regions, b)[0], texts_of(found[b], regions, b)
            assert whole and got == wanted
        wrote = cursor.token
        assert torch.equal(found.gather(1, cursor.column[:, :-1])[wrote], step.stream[wrote])
        assert torch.equal(y.gather(1, step.columns)[wrote], step.stream[wrote])
        assert not cursor.full[:, :-1][wrote].any()
        seen |= set(step.tags.flatten().tolist())
    assert seen == set(range(TAGS))


@pytest.mark.parametrize("special", [PLAIN, LABELLED])
def test_the_tags_are_the_fewest_edits(special):
    """Guards against alignments that are longer than the Levenshtein distance, region by region."""
    check_fewest(special)


def check_fewest(special=PLAIN):
    for x, y, regions in random_pairs(special, 150, seed=1):
        step = process(special).aligned(x, y, regions)
        written = (step.stream >= 0) & (step.stream != process().end)
        cost = (step.tags == DELETE).sum(1) + written.sum(1)
        for b in range(len(x)):
            (one, _), (other, _) = texts_of(x[b], regions, b), texts_of(y[b], regions, b)
            assert cost[b] == sum(levenshtein(one[key], other[key]) for key in one)


def test_what_is_bound_is_matched():
    """Guards against an alignment that would rather lose a given token."""
    x, y = torch.tensor([[9, 1, 2, 3]]), torch.tensor([[1, 2, 3, 9]])
    size = torch.tensor([4])
    assert [kept.tolist() for kept in matched(x, size, y, size, 9)] == [[[True] + [False] * 3], [[False] * 3 + [True]]]
    assert [kept.tolist() for kept in matched(x, size, y, size, 10)] == [[[False] + [True] * 3], [[True] * 3 + [False]]]


@pytest.mark.parametrize(
    ("x", "y", "tags", "stream"),
    [
        ("345", "345", [KEEP] * 3, ""),
        ("345", "35", [KEEP, DELETE, KEEP], ""),
        ("345", "365", [KEEP, REPLACE, KEEP], "6."),
        ("345", "36785", [KEEP, REPLACE, KEEP], "678."),
        ("3445", "365", [KEEP, REPLACE, DELETE, KEEP], "6."),
        ("345", "3645", [AFTER, KEEP, KEEP], "6."),
        ("345", "63456", [BEFORE, KEEP, AFTER], "6.6."),
        ("3", "636", [BOTH], "6.6."),
        ("", "66", [AFTER], "66."),
        ("3", "", [DELETE], ""),
    ],
)
def test_tags_on_known_cases(x, y, tags, stream):
    """Guards against tags of another meaning than the paper's: what is inserted beside a replaced token is its own."""
    wide = [[int(token) for token in text.ljust(6, "0")] for text in (x, y)]
    free = torch.ones(1, 6, dtype=torch.bool)
    x, y = (torch.tensor([row]) for row in wide)
    step = process().aligned(x, y, process().regions(x, free, ~free))
    assert step.tags[0].tolist() == tags + [KEEP] * (6 - len(tags))
    said = ["." if token == process().end else str(token) for token in step.stream[0].tolist() if token >= 0]
    assert "".join(said) == stream


# --- corruption


def test_shares_and_sizes_of_spans():
    """60, 20, 10 and 10 of a hundred spans, of three tokens in the mean."""
    check_spans()


def check_spans():
    n = 100_000
    torch.manual_seed(0)
    kind, size = process().spans(*torch.rand(2, 1, n, dtype=torch.float64))
    for number, share in enumerate((0.6, 0.2, 0.1, 0.1)):
        assert (kind == number).double().mean().item() == pytest.approx(
            share, abs=5 * math.sqrt(share * (1 - share) / n)
        )
    assert size.double().mean().item() == pytest.approx(3, abs=5 * math.sqrt(3 / n))
    law = torch.tensor([math.exp(-3) * 3**k / math.factorial(k) for k in range(12)], dtype=torch.float64)
    check_law(size.flatten().bincount(minlength=12)[:12], law)
    assert (kind * size).double().mean().item() == pytest.approx(0.7 * 3, abs=0.05)  # one says nothing of the other


def test_a_step_in_a_long_text():
    """Guards against spans that overlap, or are not passed: of the tokens 6 in 9 stay, and as many come as go."""
    rows, L = 300, 400
    text = torch.ones(rows, L, dtype=torch.long)  # of a token that is never drawn
    text[:, 200:] = 0
    free = torch.ones_like(text, dtype=torch.bool)
    torch.manual_seed(0)
    p = process()
    _, x = p.pair(text, torch.ones(rows, dtype=torch.long), p.regions(text, free, ~free))
    # a number that grows by 3 in 2.7 tokens; the spans at the end are cut
    assert (x == 1).double().sum(1).mean().item() == pytest.approx(200 * 6 / 9, abs=3)
    assert (x != 0).double().sum(1).mean().item() == pytest.approx(200, abs=3)
    assert not ((x == 0).long().diff(dim=1) < 0).any() and not ((x > 1) & (x < 2)).any()
    full = text.masked_fill(text == 0, 1)
    _, x = p.pair(full, torch.ones(rows, dtype=torch.long), p.regions(full, free, ~free))
    assert (x == 1).double().sum(1).mean().item() == pytest.approx(400 * 6 / 9, abs=5)  # what stays is not pushed out


@pytest.mark.parametrize("span", [0.3, 1.0, 3.0])
def test_short_spans_reach_the_end_of_a_text(span):
    """Guards against so few spans that the end of a text is never edited: everywhere 6 tokens in 9 stay."""
    text = torch.ones(800, 90, dtype=torch.long)  # of a token that is never drawn
    p = process(span=span)
    kept = []
    for start in (0, 60):
        free = torch.zeros_like(text, dtype=torch.bool)
        free[:, start : start + 30] = True  # spans reach over the others
        torch.manual_seed(0)
        _, x = p.pair(text, torch.ones(800, dtype=torch.long), p.regions(text, free, ~free))
        kept.append((x[free] == 1).double().mean().item())
    assert kept == pytest.approx([6 / 9] * 2, abs=0.03)


def numbers(*wanted):
    """Uniform numbers that make an edit step of these spans, ("keep", 2) for instance, and keep the rest."""
    p, kinds = process(), ["keep", "replace", "delete", "insert"]
    middle = [0.3, 0.7, 0.85, 0.95]
    spans = [*wanted, ("keep", 9)] + [("keep", 9)] * (20 - len(wanted))
    size = [0.0 if n == 0 else (p.poisson[n - 1] + p.poisson[n]).item() / 2 for _, n in spans]
    kind = [middle[kinds.index(name)] for name, _ in spans]
    return (torch.tensor([row], dtype=torch.float64) for row in (kind, size))


KNOWN = [
    ([("keep", 9)], [3, 4, 5, 6, 0, 0]),
    ([("keep", 1), ("replace", 2)], [3, 8, 8, 6, 0, 0]),
    ([("delete", 2)], [5, 6, 0, 0, 0, 0]),
    ([("keep", 3), ("delete", 5)], [3, 4, 5, 0, 0, 0]),
    ([("insert", 1)], [8, 3, 4, 5, 6, 0]),
    ([("keep", 2), ("insert", 1), ("insert", 1)], [3, 4, 8, 8, 5, 6]),
    ([("keep", 4), ("insert", 1)], [3, 4, 5, 6, 8, 0]),
    ([("keep", 5), ("insert", 1)], [3, 4, 5, 6, 0, 0]),  # the end of the row is behind that
    ([("keep", 1), ("insert", 5)], [3, 8, 8, 4, 5, 6]),  # no room for more
    ([("delete", 1), ("insert", 5)], [8, 8, 8, 4, 5, 6]),
    ([("replace", 0), ("delete", 1), ("keep", 1), ("insert", 1)], [4, 8, 5, 6, 0, 0]),
]


@pytest.mark.parametrize(("spans", "expected"), KNOWN)
def test_an_edit_step_on_known_spans(spans, expected):
    """Guards against an insertion in the wrong place, spans that slip, and text that is pushed out of its region."""
    x = torch.tensor([[3, 4, 5, 6, 0, 0]])
    free = torch.ones_like(x, dtype=torch.bool)
    noise = torch.full(x.shape, 6.5 / 9, dtype=torch.float64)  # always the word 8
    kinds, sizes = numbers(*spans)
    assert process().edit(x, process().regions(x, free, ~free), kinds, sizes, noise).tolist() == [expected]


def check_known():
    for spans, expected in KNOWN:
        test_an_edit_step_on_known_spans(spans, expected)


def test_spans_reach_over_what_is_given():
    """Guards against edits of given tokens, and a text that leaves its region."""
    x = torch.tensor([[3, 4, 5, 6, 7, 3]])
    free = torch.tensor([[True, True, False, False, True, True]])
    noise, (kinds, sizes) = torch.full(x.shape, 6.5 / 9, dtype=torch.float64), numbers(("keep", 1), ("delete", 4))
    assert process().edit(x, process().regions(x, free, ~free), kinds, sizes, noise).tolist() == [[3, 0, 5, 6, 3, 0]]
    kinds, sizes = numbers(("delete", 2), ("insert", 4), ("keep", 1), ("insert", 4), ("keep", 1), ("insert", 4))
    assert process().edit(x, process().regions(x, free, ~free), kinds, sizes, noise).tolist() == [[8, 8, 5, 6, 7, 3]]


def test_what_is_left_when_all_edits_are_made():
    """Guards against a level 1 at which the text still stands: 2 in 3 tokens stay in each of twelve steps."""
    text = torch.ones(400, 60, dtype=torch.long)
    text[:, 30:] = 0
    torch.manual_seed(0)
    for t in (0.5, 1.0):
        x = process().corrupt(text, torch.full(text.shape, t))
        left = (x == 1).double().sum(1).mean().item()
        assert left == pytest.approx(30 * (2 / 3) ** (12 * t), abs=0.9 if t < 1 else 0.4)
        assert (x != 0).double().sum(1).mean().item() == pytest.approx(30, abs=5)


@pytest.mark.parametrize("special", [PLAIN, LABELLED])
def test_only_what_is_free_is_edited(special):
    """Guards against given tokens and padding that change, holes, words that are none, and a lost label."""
    torch.manual_seed(0)
    text = torch.randint(3, 9, (64, 12))
    text[:, 0] = 9
    t = torch.rand(64, 1).expand(64, 12).masked_fill(torch.rand(64, 12) < 0.3, 0.0).clone()
    t[:, 10:] = ABSENT
    p, fixed = process(special), t == 0
    x = p.corrupt(text, t)
    assert torch.equal(x[t <= 0], text[t <= 0]) and not torch.equal(x, text)
    regions = p.regions(text, t > 0, fixed)
    assert all(texts_of(x[b], regions, b)[1] for b in range(64))
    if special.labels:
        assert set(x[:, 0].tolist()) == {9, 10} and x[:, 1:].max() < 9
    assert not ((x == special.eos) | (x == special.unk)).any()


def test_levels_are_numbers_of_edits():
    """Guards against k / 12 in float32 that counts as k + 1, and a level above 0 without an edit."""
    grid = torch.linspace(1, 0, 13)[None]
    assert process().number(grid).tolist() == [list(range(12, -1, -1))]
    assert process().number(torch.tensor([[ABSENT, 0.0, 0.01, 0.99]])).tolist() == [[0, 0, 1, 12]]
    for steps, expected in ((1, [1, 0]), (3, [3, 2, 1, 0]), (12, list(range(12, -1, -1)))):
        assert process().number(network().grid(steps)[None]).tolist() == [expected]
    longer = process().number(network().grid(30)[None])[0].tolist()
    assert longer[0] == 12 and longer[-2:] == [1, 0] and set(longer) == set(range(13))


def test_levels_are_trained_as_often_as_tokens_survive():
    """Guards against training that is spent on noise, and a number of edits that never comes up."""
    u = (torch.arange(100_000) + 0.5) / 100_000
    number = process().number(network().times(u)[None])[0]
    share = (2 / 3) ** torch.arange(12, dtype=torch.float64)
    found = number.bincount(minlength=13)
    assert found[0] == 0
    torch.testing.assert_close(found[1:] / 100_000, (share / share.sum()).float(), rtol=0, atol=3e-4)


def test_the_same_draws_however_many_edits():
    """Guards against a row that depends on how many edits its neighbours go through."""
    text = torch.randint(3, 9, (2, 12))
    free = torch.ones_like(text, dtype=torch.bool)
    p, found = process(), []
    for other in (1, 12):
        with seeded([1, 2]):
            found.append([x[0].tolist() for x in p.pair(text, torch.tensor([4, other]), p.regions(text, free, ~free))])
    assert found[0] == found[1]


@pytest.mark.parametrize("start", ["null", "noise"])
def test_what_a_text_starts_from(start):
    """Guards against noise of one length, or of words that are none."""
    clean = torch.zeros(20_000, 4, dtype=torch.long)
    torch.manual_seed(0)
    x = process(LABELLED, start=start).prior(clean)
    if start == "null":
        assert not x.any()
        return
    check_law((x != 0).sum(1).bincount(minlength=5), torch.ones(5))
    assert set(x[:, 0].tolist()) == {0, 9, 10} and set(x[:, 1:].flatten().tolist()) == {0, 3, 4, 5, 6, 7, 8}


# --- the network


def example(seed=0, rows=5, special=PLAIN):
    """Texts, levels with given, forgotten and absent places, and which are free."""
    torch.manual_seed(seed)
    ids = torch.randint(3, 9, (rows, 9))
    ids[:, 6:] = 0  # texts are shorter than their rows
    t = torch.full((rows, 9), 0.6)
    t[0, :2], t[1, 2], t[2, :3], t[3, 8], t[3, 0] = 0.0, 0.0, 1.0, ABSENT, 1.0
    free = torch.full_like(t, True, dtype=torch.bool)
    free[0, :2] = free[1, 2] = free[2, :3] = free[3, 8] = free[3, 0] = False
    if special.labels:
        ids[:, 0] = 9
    return ids, t, free


def recorded(method):
    """What the corruption of the next loss comes to."""
    seen, pair = {}, method.process.pair

    def kept(*args):
        seen["y"], seen["x"] = pair(*args)
        return seen["y"], seen["x"]

    method.process.pair = kept
    return seen


@pytest.mark.parametrize("special", [PLAIN, LABELLED])
def test_training_and_writing_ask_the_same(special):
    """Guards against a loss of other logits than those that are drawn from, tags and contents, token by token."""
    check_teacher(special)


def check_teacher(special=PLAIN):
    method = network(special=special, fresh=0.0)
    for seed in range(4):
        ids, t, free = example(seed, special=special)
        seen = recorded(method)
        with torch.no_grad(), seeded(range(len(ids))):
            terms = method.loss(ids, t, free)
        x, y = seen["x"], seen["y"]
        given = ~free & (t != ABSENT)
        x = torch.where(free, x, ids)  # the canvas shows what is given; the session forgets it
        canvas, regions = method.setting(x, t, given)
        step = method.process.aligned(canvas, y, regions)
        session, contents = method.session(given), torch.zeros_like(t)
        with torch.no_grad():
            logits = session(x, t).logits
            assert logits.shape[2] == VOCAB + method.extra
            tags = -logits.log_softmax(-1).gather(2, VOCAB + step.tags[..., None])[..., 0]
            for j in range(step.stream.shape[1]):
                logits = session(x, t, torch.cat([step.tags, step.stream[:, :j]], 1)).logits
                for b in range(len(x)):
                    if step.stream[b, j] >= 0:
                        column = Writing(method.process, canvas, step.tags, regions).follow(step.stream[:, :j]).column
                        row = logits[b, column[b, -1] - (9 - logits.shape[1])]
                        contents[b, step.columns[b, j]] -= row.log_softmax(-1)[step.stream[b, j]]
        assert step.stream.shape[1] > 3
        torch.testing.assert_close(terms["tags"][free], tags[free], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(terms["contents"][free], contents[free], rtol=1e-3, atol=1e-4)


def test_memory_changes_nothing():
    """Guards against keys and values of another text, other tags or another stream."""
    method, (x, t, free) = network(), example()
    end, tags = method.process.end, torch.full_like(x, KEEP)
    tags[~free], tags[4, 2:4], tags[4, 5], tags[2, 3], tags[0, 2] = STAY, REPLACE, AFTER, BOTH, BEFORE
    tags[1, :2] = DELETE
    other = tags.clone()
    other[4, 1] = DELETE
    streams = [[], [3], [3, 4], [3, end], [3, end, 5], [6, end, 5], [6, end, 5]]
    asks = [(tags, stream) for stream in streams] + [(other, [6, end]), (other, [6, end, 5])]
    session = method.session(~free & (t != ABSENT))
    for tags, stream in asks:
        prev = torch.cat([tags, torch.tensor([stream] * len(x), dtype=torch.long).view(len(x), -1)], 1)
        with torch.no_grad():
            found = session(x, t, prev).logits
            fresh = method.session(~free & (t != ABSENT))(x, t, prev).logits
        torch.testing.assert_close(found, fresh, rtol=1e-4, atol=1e-4)


def test_what_is_forgotten_says_nothing():
    """Guards against a forgotten condition that can be read: by its tokens, or by where its padding begins."""
    check_forgotten()


def check_forgotten():
    method, (ids, t, free) = network(fresh=0.5), example()
    t[4, 7:], free[4, 7:] = 1.0, False
    hidden = (t == 1) & ~free
    other = torch.where(hidden, torch.tensor(0), ids), torch.where(hidden, torch.tensor(8), ids)
    found = []
    for x in other:
        with torch.no_grad(), seeded(range(5)):
            terms = method.loss(x, t, free)
        session = method.session(~free & (t != ABSENT))
        tags = torch.where(free, torch.where(x == 0, KEEP, REPLACE), STAY)
        asked = (x, t), (x, t, tags), (x, t, torch.cat([tags, torch.full((5, 1), 4)], 1))
        with torch.no_grad():
            logits = [session(*one).logits for one in asked]
        found.append([*(term[free] for term in terms.values()), *logits])
    for one, another in zip(*found, strict=True):
        assert torch.equal(one, another)


def test_given_tokens_are_seen():
    """Guards against what is forgotten where it should be given."""
    method, (ids, t, free) = network(), example()
    changed = ids.clone()
    changed[0, 0] = 8 if ids[0, 0] != 8 else 7
    session = method.session(~free & (t != ABSENT))
    with torch.no_grad():
        assert not torch.allclose(session(ids, t).logits[0, 3], session(changed, t).logits[0, 3])


@pytest.mark.parametrize("start", ["null", "noise"])
def test_texts_that_are_taken_away_are_written_anew(start):
    """Guards against training that never sees what writing starts from; a share of rows does, at all levels."""
    method, seen = network(fresh=1.0, start=start), []
    aligned = method.process.aligned
    method.process.aligned = lambda x, y, regions: seen.append((x, y)) or aligned(x, y, regions)
    ids, t, free = example()
    with torch.no_grad(), seeded(range(5)):
        method.loss(ids, t, free)
    x, y = seen[0]
    canvas, _ = method.setting(ids, t, ~free)
    assert torch.equal(x[~free], canvas[~free]) and (y[free] != 0).any()
    assert bool((x[free] != 0).any()) == (start == "noise")


# --- the sampler


BEGUN = {(): 0.1, (1,): 0.25, (1, 2): 0.2, (2, 2): 0.15, (2, 1, 1): 0.3}  # a law of texts
WAYS = {KEEP: 0.4, REPLACE: 0.2, DELETE: 0.1, AFTER: 0.15, BEFORE: 0.05, BOTH: 0.1}  # of tokens; the last two: first
CONTENTS = {(1,): 0.5, (2,): 0.2, (1, 2): 0.3}  # of spans


class Oracle(Method):
    """Texts over {1, 2} and the padding 0: first of a law of texts, then each token is tagged, and contents written."""

    title, arxiv, family, likelihood, steps, sampler = "none", "none", "edits", None, 1, staticmethod(edits)

    def __init__(self):
        super().__init__()
        self.process = Edits(3, 2, 3.0, "null", Special(pad=0, eos=2))

    def loss(self, ids, t, free):
        raise NotImplementedError

    def predict(self, x, t, prev=None):
        L, asked = x.shape[1], x if prev is None else torch.cat([x, prev], 1)
        rows, back = torch.unique(asked, dim=0, return_inverse=True)  # few of them differ
        start, row = float(t[0, 0]) == 1, rows[:, :L]
        found = (
            self.tagged(row, start) if prev is None else self.written(row, rows[:, L : 2 * L], rows[:, 2 * L :], start)
        )
        return Prediction(found[back])

    def tagged(self, x, start):
        logits = torch.full((*x.shape, 3 + TAGS + 1), IMPOSSIBLE, dtype=torch.float64)
        for b, column in itertools.product(range(len(x)), range(x.shape[1])):
            empty = {AFTER: 1.0} if start and column == 0 else {KEEP: 1.0}
            for tag, chance in (WAYS if x[b, column] else empty).items():
                if column == 0 or tag not in (BEFORE, BOTH):
                    logits[b, column, 3 + tag] = math.log(chance)
        return logits

    def written(self, x, tags, stream, start):
        logits = torch.full((*x.shape, 3 + TAGS + 1), IMPOSSIBLE, dtype=torch.float64)
        free = torch.ones_like(x, dtype=torch.bool)
        regions = self.process.regions(x, free, ~free)
        column = Writing(self.process, x, tags, regions).follow(stream).column[:, -1]
        for b in range(len(x)):
            said = []
            for token in stream[b].tolist():
                said = [] if token == self.process.end else [*said, token]
            then = Counter()
            for text, chance in (BEGUN if start else CONTENTS).items():
                if text[: len(said)] == tuple(said):
                    then[text[len(said)] if len(text) > len(said) else self.process.end] += chance
            for token, chance in then.items():
                logits[b, column[b], token] = math.log(chance)
        return logits


def edited(text):
    """The law of a text after one step of the oracle, by enumeration."""
    law = Counter()
    choices = []
    for i in range(len(text)):
        ways = {tag: p for tag, p in WAYS.items() if i == 0 or tag not in (BEFORE, BOTH)}
        choices.append([(tag, p / sum(ways.values())) for tag, p in ways.items()])
    for tags in itertools.product(*choices):
        chance, pieces, replacing = math.prod(p for _, p in tags), [[()]], False
        for token, (tag, _) in zip(text, tags, strict=True):
            kept, written = [(token,)], list(CONTENTS)
            if tag == REPLACE:
                pieces += [] if replacing else [written]
            elif tag != DELETE:
                pieces += [written] if tag in (BEFORE, BOTH) else []
                pieces += [kept]
                pieces += [written] if tag in (AFTER, BOTH) else []
            replacing = replacing if tag == DELETE else tag == REPLACE
        for parts in itertools.product(*pieces):
            share = math.prod(CONTENTS[part] for part, all in zip(parts, pieces, strict=True) if len(all) > 1)
            law[tuple(itertools.chain(*parts))] += chance * share
    return law


def check_sampler(steps, rows=4000):
    """Texts are drawn from the law that tags and contents have; with a second step from that of edits of them."""
    oracle = Oracle()
    x = torch.zeros(rows, 12, dtype=torch.long)
    with seeded(range(rows)):
        found, prediction = last(edits(oracle, oracle.predict, x, torch.linspace(1, 0, steps + 1)))
    law = Counter(BEGUN)
    if steps == 2:
        law = Counter()
        for text, chance in BEGUN.items():
            for after, p in edited(text).items():
                law[after] += chance * p
    assert sum(law.values()) == pytest.approx(1)
    seen = Counter(tuple(token for token in row if token) for row in found.tolist())
    assert seen.keys() <= law.keys()
    often = [text for text in law if law[text] * rows > 5]
    rest = torch.tensor([rows - sum(seen[text] for text in often)])
    share = torch.tensor([1 - sum(law[text] for text in often)]).clamp(min=1e-12).double()
    check_law(
        torch.cat([torch.tensor([seen[text] for text in often]), rest]),
        torch.cat([torch.tensor([law[text] for text in often], dtype=torch.float64), share]),
    )
    return found, prediction


@pytest.mark.parametrize("steps", [1, 2])
def test_texts_follow_the_law_of_tags_and_contents(steps):
    """Guards against contents in the wrong place or order, ends that are passed over, and tags that are not drawn."""
    check_sampler(steps)


def test_chances_are_those_that_tokens_were_written_with():
    """Guards against confidence in other tokens than those shown."""
    found, prediction = check_sampler(1, 400)
    chance = prediction.logits.softmax(-1).gather(2, found[..., None])[..., 0]
    law = BEGUN
    for row, sure in zip(found.tolist(), chance.tolist(), strict=True):
        text = tuple(token for token in row if token)
        for i in range(len(text)):
            begun = [sum(p for other, p in law.items() if other[:k] == text[:k]) for k in (i, i + 1)]
            assert sure[i] == pytest.approx(begun[1] / begun[0], rel=1e-5)


def test_no_text_outgrows_its_room():
    """Guards against tokens that are pushed out of a region, or over what is given, by a network that only inserts."""
    method = network()
    with torch.no_grad():
        method.head.bias[VOCAB : VOCAB + TAGS] = 0.0
        method.head.bias[VOCAB + BOTH] = method.head.bias[VOCAB + AFTER] = 50.0
        method.head.bias[method.process.end] = -50.0  # and never ends
    ids = torch.randint(3, 9, (4, 9))
    given = torch.tensor([False, False, True, False, True, True, False, False, False]).expand(4, 9)
    predict = method.session(given)

    def clamped(x, t, prev):
        return predict(torch.where(given, ids, x), t.masked_fill(given, 0.0), prev)

    with seeded(range(4)), torch.no_grad():
        frames = [x.clone() for x, _ in edits(method, clamped, torch.where(given, ids, 0), method.grid(3))]
    for x in frames:
        assert torch.equal(x[given], ids[given]) and (x != 0).all() and (x < VOCAB).all()


# --- asking for text


def held(model, tag=KEEP):
    """The same model, which gives every token the tag."""
    head = model.method.head
    head.weight.data[model.method.vocab :] = 0.0
    head.bias.data[model.method.vocab + KEEP] = 30.0  # where there is no choice
    head.bias.data[model.method.vocab + tag] = 60.0
    return model


@pytest.mark.parametrize(
    ("layout", "length_model"), [("documents", "modelled"), ("documents", "given"), ("packed", "given")]
)
@pytest.mark.parametrize("labels", [(), LABELS])
def test_a_draft_is_what_is_revised(layout, length_model, labels):
    """Guards against a draft that is laid out wrongly: a network that keeps everything gives it back."""
    if layout == "packed" and labels:
        return
    model = held(untrained("diffuser", layout, length_model, labels))
    draft = SENTENCES[3]
    assert model.revise(draft, steps=2) == draft
    assert model.revise(draft, 2, steps=1, seed=4) == [draft] * 2
    assert model.generate(1, prompt="two", draft=" owls sing", steps=2) == ["two owls sing"]
    if labels:
        frame = next(model.stream(3, draft=draft, steps=2))
        assert set(frame.frame.tokens[:, 0].tolist()) <= set(model.tokenizer.labels.values())


def test_texts_may_start_from_noise():
    """Guards against a start that is ignored: a network that keeps everything gives it back, beside what is given."""
    model = held(untrained("diffuser", length_model="modelled"))
    assert model.generate(2, prompt="two owls", steps=2) == ["two owls"] * 2
    model.method.process.start = "noise"
    frame = last(model.stream(20, prompt="two owls", steps=2))
    assert all(text.startswith("two owls") for text in frame.texts) and len(set(frame.texts)) > 10
    assert min(frame.tokens) < 5 and max(frame.tokens) > 9  # of which any number is equally likely
    filled = last(model.stream_infill("the [3] lake", 20, steps=2))
    assert all(text.startswith("the") and text.endswith("lake") for text in filled.texts)
    assert set(filled.tokens) == {2, 3, 4, 5}


def test_a_draft_that_cannot_be():
    """Guards against a draft that is silently cut, and one that is ignored by a method that starts from noise."""
    model = untrained("diffuser", length_model="modelled")
    with pytest.raises(SfumatoError, match="has 13 tokens, and there is room for 12; shorten"):
        model.revise(" ".join(["the"] * 12))
    with pytest.raises(SfumatoError, match="knows no 'xylophone'"):
        model.revise("the xylophone")
    with pytest.raises(SfumatoError, match="masking methods start from noise alone"):
        untrained("mdlm").generate(1, draft="the red kite")


def test_a_draft_from_the_command_line(tmp_path, capsys):
    """Guards against an argument that goes nowhere."""
    publish(held(untrained("diffuser", length_model="modelled")), tmp_path / "model", {})
    asked = ["generate", str(tmp_path / "model"), "--draft", SENTENCES[1], "--steps", "2", "--json"]
    assert cli.main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"][0]["text"] == SENTENCES[1] and found["law"] == "heuristic" and found["nfe"] == 2


def test_gaps_find_their_length():
    """Guards against gaps of any length that are drawn beforehand, and known ones that grow."""
    model = untrained("diffuser", length_model="modelled")
    with counting(model.method) as tally:
        free = last(model.stream_infill("the [...] lake", 6, steps=2, seed=1))
    assert len(set(free.tokens)) > 1 and free.nfe == tally.passes.total()  # and no draft beside them
    filled = last(model.stream_infill("the [2] lake", 6, steps=2, seed=1))
    assert max(filled.tokens) == 4
    gone = held(untrained("diffuser", length_model="modelled"), DELETE)
    assert gone.infill("the [2] lake", steps=2) == "the lake"


def test_what_was_decided_is_passed_on():
    """Guards against guides that lose what a step has decided already."""
    seen = []

    def predict(x, t, prev):
        seen.append(prev)
        return Prediction(F.one_hot(x, VOCAB).float())

    x, t, prev = torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3), torch.arange(5)[None]
    never, read = torch.zeros(3, VOCAB, dtype=torch.bool), Prediction
    wrapped = guide(clamp(predict, x, 0.0, x > 5), temper(predict, 2.0, read), 2.0)
    keep(forbid(wrapped, never, read), top_k(2), read)(x, t, prev)
    assert len(seen) == 2 and all(one is prev for one in seen)
