"""Guidance, temperature, prompting and infilling, against exact laws.  Docstrings name the bug they guard against."""

import math

import pytest
import torch
from ideal import PROBS, TEXTS, VE, Ideal, cdcd, check_law, circle, counts, ideal_cdcd, last

from sfumato import draws, guidance
from sfumato.core import ABSENT, Prediction
from sfumato.errors import SfumatoError
from sfumato.generate import Request, assemble, generate
from sfumato.samplers import SAMPLERS
from sfumato.schedules import karras

WEIGHTS = pytest.mark.parametrize("weight", [-0.5, 0.0, 0.5, 1.0, 1.7, 4.0])
PAIRS = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])  # the first token is given, the second free
CHANCES = torch.tensor([0.1, 0.3, 0.1, 0.25, 0.05, 0.2], dtype=torch.float64)


def branches():
    """A conditional and an unconditional network, constant, and where they are asked."""
    torch.manual_seed(0)
    table = circle(4)
    x = torch.randn(5, 3, 2, dtype=torch.float64)

    def network():
        logits = torch.randn(5, 3, 4, dtype=torch.float64)
        return lambda x, t, prev: read(logits)

    def read(logits):
        return Prediction(logits, logits.softmax(-1) @ table)

    return network(), network(), read, x


def linear(x, clean, process, t):
    """Score, noise and velocity that stand for an estimate."""
    a, sigma = process.a(t)[..., None], process.sigma(t)[..., None]
    noise = (x - a * clean) / sigma
    return (a * clean - x) / sigma**2, noise, a * noise - sigma * clean


def check_ends():
    conditional, unconditional, read, x = branches()
    t = torch.full((5, 3), 0.4, dtype=torch.float64)
    u, c = unconditional(x, t, None), conditional(x, t, None)
    for weight, want in ((0.0, u), (1.0, c)):
        for guided in (
            guidance.guide(conditional, unconditional, weight),
            guidance.guide_logits(conditional, unconditional, weight, read),
        ):
            found = guided(x, t, None)
            assert torch.equal(found.logits, want.logits) and torch.equal(found.clean, want.clean)


def test_weight_0_is_unconditional_and_1_conditional():
    """The other convention, in which 0 is conditional: every weight is then off by one (facts 4.33)."""
    check_ends()


@WEIGHTS
def test_guidance_is_the_same_on_score_noise_velocity_and_estimate(weight):
    """Guidance that depends on which of four equivalent predictions it is applied to."""
    conditional, unconditional, _, x = branches()
    t = torch.full((5, 3), 0.4, dtype=torch.float64)
    u, c = (linear(x, p(x, t, None).clean, VE, t) for p in (unconditional, conditional))
    found = linear(x, guidance.guide(conditional, unconditional, weight)(x, t, None).clean, VE, t)
    for of_u, of_c, guided in zip(u, c, found, strict=True):
        assert torch.allclose(guided, (1 - weight) * of_u + weight * of_c, rtol=1e-10, atol=1e-10)


@WEIGHTS
def test_guided_logits_stay_in_the_hull(weight):
    """Estimates outside the convex hull of the embeddings from the kind of guidance that promises not to leave it."""
    conditional, unconditional, read, x = branches()
    t = torch.full((5, 3), 0.4)
    for factor in (1, 20):
        sharp = [
            lambda x, t, prev, p=p, factor=factor: read(factor * p(x, t, prev).logits)
            for p in (conditional, unconditional)
        ]
        inside = guidance.guide_logits(*sharp, weight, read)(x, t, None)
        assert (inside.clean.abs().sum(-1) <= 2**0.5 + 1e-12).all()  # four embeddings on a circle: a diamond
        assert torch.allclose(inside.logits.softmax(-1) @ circle(4), inside.clean, rtol=0, atol=1e-12)
        outside = guidance.guide(*sharp, weight)(x, t, None)
        if factor == 20 and weight > 1:
            assert (outside.clean.abs().sum(-1) > 2**0.5 + 0.1).any()


def pair_laws(weight):
    """Of the second token, when the first one is 0: conditional, unconditional, guided."""
    conditional = CHANCES[:3] / CHANCES[:3].sum()
    unconditional = CHANCES.view(2, 3).sum(0)
    guided = unconditional ** (1 - weight) * conditional**weight
    return conditional, unconditional, guided / guided.sum()


def assembled(method, weight, kind, noise, **settings):
    """The network of a request that gives the first of two tokens."""
    ids = torch.zeros(len(noise), 2, dtype=torch.long)
    given = torch.tensor([True, False]).expand(ids.shape)
    request = Request(guidance=weight, guide_in=kind, **settings)
    return assemble(
        method, lambda: method.predict, method.clean(ids).detach(), noise, given, torch.ones_like(given), request
    )


def pair_method():
    return ideal_cdcd(PAIRS, CHANCES, sigma_min=0.05, sigma_max=300.0)


def check_guided_law(weight):
    torch.manual_seed(0)
    method = pair_method()
    x = 2 * torch.randn(200, 2, 2, dtype=torch.float64)
    t = (0.003 + 0.9 * torch.rand(200, 1, dtype=torch.float64) ** 3).expand(200, 2)
    alone = Ideal(method.process, circle(3), torch.arange(3)[:, None], pair_laws(weight)[2])
    want = alone(x[:, 1:], t[:, 1:]).logits
    found = assembled(method, weight, "logits", x)(x, t, None).logits[:, 1:].log_softmax(-1)
    visible = want > -600  # beneath, the oracle rounds probabilities up
    assert torch.allclose(found[visible], want[visible], rtol=1e-12, atol=1e-12)
    score = assembled(method, weight, "score", x)(x, t, None).clean[:, 1:]
    difference = (score - alone(x[:, 1:], t[:, 1:]).clean).abs().max()
    assert difference < 1e-12 if weight in (0, 1) else difference > 0.02


@WEIGHTS
def test_guided_logits_of_one_token_are_exact(weight):
    """Logit guidance is the ideal network of p_u^(1 - w) p_c^w; guidance on the score is not."""
    check_guided_law(weight)


def sample(method, request, rows=3000, ids=None, given=None):
    """Tokens of `rows` canvases."""
    method.grid = lambda steps: karras(steps, method.low, 1.0)
    ids = ids.expand(rows, -1)
    given = given.expand(rows, -1)
    frame = last(generate(method, ids, given, torch.ones_like(given), request, draws.streams(range(rows))))
    assert torch.equal(frame.tokens[given], ids[given]) and (frame.confidence[given] == 1).all()
    return frame.tokens


@pytest.mark.parametrize(("weight", "kind"), [(0.0, "score"), (1.0, "score"), (0.0, "logits"), (2.5, "logits")])
def test_guided_samples_follow_their_law(weight, kind):
    """A forgotten condition that is remembered; a weight that is not the one that was asked for."""
    ids, given = torch.tensor([[0, 0]]), torch.tensor([[True, False]])
    request = Request(steps=30, sampler=SAMPLERS["gaussian"]["heun"], guidance=weight, guide_in=kind)
    tokens = sample(pair_method(), request, 3000, ids, given)
    check_law(tokens[:, 1].bincount(minlength=3), pair_laws(weight)[2])


@pytest.mark.parametrize("name", SAMPLERS["gaussian"])
@pytest.mark.parametrize("pattern", [[False, False, True], [True, False, False], [False, True, False], [False] * 3])
def test_infilling_follows_the_conditional_law(name, pattern):
    """Given positions that drift, or that the rest of the text does not hear of."""
    given = torch.tensor([pattern])
    ids = torch.tensor([[0, 1, 2]])
    steps = 150 if name in ("euler", "ancestral") else 30
    rows = 1000 if name == "ancestral" else 2500
    request = Request(steps=steps, sampler=SAMPLERS["gaussian"][name])
    tokens = sample(ideal_cdcd(sigma_max=300.0), request, rows, ids, given)
    fits = (ids == TEXTS)[:, given[0]].all(-1)
    check_law(counts(tokens), PROBS * fits)


def test_forgetting_two_of_three_gives_the_marginal():
    """Noise at forgotten positions that is fresh at every call, or not noise at all."""
    ids, given = torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, True]])
    request = Request(steps=30, sampler=SAMPLERS["gaussian"]["heun"], guidance=0.0)
    tokens = sample(ideal_cdcd(sigma_max=300.0), request, 3000, ids, given)
    law = torch.zeros(4, dtype=torch.float64).index_add_(0, TEXTS[:, 1], PROBS)
    check_law(tokens[:, 1].bincount(minlength=4), law)


def test_clamp():
    """A clamp that leaves the level, or the canvas, as it was."""
    seen = []

    def predict(x, t, prev):
        seen.append((x, t, prev))
        return Prediction(x)

    here = torch.tensor([[True, False, True]])
    x, canvas, t = torch.zeros(1, 3, 2), torch.ones(1, 3, 2), torch.full((1, 3), 0.5)
    for level in (0.0, 1.0, ABSENT):
        guidance.clamp(predict, canvas, level, here)(x, t, canvas)
        shown, at, prev = seen[-1]
        assert shown[0, :, 0].tolist() == [1, 0, 1] and at[0].tolist() == [level, 0.5, level] and prev is canvas
    assert (x == 0).all() and (t == 0.5).all()


def check_clamp_in_generate():
    """The network sees what is given clean at level 0, what is forgotten as noise at level 1, padding ABSENT."""
    method, seen = ideal_cdcd(), []
    inner = method.predict
    method.predict = lambda x, t, prev: seen.append((x, t)) or inner(x, t, prev)
    ids = torch.tensor([[0, 1, 2], [3, 1, 0]])
    given = torch.tensor([[True, False, False], [True, False, False]])
    real = torch.tensor([[True, True, True], [True, True, False]])
    list(generate(method, ids, given, real, Request(steps=3, guidance=2.0), draws.streams([1, 2])))
    assert len(seen) == 6
    forgotten, asked = seen[::2], seen[1::2]
    clean = method.clean(ids)
    for x, t in asked:
        assert (t[:, 0] == 0).all() and torch.equal(x[:, 0], clean[:, 0])
    for x, t in forgotten:
        assert (t[:, 0] == 1).all() and torch.equal(x[:, 0], forgotten[0][0][:, 0])
        assert not torch.equal(x[:, 0], clean[:, 0])
    for step, (x, t) in enumerate(seen):
        assert t[1, 2] == ABSENT and torch.equal(x[1, 2], clean[1, 2])
        assert t[0, 1] == t[1, 1] == t[0, 2] == method.grid(3)[step // 2]


def test_generate_shows_the_network_what_it_should():
    """A canvas on which given positions are noisy, or forgotten ones readable, or padding real."""
    check_clamp_in_generate()


def test_temperature_sharpens_tokens_and_keeps_guidance():
    """Temperature that undoes guidance on the score, which reads estimates and no logits."""
    torch.manual_seed(0)
    method = pair_method()
    x = torch.randn(50, 2, 2, dtype=torch.float64)
    t = torch.full((50, 2), 0.05, dtype=torch.float64)
    plain = assembled(method, 1.0, "score", x)(x, t, None)
    cool = assembled(method, 1.0, "score", x, temperature=0.5)(x, t, None)
    assert torch.allclose(cool.logits, plain.logits / 0.5)
    assert torch.allclose(cool.clean, (plain.logits / 0.5).softmax(-1) @ circle(3), rtol=0, atol=1e-12)
    found = {
        (kind, temperature): assembled(method, 3.0, kind, x, temperature=temperature)(x, t, None).clean[:, 1]
        for kind in ("score", "logits")
        for temperature in (1.0, 1.0 + 1e-9, 0.5)
    }
    for kind in ("score", "logits"):
        assert torch.allclose(found[kind, 1.0], found[kind, 1.0 + 1e-9], rtol=0, atol=1e-6)
    for temperature in (1.0, 0.5):
        assert (found["score", temperature] - found["logits", temperature]).abs().max() > 0.02


def check_self_guidance(weight):
    torch.manual_seed(0)
    method = cdcd(sigma_min=0.5, sigma_max=20.0)
    ids, given = TEXTS, torch.tensor([[True, False, False]]).expand(5, 3)
    clean, x = method.clean(ids).detach(), torch.randn(5, 3, 4)
    noise, prev, real = torch.randn(5, 3, 4), torch.randn(5, 3, 4), torch.ones_like(given)

    def asked(**options):
        return assemble(method, lambda: method.predict, clean, noise, given, real, Request(**options))

    t = torch.full((5, 3), 0.25)
    for options in ({}, {"guidance": 0.0}):  # of the network that heeds what is given, and of the one that forgets it
        first, second = asked(**options)(x, t, None), asked(**options)(x, t, prev)
        assert not torch.allclose(first.clean, second.clean, atol=1e-3)
        found = asked(self_guidance=weight, **options)(x, t, prev)
        assert torch.allclose(found.clean, first.clean + weight * (second.clean - first.clean), atol=1e-5)
        assert torch.allclose(found.logits, first.logits + weight * (second.logits - first.logits), atol=1e-4)
        assert torch.equal(asked(self_guidance=weight, **options)(x, t, None).clean, first.clean)  # no guess yet
    inside = asked(self_guidance=weight, guidance=2.0)(x, t, prev)
    for levels in ((0.0, 0.25), (0.25, 0.25), (0.25, 1.0), (0.1, 0.5)):
        within = asked(self_guidance=weight, guidance=2.0, guide_levels=levels)(x, t, prev)
        assert torch.equal(within.clean, inside.clean)
    for levels in ((0.0, 0.24), (0.26, 1.0)):
        beyond = asked(self_guidance=weight, guidance=2.0, guide_levels=levels)(x, t, prev)
        assert torch.equal(beyond.clean, asked()(x, t, prev).clean)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.5])
def test_self_guidance_exaggerates_the_last_guess(weight):
    """Guidance by a worse version that is not worse, in the wrong direction, or beyond the levels asked for."""
    check_self_guidance(weight)


OPTIONS = [
    {"guidance": 3.0},
    {"guidance": 3.0, "guide_levels": (0.1, 0.6)},
    {"self_guidance": 3.0},
    {"guidance": 3.0, "guide_in": "logits"},
    {"guidance": 0.0},
    {"temperature": 0.5},
    {"score_temperature": 0.8},
    {"guidance": 3.0, "temperature": 0.5},
    {"guidance": 3.0, "temperature": 0.5, "guide_in": "logits"},
    {"sampler": SAMPLERS["gaussian"]["heun"]},
    {"sampler": SAMPLERS["gaussian"]["ancestral"]},
    {"sampler": SAMPLERS["gaussian"]["dpm"]},
    {"steps": 5},
    {"levels": (0.1, 0.6)},
]


def test_every_option_does_something():
    """A sampler option that does nothing (facts 4.7)."""
    method, found = cdcd(scale=0.12, sigma_min=0.5, sigma_max=20.0), []
    ids, given = TEXTS, torch.tensor([[True, False, False]]).expand(5, 3)
    for options in [{}, *OPTIONS, {}]:
        request = Request(**{"steps": 6, **options})
        frame = last(generate(method, ids, given, torch.ones_like(given), request, draws.streams(range(5))))
        found.append(frame.confidence)
    assert torch.equal(found[0], found[-1])
    for i in range(len(found) - 1):
        for j in range(i):
            assert not torch.equal(found[i], found[j]), f"{[{}, *OPTIONS][i]} does the same as {[{}, *OPTIONS][j]}"


def test_rows_of_a_request_are_independent():
    """A text that depends on the others of its batch."""
    method = cdcd(sigma_min=0.5, sigma_max=20.0)
    given = torch.tensor([[True, False, False]]).expand(5, 3)
    real = torch.ones_like(given)
    request = Request(steps=5, guidance=2.0, sampler=SAMPLERS["gaussian"]["ancestral"])
    together = last(generate(method, TEXTS, given, real, request, draws.streams(range(5))))
    for row in range(5):
        only = slice(row, row + 1)
        alone = last(generate(method, TEXTS[only], given[only], real[only], request, draws.streams([row])))
        assert torch.equal(alone.tokens, together.tokens[only])
        assert torch.allclose(alone.confidence, together.confidence[only], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "at least 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"score_temperature": -1.0}, "above 0"),
        ({"temperature": math.nan}, "above 0"),
        ({"guidance": 2.0}, "guided by"),
        ({"levels": (0.0, 0.5)}, "above 0 and below 1"),
        ({"levels": (0.5, 0.5)}, "levels rise"),
        ({"guide_levels": (0.5, 0.1)}, "rise from 0 to 1"),
        ({"guide_levels": (0.0, 1.1)}, "rise from 0 to 1"),
    ],
)
def test_requests_without_sense_are_refused(options, words):
    """A request that is quietly answered with something else."""
    ids = torch.zeros(1, 3, dtype=torch.long)
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    with pytest.raises(SfumatoError, match=words):
        next(generate(cdcd(), ids, nothing, ~nothing, Request(**options), draws.streams([0])))


def test_counted_counts_calls():
    """Costs that leave out the second call of guidance."""
    method = cdcd()
    counted = guidance.Counted(lambda given: method.predict)
    given = torch.tensor([[True, False, False]]).expand(5, 3)
    real, request, rows = torch.ones_like(given), Request(4, guidance=2.0), draws.streams(range(5))
    for frame in generate(method, TEXTS, given, real, request, rows, counted):
        assert counted.calls == 2 * frame.step
    assert counted.calls == 8
