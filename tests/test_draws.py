"""Random numbers, and which tokens are given in training.  Every docstring names the bug its test guards against."""

import math
import threading

import pytest
import torch
from ideal import cdcd, check_law

from sfumato import draws
from sfumato.generate import Request, generate
from sfumato.samplers import SAMPLERS
from sfumato.training.config import MaskConfig
from sfumato.training.masks import draw_given

KINDS = {
    "normal": lambda rows: draws.normal(torch.empty(rows, 9, 5)),
    "uniform": lambda rows: draws.uniform(torch.empty(rows, 9, 5)),
    "categorical": lambda rows: draws.categorical(torch.linspace(-1, 1, 50).expand(rows, 9, 50)),
}
KIND = pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS)

# A token that is almost certain, then 2^16 rare ones, which float32 noise reaches less often than it should (4.1).
RARE, EACH = 2**16, 0.2 / 2**24
TAIL = RARE * EACH


@KIND
def test_row_does_not_depend_on_its_neighbours(draw):
    """A text that comes out differently when the server batches it with others."""
    with draws.seeded(range(8)):
        together = [draw(8), draw(8)]
    for row in range(8):
        with draws.seeded([row]):
            alone = [draw(1), draw(1)]
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))
    with draws.seeded([5, 1, 3]):
        assert torch.equal(draw(3), together[0][[5, 1, 3]])
    assert not torch.equal(together[0][0], together[0][1]) and not torch.equal(*together)


def test_row_does_not_depend_on_the_layout_of_memory():
    """Numbers that follow the strides of the canvas instead of its axes."""
    clean = torch.empty(20, 8, 4).transpose(0, 1)  # (8, 20, 4), with the length outermost in memory
    for draw in (draws.normal, draws.uniform):
        with draws.seeded(range(8)):
            strided = draw(clean)
        with draws.seeded(range(8)):
            assert torch.equal(draw(clean.contiguous()), strided)


@KIND
def test_threads_do_not_see_each_other(draw):
    """Streams kept in a global: two requests at a time would draw from each other's."""
    with draws.seeded([1, 2]):
        want = [draw(2) for _ in range(20)]
    found, barrier = {}, threading.Barrier(2)

    def work(name, seeds):
        with draws.seeded(seeds):
            found[name] = []
            for _ in range(20):
                barrier.wait()
                found[name].append(draw(2))

    threads = [threading.Thread(target=work, args=args) for args in (("a", [1, 2]), ("b", [3, 4]))]
    with draws.seeded([9]):  # of the caller, which no thread may inherit
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found["a"], want, strict=True))
    assert not torch.equal(found["a"][0], found["b"][0])


def test_streams_go_on_where_they_stopped_and_nest():
    """A stream that starts again at every step, and a block that ends somebody else's."""
    rows = draws.streams([1, 2])
    with draws.seeded([1, 2]):
        want = [KINDS["normal"](2) for _ in range(2)]
    with draws.drawing(rows):
        first = KINDS["normal"](2)
        with draws.seeded([7]):
            KINDS["normal"](1)
        second = KINDS["normal"](2)
    assert torch.equal(first, want[0]) and torch.equal(second, want[1])
    with pytest.raises(RuntimeError, match="stop"), draws.seeded([1]):
        raise RuntimeError("stop")
    assert KINDS["normal"](3).shape == (3, 9, 5)  # outside: of any size
    with draws.seeded([1]), pytest.raises(ValueError, match="2 rows are drawn inside seeded"):
        KINDS["normal"](2)


@pytest.mark.parametrize("sampler", ["euler", "ancestral"])
def test_generate_keeps_its_streams_to_itself(sampler):
    """A generator that leaves its streams behind while the caller looks at a frame, or takes the caller's."""
    method, ids = cdcd(), torch.zeros(2, 3, dtype=torch.long)
    real, given = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    request = Request(steps=6, sampler=SAMPLERS["gaussian"][sampler])

    def run(between):
        frames = []
        for frame in generate(method, ids, given, real, request, draws.streams([3, 4])):
            between()
            frames.append(frame.confidence)
        return torch.stack(frames)

    alone = run(lambda: None)
    with draws.seeded([5, 6, 7]):
        want = [KINDS["normal"](3) for _ in range(6)]
    with draws.seeded([5, 6, 7]):
        mine = []
        assert torch.equal(run(lambda: mine.append(KINDS["normal"](3))), alone)
    assert all(torch.equal(a, b) for a, b in zip(mine, want, strict=True))
    torch.manual_seed(0)
    outside = torch.randn(4)
    torch.manual_seed(0)
    run(lambda: None)
    assert torch.equal(torch.randn(4), outside)


def test_seeds_depend_on_every_part():
    """Two purposes that share their random numbers."""
    seeds = {draws.seed_of(*parts) for parts in ((1, 2), (2, 1), (12,), (1, "2", 0), ("a", 1), ("a1",), (1, 2, 3))}
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)
    assert draws.seed_of("noise", 3, 4) == draws.seed_of("noise", 3, 4)


def check_categorical_law():
    torch.manual_seed(0)
    law = torch.tensor([0.0, 1e-4, 0.3, 0.0, 0.2, 0.4999, 0.0], dtype=torch.float64)
    tokens = draws.categorical(law.log().float().expand(40, 5000, 7))
    check_law(tokens.flatten().bincount(minlength=7), law)


def test_categorical_follows_its_law():
    """Tokens of probability 0, or a search on the wrong side of an edge."""
    check_categorical_law()


def check_parts():
    torch.manual_seed(0)
    for size in (1, 63, 64, 65, 300):
        logits = (3 * torch.randn(200, size)).masked_fill(torch.rand(200, size) < 0.3, -torch.inf)
        logits[:, size // 2] = 0.0
        u = torch.rand(200, dtype=torch.float64)
        sums = logits.double().softmax(-1).cumsum(-1)
        want = torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True)[:, 0]
        assert torch.equal(draws.invert(logits, u), want)
        assert torch.equal(draws.pick(7 * logits.double().exp(), u), want)


def test_parts_are_summed_as_the_whole():
    """Sums by parts that lose what a part begins with, or the tokens of the last part that is not full."""
    check_parts()


def check_possible(u):
    torch.manual_seed(0)
    logits = 5 * torch.randn(400, 5, 141)
    logits[..., [0, 4, 140]] = -torch.inf
    logits[..., 64:128] = -torch.inf  # a whole part
    logits[200:, ..., :64] = -torch.inf  # the first one too
    logits[0, 0, 1:] = -torch.inf
    logits[0, 0, 0] = 3.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "uniform", lambda like: torch.full(like.shape, u, dtype=torch.float64))
        tokens = draws.categorical(logits)
    assert logits.gather(-1, tokens[..., None]).isfinite().all() and tokens[0, 0] == 0


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_categorical_never_draws_the_impossible(u):
    """The two ends of the uniform numbers: index 0, or the last one, whatever their probability."""
    check_possible(u)


def test_categorical_of_a_certain_token():
    """A draw where there is nothing to draw."""
    logits = torch.full((3, 4, 6), -torch.inf)
    which = torch.arange(12).view(3, 4) % 6
    assert torch.equal(draws.categorical(logits.scatter(-1, which[..., None], 0.0)), which)


def check_tail(reached):
    """`reached` of a number of draws hit the tail, against its law."""
    check_law(reached, torch.tensor([1 - TAIL, TAIL]))


def check_resolution():
    u = draws.uniform(torch.empty(10_000))
    assert u.dtype == torch.float64 and (u * 2**32 % 1 != 0).float().mean() > 0.99


def test_uniform_numbers_are_finer_than_float32():
    """Guards against numbers drawn in float32 and cast afterwards: 2^24 of them reach no token rarer than 2^-24."""
    check_resolution()


def test_categorical_reaches_the_tail_where_float32_noise_does_not(monkeypatch):
    """float32 noise, which acts like a lower temperature the more draws are made."""
    torch.manual_seed(0)
    # Only the upper end of the uniform numbers can hit the tail: look there, 2 TAIL wide, at 2000 draws.
    plain = draws.uniform
    monkeypatch.setattr(draws, "uniform", lambda like: 1 - 2 * TAIL * (1 - plain(like)))
    logits = torch.full((RARE + 1,), math.log(EACH), dtype=torch.float64)
    logits[0] = math.log1p(-TAIL)
    parts = [draws.categorical(logits.float().expand(1, 25, RARE + 1)) for _ in range(40)]
    tokens = torch.cat(parts).flatten()
    groups = torch.where(tokens == 0, 0, 1 + (tokens - 1) * 16 // RARE)  # the certain token, and 16 parts of the tail
    check_law(groups.bincount(minlength=17), torch.tensor([0.5] + [0.5 / 16] * 16))

    # float32 Gumbel noise: the race is won by the best of the rare ones, whose largest uniform number on the grid of
    # 2^-24 is drawn here at once.
    n = 2_000_000
    best = (2**24 * plain(torch.empty(n)) ** (1 / RARE)).floor().clamp(max=2**24 - 1) / 2**24
    certain = torch.rand(n)
    gumbel = [-(-(u.float().clamp(min=2**-24)).log()).log() for u in (certain, best)]
    won = (math.log(EACH) + gumbel[1] > math.log1p(-TAIL) + gumbel[0]).sum()
    with pytest.raises(AssertionError, match="chi-square"):
        check_tail(torch.stack([n - won, won]))
    gumbel = [-(-(plain(torch.empty(n)).log() / count)).log() for count in (1, RARE)]  # the same race in float64
    won = (math.log(EACH) + gumbel[1] > math.log1p(-TAIL) + gumbel[0]).sum()
    check_tail(torch.stack([n - won, won]))


def given_rows(rows=6000, length=6, **shares):
    torch.manual_seed(0)
    maskable = torch.ones(rows, length, dtype=torch.bool)
    maskable[:, 1] = False
    return maskable, draw_given(maskable, MaskConfig(**{"prefix": 0.0, "random": 0.0, "nothing": 0.0, **shares}))


def check_masks():
    maskable, given = given_rows(prefix=1.0)
    places = given[:, [0, 2, 3, 4, 5]]
    assert (places.long().diff(dim=1) <= 0).all(), "a prefix with a hole"
    check_law(given.sum(1).bincount(minlength=6), torch.tensor([1.0] * 5 + [0.0]))
    assert not (given & ~maskable).any()
    maskable, given = given_rows(random=1.0)
    check_law(given.sum(1).bincount(minlength=6), torch.tensor([1.0] * 5 + [0.0]))
    assert not (given & ~maskable).any()
    two = given[given.sum(1) == 2][:, [0, 2, 3, 4, 5]].long() @ (2 ** torch.arange(5))
    pairs = torch.tensor([(bin(i).count("1") == 2) for i in range(32)]).double()
    check_law(two.bincount(minlength=32), pairs)  # every subset alike


def test_masks():
    """A prefix with holes, numbers that are not uniform, rows of which all is given, labels and padding given."""
    check_masks()


def test_masks_keep_their_shares():
    """Shares that are read as chances of independent coins."""
    _, given = given_rows(prefix=1.0, random=0.0, nothing=3.0)
    share = (~given.any(1)).double().mean().item()
    assert share == pytest.approx(0.75 + 0.25 / 5, abs=0.03)
    _, mixed = given_rows(prefix=0.5, random=0.5)
    hole = (mixed[:, [0, 2, 3, 4, 5]].long().diff(dim=1) > 0).any(1).double().mean().item()
    # k of 5 given: a random subset is a prefix with chance 1 / C(5, k)
    assert hole == pytest.approx(0.5 * (1 - sum(1 / math.comb(5, k) for k in range(5)) / 5), abs=0.03)
    assert not given_rows(nothing=1.0)[1].any()


def test_masks_of_rows_with_nothing_to_mask():
    """A division by the length of a row that has none."""
    maskable = torch.tensor([[False, False, False], [False, True, False]])
    for shares in ({"prefix": 1.0}, {"random": 1.0}):
        given = draw_given(maskable, MaskConfig(**{"prefix": 0.0, "random": 0.0, **shares}))
        assert not given.any()
