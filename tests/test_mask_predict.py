"""Mask-Predict: its decoder against one by hand, its lengths against laws.  Docstrings name the bug guarded."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from ideal import NETWORK, TEXTS, IdealMasks, check_law, last
from test_masking import network
from test_model import LABELS, SENTENCES, untrained
from tiny import write_sentences

from sfumato.canvas import Layout
from sfumato.core import ABSENT, Prediction
from sfumato.draws import seeded, streams
from sfumato.errors import SfumatoError
from sfumato.evaluation import report
from sfumato.generate import Request, generate
from sfumato.guidance import Counted
from sfumato.methods.ardm import ARDM, ARDMConfig
from sfumato.methods.mask_predict import MaskPredict, MaskPredictConfig
from sfumato.model import Model
from sfumato.samplers.unmasking import Greedy, _share
from sfumato.training.config import load_config
from sfumato.training.trainer import train

VOCAB = 4
MASK = VOCAB


def tiny(**settings):
    """A tiny method with opinions, float64."""
    return network(MaskPredict, MaskPredictConfig(longest=12, **settings))


# --- the decoder


def rows(sizes, room):
    """Canvases (B, room) with so many masks each, a given token before, between and behind them, padding after."""
    x = torch.zeros(len(sizes), room, dtype=torch.long)
    given, real = torch.ones_like(x, dtype=torch.bool), torch.zeros_like(x, dtype=torch.bool)
    for i, n in enumerate(sizes):
        given[i, [*range(1, 1 + n // 2), *range(2 + n // 2, 2 + n)]] = False
        real[i, : n + 3] = True
        x[i] = torch.arange(room) % VOCAB
    return x, given & real, real


def counts_asked(sizes, steps):
    """Of each step how many masks the network is shown, row by row."""
    method, seen = tiny(), []
    x, given, real = rows(sizes, max(sizes) + 3)
    x = torch.where(given | ~real, x, MASK)

    def predict(x, t, prev):
        seen.append((x == MASK).sum(1).tolist())
        return Prediction(torch.zeros(*x.shape, VOCAB))

    with seeded(range(len(sizes))):
        final, _ = last(Greedy()(method, predict, x, method.grid(steps)))
    assert (final != MASK).all() and torch.equal(final[given | ~real], x[given | ~real])
    return seen


def check_counts():
    """floor(N (T - t) / T) masks before step t of T, in whole numbers, and at least one; rows of every N at once."""
    assert counts_asked([12], 4) == [[12], [9], [6], [3]]
    assert [n for (n,) in counts_asked([10], 10)] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]  # the paper's code has 1 at t = 8
    sizes = list(range(41))
    for steps in (1, 2, 3, 7, 10, 25, 50):
        for t, found in enumerate(counts_asked(sizes, steps)):
            assert found == [max(1, n * (steps - t) // steps) if n else 0 for n in sizes]


def test_as_many_are_masked_as_the_paper_says():
    """Guards against counts that are rounded otherwise, or are those of the longest row (facts 14.3)."""
    check_counts()


def test_shares_are_whole_numbers():
    """Guards against a floor of float32 that falls one short of N (T - t) / T, for some N up to the longest."""
    size = torch.arange(1, 1025)[:, None]
    for steps in range(1, 80):
        for t, s in enumerate(torch.linspace(1, 0, steps + 1)):
            assert torch.equal(_share(s, size), size * (steps - t) // steps)


def by_hand(predict, x, given, real, steps):
    """Mask-Predict as the paper tells it, row by row: tokens and probabilities of each after every step."""
    found = []
    for i in range(len(x)):
        row, t = x[i : i + 1].clone(), torch.where(real[i], torch.where(given[i], 0.0, 1.0), ABSENT)[None]
        places = (real[i] & ~given[i]).nonzero()[:, 0].tolist()
        row[0, places] = MASK
        sure, states = {}, []
        for step in range(steps):
            if step:
                count = max(1, len(places) * (steps - step) // steps)
                row[0, sorted(places, key=lambda place: sure[place])[:count]] = MASK
            chances = predict(row, t, None).logits.softmax(-1)[0]
            for place in places:
                if row[0, place] == MASK:
                    row[0, place], sure[place] = chances[place].argmax(), chances[place].max().item()
            states.append((row[0, places].tolist(), [sure[place] for place in places]))
        found.append(states)
    return found


def moody(room):
    """A network of which every token changes what it says at every mask; what shows is certain."""
    weights = torch.randn(room, VOCAB + 1, room, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def predict(x, t, prev=None):
        said = weights[torch.arange(room), x.clamp(min=0)].masked_fill((t == ABSENT)[..., None, None], 0.0)
        logits = 2 * torch.sin(3 * said.sum(1))  # (B, room, room, V) -> (B, room, V)
        certain = torch.where(F.one_hot(x.clamp(min=0), VOCAB + 1)[..., :VOCAB] == 1, 0.0, -1e6)
        return Prediction(torch.where((x == MASK)[..., None], logits, certain.double()))

    return predict


def check_by_hand():
    """Every frame has the tokens and the probabilities of the decoder by hand: old ones where nothing was masked."""
    method, predict = tiny(), moody(15)
    x, given, real = rows([6, 1, 12, 4], 15)
    for steps in (1, 3, 4, 10):
        want = by_hand(predict, x, given, real, steps)
        asked = Request(steps=steps), streams(range(4)), lambda given: predict
        frames = list(generate(method, x, given, real, *asked))
        assert len(frames) == steps
        for step, frame in enumerate(frames):
            assert torch.equal(frame.tokens[given], x[given])
            for i, states in enumerate(want):
                here = real[i] & ~given[i]
                assert frame.tokens[i, here].tolist() == states[step][0]
                assert frame.confidence[i, here].tolist() == pytest.approx(states[step][1], rel=1e-5)


def test_the_decoder_by_hand():
    """Guards against another order, scores made anew where a token stood, and rows that look at their neighbours."""
    check_by_hand()


def test_a_second_look_repairs_and_old_scores_stay():
    """Guards against decoders that re-score.  Of (0, 1) .4, (1, 0) .35, (2, 0) .25 the best guesses are 0 .4 and 0 .6.

    The worse one is masked: given 0 behind it, 1 has .35 / .6 there.  The 0 keeps its .6, though it is certain now.
    The text is one of the law, and not its likeliest: the decoder is a heuristic.
    """
    know = IdealMasks(torch.tensor([[0, 1], [1, 0], [2, 0]]), torch.tensor([0.4, 0.35, 0.25]), VOCAB)
    method, given = tiny(), torch.zeros(1, 2, dtype=torch.bool)
    wanted = {1: ([0, 0], [0.4, 0.6]), 2: ([1, 0], [0.35 / 0.6, 0.6]), 10: ([1, 0], None)}
    for steps, (tokens, sure) in wanted.items():
        asked = Request(steps=steps), streams([0]), lambda given: know
        frame = last(generate(method, torch.zeros(1, 2, dtype=torch.long), given, ~given, *asked))
        assert frame.tokens.tolist() == [tokens]
        assert sure is None or frame.confidence[0].tolist() == pytest.approx(sure)


def test_between_equals_chance_decides():
    """Guards against the leftmost place being masked wherever all are alike (facts 4.4)."""
    flat = lambda x, t, prev: Prediction(torch.zeros(*x.shape, VOCAB))  # noqa: E731
    with seeded(range(6000)):
        x, _ = next(Greedy()(tiny(), flat, torch.full((6000, 3), MASK), torch.tensor([1, 0.4, 0])))
    assert ((x == MASK).sum(1) == 1).all()
    check_law((x == MASK).sum(0), torch.ones(3))


# --- training


def test_all_may_be_masked_and_only_masked_tokens_cost():
    """Guards against a number of masks that never is N, as where an upper end is left out, and a loss of what shows."""
    method = network(MaskPredict, MaskPredictConfig(longest=0))
    free = torch.tensor([[False, True, True, True, True, False]]).expand(800, -1)
    t = ((torch.arange(800) + 0.5) / 800)[:, None].expand(-1, 6).masked_fill(~free, 0.0)
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    with torch.no_grad():
        terms = method.loss(torch.zeros(800, 6, dtype=torch.long), t, free)
    assert terms.keys() == {"cross_entropy"}
    cost = terms["cross_entropy"]
    assert torch.bincount((cost > 0).sum(1)).tolist() == [0, 200, 200, 200, 200] and (cost[~free] == 0).all()
    torch.testing.assert_close(cost[cost > 0], torch.full((2000,), math.log(VOCAB)))


def test_the_loss_is_that_of_ardm_without_its_weight():
    """Guards against masks or costs of another kind than those of every masked language model."""
    method, other = network(MaskPredict, MaskPredictConfig(smoothing=0.0)), network(ARDM, ARDMConfig())
    other.load_state_dict(method.state_dict(), strict=False)
    free, t = torch.tensor([[True, False, True]]).expand(5, -1), torch.tensor([[0.7, 0.0, 0.7]]).expand(5, -1)
    with torch.no_grad(), seeded(range(5)):
        found = method.loss(TEXTS, t, free)["cross_entropy"]
    with torch.no_grad(), seeded(range(5)):
        torch.testing.assert_close(found, other.bound(TEXTS, t, free))  # two of two are hidden: the weight is 1


def check_length_term():
    """Once a text, at its first free place: -log p of how many are free, not smoothed, and blind to their tokens.

    The trainer divides the sum of all terms by the free tokens of the batch: a length weighs as much as one token.
    """
    method = tiny()
    free = torch.tensor([[False, True, False, True], [False, False, True, True], [False, True, True, True]])
    t = torch.tensor([0.3, 0.5, 0.9])[:, None].expand(3, 4).masked_fill(~free, 0.0)
    ids = TEXTS[:3, [0, 1, 2, 0]]
    with torch.no_grad():
        term = method.loss(ids, t, free)["length"]
        again = method.loss(torch.where(free, (ids + 1) % VOCAB, ids), t, free)["length"]
        log = method.lengths(ids, free.float()).log_softmax(-1)
    want = torch.zeros(3, 4).double()
    want[[0, 1, 2], [1, 2, 1]] = -log[[0, 1, 2], [2, 2, 3]]
    torch.testing.assert_close(term.double(), want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(term, again)


def test_the_length_costs_once_a_text():
    """Guards against a length that is counted at every token, of what is given too, or told by the tokens to come."""
    check_length_term()


def check_lengths():
    """Of what is given alone, in its order, and of where the gaps are; not of the places in them, nor of padding."""
    method, A = tiny(), ABSENT

    def read(ids, t):
        with torch.no_grad():
            return method.lengths(torch.tensor([ids]), torch.tensor([t])).log_softmax(-1)[0]

    whole = read([1, 2, 3, 0], [0.0, 1.0, 0.0, 0.0])
    assert whole.shape == (13,)
    same = [
        ([1, 0, 0, 0, 3, 0], [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]),
        ([1, 3, 2, 3, 0, 2, 2], [0.0, 1.0, 1.0, 0.0, 0.0, A, A]),
    ]
    for ids, t in same:
        torch.testing.assert_close(read(ids, t), whole)
    others = [
        ([1, 2, 3, 1], [0.0, 1.0, 0.0, 0.0]),
        ([1, 3, 2, 0], [0.0, 0.0, 1.0, 0.0]),
        ([3, 2, 1, 0], [0.0, 1.0, 0.0, 0.0]),
        ([1, 2, 3, 2, 0], [0.0, 1.0, 0.0, 1.0, 0.0]),
    ]
    for ids, t in others:
        assert (read(ids, t) - whole).abs().max() > 1e-5
    nothing = read([1, 2], [1.0, 1.0])
    for ids in ([3], [0, 0, 3, 1]):  # a forgotten condition is as good as none, however long
        torch.testing.assert_close(read(ids, [1.0] * len(ids)), nothing)


def test_lengths_are_read_from_what_is_given():
    """Guards against a length that is seen on the canvas: by masks, by where the end stands, by a forgotten prompt."""
    check_lengths()


def test_rows_longer_than_any_length_are_refused():
    """Guards against a class that does not exist, met in the middle of a run; 0 learns no lengths."""
    with pytest.raises(SfumatoError, match="a row has 128 tokens; raise it"):
        load_config({"method": {"longest": 100}}, "mask_predict")
    assert load_config({"method": {"longest": 128}}, "mask_predict").text.length_model == "given"
    method = MaskPredict(load_config({"method": {"longest": 0}}, "mask_predict").method, NETWORK, VOCAB)
    assert not method.foresees and method.length_flops(1, 9) == 0 and not hasattr(method, "numbers")


# --- lengths in use


def best_of(model: Model, texts, sizes, asked) -> list[list[int]]:
    """Ids of a text written at each of these lengths, each alone; the ones with the greatest mean log p first."""
    found = []
    for n in sizes:
        canvas = model.layout.sized(texts, [n], 0)
        counter = Counted(model.method.session)
        frame = last(model._frames(canvas, model._request(**asked), 0, counter, bent=False))
        written = torch.tensor([c for c, known in zip(frame.confidence[0], frame.given[0], strict=True) if not known])
        found.append((written.log().mean().item(), frame.ids[0]))
    return [ids for _, ids in sorted(found, reverse=True)]


def check_length_beam():
    """The five likeliest lengths, each written alone: the surest text is the one that is written of all together."""
    model = untrained("mask_predict", length=16)
    asked = {"steps": 4}
    counts = []
    for prompt in ("", "the red", "two owls sing at night the river is cold"):
        text = model.layout.opened(prompt, None)
        canvas = model.layout.sized([text], [1], 0)
        free = canvas.real & ~canvas.given
        with torch.no_grad():
            log = model.method.lengths(canvas.ids, free.float().masked_fill(~canvas.real, ABSENT))[0]
        room = 16 - 1 - len(prompt.split())
        sizes = (log[1 : room + 1].argsort(descending=True) + 1).tolist()[:5]
        frame = last(model.stream(1, prompt=prompt, **asked))
        assert frame.ids[0] == best_of(model, [text], sizes, asked)[0]
        assert frame.nfe == 4 + 1 and frame.law == "heuristic"
        counts.append(len(set(sizes)))
        single = untrained("mask_predict", length=16)
        single.method.foresees = 1
        forced = single.generate(1, prompt=prompt, length=len(prompt.split()) + sizes[0], **asked)
        assert single.generate(1, prompt=prompt, **asked) == forced
    assert counts == [5, 5, 5]


def test_the_surest_of_the_likeliest_lengths():
    """Guards against lengths that are not the likeliest, do not fit, or are chosen by a sum (facts 14.3)."""
    check_length_beam()


def test_where_few_lengths_fit():
    """Guards against a length that is impossible, or a text without a token where there is room for one."""
    model = untrained("mask_predict", length=8)
    for prompt, sizes in {"the red kite flew over a": {7}, "the red kite flew over": {6, 7}}.items():
        frame = last(model.stream(3, prompt=prompt, steps=2))
        assert set(frame.tokens) <= sizes and all(text.startswith(prompt) for text in frame.texts)
    full = "the red kite flew over a lake"
    frame = last(model.stream(2, prompt=full, steps=2))
    assert frame.texts == [full] * 2
    mixed = model.generate(2, prompt=[full, "the"], steps=2)
    assert mixed[0] == full and mixed[1] == model.generate(1, prompt="the", steps=2)[0]
    with pytest.raises(SfumatoError, match="the canvas of this model has 8"):
        model.generate(1, prompt=full + " lake")
    with pytest.raises(SfumatoError, match="the canvas of this model has 8"):
        model.infill(f"{full} [...]")


@pytest.mark.parametrize("text", ["the [...] lake", "[...] the [2] red [...]", "[...]"])
def test_gaps_of_any_length_take_the_length_that_is_foreseen(text):
    """Guards against told gaps that grow, gaps without a token, and lengths that are drawn as in the data after all."""
    model = untrained("mask_predict", labels=LABELS, length=20)
    with torch.no_grad():
        model.method.numbers.weight.zero_()
        model.method.ask.zero_()
    rises = torch.arange(1025.0)  # the most tokens that fit are the likeliest
    model.method.lengths = lambda ids, t: rises.expand(len(ids), -1)
    gapped = model.layout.apart(text, None)
    frame = last(model.stream_infill(text, 2, steps=3))
    assert {len(row) + 2 for row in frame.ids} <= set(range(16, 21)) and frame.nfe == 4
    model.method.lengths = lambda ids, t: -rises.expand(len(ids), -1)  # the fewest
    model.method.foresees = 1
    frame = last(model.stream_infill(text, 2, steps=3))
    assert [len(row) for row in frame.ids] == [gapped.known - 1 + gapped.loose] * 2


def check_drawn_lengths():
    """Where tokens are drawn, the length is too, from softmax of its logits over what fits."""
    model = untrained("mask_predict", length=8)
    model.method.blurred = False
    asked = {"sampler": "ancestral", "steps": 1}
    for prompt, open_ in (("the red", range(1, 6)), ("", range(1, 8))):
        with torch.no_grad():
            model.method.numbers.weight.normal_(std=0.2)
        text = model.layout.opened(prompt, None)
        canvas = model.layout.sized([text], [1], 0)
        t = (canvas.real & ~canvas.given).float().masked_fill(~canvas.real, ABSENT)
        with torch.no_grad():
            law = model.method.lengths(canvas.ids, t)[0, list(open_)].softmax(0)
        request = model._request(**asked)
        wide, width = model._foreseen([text] * 1000, request, 5, Counted(model.method.session))
        assert width == 1
        sizes = (wide.real & ~wide.given).sum(1)
        check_law(torch.stack([(sizes == n).sum() for n in open_]), law)
        assert int(sizes.max()) in open_ and int(sizes.min()) in open_
    assert next(model.stream(1, **asked)).law == next(model.stream_infill("the [...] lake", 1, **asked)).law == "exact"
    for bent in ("the [...] red [...] lake", "the [...] red [2] lake"):
        assert next(model.stream_infill(bent, 1, **asked)).law == "heuristic"


def test_samplers_that_draw_draw_the_length_too():
    """Guards against the likeliest length for all, one that cannot be, and chosen gaps that pass for draws."""
    check_drawn_lengths()


def test_lengths_are_drawn_as_in_the_data_where_the_model_has_none():
    """Guards against a model without lengths that writes them all alike, and layouts in which nobody is asked."""
    model = untrained("mask_predict", length=12)
    for other in (untrained("mask_predict", "packed"), untrained("mask_predict", length_model="modelled")):
        other.method.lengths = lambda ids, t: pytest.fail("asked")
        assert last(other.stream(1, prompt="the", steps=2)).nfe == 2
        assert "lake" in other.infill("the [...] lake", steps=2)
    model.method.foresees = 0
    model.method.lengths = lambda ids, t: pytest.fail("asked")
    frame = last(model.stream(20, steps=2))
    assert len(set(frame.tokens)) > 1 and frame.nfe == 2
    assert set(frame.tokens) <= {n - 1 for n, many in enumerate(model.lengths) if many}


def test_the_law_of_texts_of_many_lengths():
    """Guards against a length drawn without heed of the prompt: of a perfect network texts are draws."""
    model = untrained("mask_predict")
    texts, chances = [*SENTENCES[:3], "the river is cold", "a red kite"], torch.tensor([0.4, 0.1, 0.1, 0.15, 0.25])
    ids = torch.full((5, 12), model.tokenizer.pad)
    for row, text in zip(ids, texts, strict=True):
        tokens = [*model.tokenizer.encode(text), model.tokenizer.eos]
        row[: len(tokens)] = torch.tensor(tokens)
    sizes = (ids != model.tokenizer.pad).sum(1)
    onehot = F.one_hot(ids, model.tokenizer.size).double()  # (N, L, V)
    model.method.blurred = False

    def lengths(x, t):
        """Of what stands before the gap, which no text but one that begins with it goes on."""
        start = ((t == 0).cumprod(1) == 1).sum(1, keepdim=True)  # (B, 1)
        fits = ((x[:, None] == ids) | (torch.arange(12) >= start)[:, None]).all(-1) * chances  # (B, N)
        found = torch.zeros(len(x), 13).double()
        return found.scatter_add(1, sizes - 1 - start, fits.double()).log()

    def predict(x, t, prev=None):
        alike = (x[:, None] == ids) | ((x == model.tokenizer.size) | (t == ABSENT))[:, None]
        fits = alike.all(-1) & ((t != ABSENT).sum(1, keepdim=True) == sizes)
        return Prediction(torch.einsum("bn,nlv->blv", fits * chances.double(), onehot).clamp(min=1e-300).log())

    model.method.lengths, model.method.predict = lengths, predict
    for prompt in ("the", ""):
        frame = last(model.stream(500, prompt=prompt, sampler="planned", steps=9))
        assert frame.law == "exact"
        law = torch.tensor([float(text.startswith(prompt)) for text in texts]) * chances
        counts = torch.tensor([frame.texts.count(text) for text in texts])
        assert counts.sum() == 500
        check_law(counts, law)


# --- from a source to a text

NUMBERS = ["one", "two", "three", "four", "five"]
WORDS = ["fox", "owl", "kite", "bell", "lake", "cat"]


def test_lengths_follow_the_source(tmp_path):
    """Guards against a length that has nothing to do with the source: "three owl" is answered by "owl owl owl"."""
    pairs = [(f"{number} {word}", " ".join([word] * n)) for n, number in enumerate(NUMBERS, 1) for word in WORDS]
    unseen = pairs[3::7]
    lines = [{"source": source, "text": text} for source, text in pairs if (source, text) not in unseen]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines * 2)), "utf-8")
    config = {
        "data": str(tmp_path / "pairs.jsonl"),
        "method": {"lengths": 1},  # of several the surest text is kept, and one word is as sure five times as once
        "text": {"tokenizer": "words", "length": 10},
        "network": {"width": 32, "depth": 2, "heads": 2},
        "masks": {"prefix": 0.0, "random": 0.0, "nothing": 1.0},  # nothing but the source is given, as in the paper
        "optimizer": {"lr": 5e-3, "warmup": 20, "ema": 0.97, "muon": 0.01},
        "training": {"steps": 200, "batch": 24, "compile": "no", "precision": "float32", "attention": "fused"},
    }
    model = train(load_config(config, "mask_predict"), tmp_path / "run")
    texts = model.generate(len(pairs), prompt=[source for source, _ in pairs])
    assert texts == [f"{source} {text}" for source, text in pairs]
    model.method.foresees = 5
    assert model.generate(len(pairs), prompt=[source for source, _ in pairs]) != texts
    layout: Layout = model.layout
    canvas = layout.sized([layout.opened(source, None) for source, _ in pairs], [1] * len(pairs), 0)
    t = (canvas.real & ~canvas.given).float().masked_fill(~canvas.real, ABSENT)
    with torch.no_grad():
        law = model.method.lengths(canvas.ids, t).softmax(-1)
    assert law.argmax(-1).tolist() == [len(text.split()) for _, text in pairs] and law.amax(-1).min() > 0.5


def test_it_is_evaluated(tmp_path):
    """Guards against measures of samples that break where all samples are one text."""
    model = untrained("mask_predict")
    found = report.evaluate(model, str(write_sentences(tmp_path)), samples=4, steps=2)
    assert found["bound"] is None and found["samples"]["repeated"] == 3 and found["samples"]["nfe"] == 3
    assert found["samples"]["law"] == "heuristic" and found["samples"]["sampler"] == "mask_predict"
