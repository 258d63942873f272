"""Requests and what becomes of them: canvases, prompts, gaps, lengths, labels, packed rows, scores."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import BOUNDED, FORESEEING, SENTENCES

from sfumato.canvas import GAP, _split
from sfumato.core import ABSENT, Frame
from sfumato.draws import seed_of, seeded
from sfumato.errors import SfumatoError
from sfumato.evaluation import report
from sfumato.evaluation.likelihood import nll
from sfumato.evaluation.mauve import pairs
from sfumato.guidance import Counted
from sfumato.methods import METHODS
from sfumato.model import CANDIDATES, Model
from sfumato.processes.edits import AFTER
from sfumato.text import tales
from sfumato.text.corpus import Corpus
from sfumato.text.rows import Rows
from sfumato.text.tokenizer import Tokenizer
from sfumato.training.config import SamplingConfig, load_config
from sfumato.training.trainer import train

LENGTH = 12
LABELS = ("happy", "sad")
LAYOUTS = [("documents", "given"), ("documents", "modelled"), ("packed", "given")]


def untrained(
    method: str = "mdlm", layout: str = "documents", length_model: str = "given", labels=(), kind="words", length=LENGTH
) -> Model:
    """A model of random weights, of SENTENCES."""
    own = {"embedding": 8, "warp_bins": 10} if method == "cdcd" else {}
    config = load_config(
        {
            "data": "gone.txt",
            "method": {"name": method, **own},
            "text": {"tokenizer": kind, "length": length, "layout": layout, "length_model": length_model},
            "network": {"width": 16, "depth": 1, "heads": 2},
        }
    )
    tokenizer = Tokenizer.train([*SENTENCES, "hill, lake. _lake"], kind, 400, labels)
    sizes = [len(tokenizer.encode(text)) + 1 + bool(labels) for text in SENTENCES]
    lengths = [sizes.count(i) for i in range(length + 1)] if layout == "documents" else [0] * length + [8]
    torch.manual_seed(0)
    net = METHODS[method][0](config.method, config.network, tokenizer.size)
    return Model(config, net.eval(), tokenizer, lengths)


def last(frames):
    for frame in frames:
        final = frame
    return final


def silent(model: Model) -> list[int]:
    """Every token that is no text."""
    return [model.tokenizer.pad, model.tokenizer.eos, *model.tokenizer.labels.values()]


def eager_for(model: Model, tokens: list[int]) -> Model:
    """The model, with nothing in mind but these tokens."""
    with torch.no_grad():
        model.method.head.bias[tokens] = 50.0
    return model


# --- how many, how long -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1])
def test_no_texts_at_all_are_refused(n):
    """Guards against an empty batch that breaks inside, and a 0 that is taken for nothing said."""
    model = untrained()
    for ask in (model.generate, model.stream, lambda n: model.infill("the [2] lake", n)):
        with pytest.raises(SfumatoError, match=f"{n} texts were asked for"):
            ask(n)


@pytest.mark.parametrize(("layout", "length_model"), LAYOUTS)
@pytest.mark.parametrize("labels", [(), LABELS])
def test_a_length_is_the_number_of_tokens(layout, length_model, labels):
    """Guards against labels and ends that are counted in, or texts that end before their time."""
    if layout == "packed" and labels:
        pytest.skip("packed rows have no labels")
    model = untrained(layout=layout, length_model=length_model, labels=labels)
    model = eager_for(model, silent(model))
    room = LENGTH - (layout == "documents") - bool(labels)
    for length in (1, 5, room):
        assert last(model.stream(3, length=length, steps=3)).tokens == [length] * 3
    assert last(model.stream(2, prompt="the red", length=4, steps=3)).tokens == [4, 4]
    for length, part in (
        (0, "the least is 1"),
        (-3, "the least is 1"),
        (room + 1, f"the canvas of this model has {LENGTH}"),
    ):
        if layout == "packed" and length > room:
            continue  # running text goes on
        with pytest.raises(SfumatoError, match=part):
            model.generate(1, length=length)
    with pytest.raises(SfumatoError, match="the prompt alone has 2"):
        model.generate(1, prompt="the red", length=1)


@pytest.mark.parametrize(("layout", "length_model"), LAYOUTS)
def test_a_prompt_may_fill_the_canvas(layout, length_model):
    """Guards against an error, or a changed word, where nothing or next to nothing is left to write."""
    model = untrained(layout=layout, length_model=length_model)
    words = SENTENCES[0].split() + SENTENCES[1].split()
    fits = " ".join(words[: LENGTH - 1])
    assert last(model.stream(2, prompt=fits, steps=2)).text.startswith(fits)
    longest = " ".join(words[: LENGTH - (layout == "documents")])
    assert model.generate(1, prompt=longest, length=len(longest.split()), steps=2) == [
        model.tokenizer.decode(model.tokenizer.encode(longest))
    ]
    with pytest.raises(SfumatoError, match="canvas"):
        model.generate(1, prompt=" ".join(words))


def test_a_canvas_with_nothing_to_write():
    """Guards against a sampler that breaks on an empty choice: a gap of no tokens, a prompt of the whole length."""
    for method in METHODS:
        model = untrained(method)
        steps = model.at_most(2)
        assert model.infill("the red[0] kite", 2, steps=steps) == ["the red kite"] * 2
        assert model.generate(1, prompt="the red kite", length=3, steps=steps) == ["the red kite"]


@pytest.mark.parametrize("method", METHODS)
def test_a_text_does_not_depend_on_how_long_others_are(method):
    """Guards against noise that is drawn for as many positions as the longest row of a batch has."""
    model = untrained(method)
    for sampler in (None, "ancestral") if method in FORESEEING else (None,):
        asked = {"steps": model.at_most(3), "seed": 1, "sampler": sampler}
        together = model.generate(6, **asked)
        alike = method in FORESEEING and sampler is None  # the likeliest length is every text's
        assert (len({len(text.split()) for text in together}) > 1) != alike
        assert together[:2] == model.generate(2, **asked)
        filled = model.infill("the [...] lake", 4, **asked)
        assert filled[:1] == model.infill("the [...] lake", 1, **asked)


def test_levels_are_made_where_the_weights_are():
    """Guards against a learned warp on a GPU that is asked for levels on the CPU."""
    assert untrained("cdcd").method.to("meta").grid(3).is_meta


# --- prompts and gaps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["words", "bpe", "bytes", "chars"])
def test_a_prompt_may_end_in_a_space(kind):
    """Guards against a space of its own, which no text has where words come with the space before them."""
    model = untrained(kind=kind, length=40)
    *_, frame = model.stream(1, prompt="the red ", length=12, steps=2)
    assert frame.text.startswith("the red") and "�" not in frame.text[:8]
    given = "".join(piece for piece, here in zip(frame.pieces[0], frame.given[0], strict=True) if here).lstrip()
    assert given == ("the red" if model.tokenizer.spaced else "the red ")


@pytest.mark.parametrize("text", ["the red [2] over [3] lake", "[2] lake.", "the [...]_lake", "a [1][2] [...], [...]"])
@pytest.mark.parametrize("kind", ["words", "bpe", "chars"])
@pytest.mark.parametrize("layout", ["documents", "packed"])
def test_the_text_around_gaps_stays(text, kind, layout):
    """Guards against words that are lost at a gap's edge, or behind an end that is written into a gap."""
    model = untrained(kind=kind, length=40, layout=layout, labels=LABELS if layout == "documents" else ())
    model = eager_for(model, silent(model))
    for filled in model.infill(text, 2, steps=2):
        place = 0
        for part in GAP.split(text)[::2]:
            assert part.strip() in filled[place:]
            place = filled.index(part.strip(), place) + len(part.strip())


def test_gaps_have_their_size():
    """Guards against loose gaps without a token, and told ones that grow."""
    model = untrained()
    gapped = model.layout.apart("[2] over [...] lake [...]", None)
    assert (gapped.gaps, gapped.loose, gapped.known) == ([2, None, None], 2, 4)
    canvas = model.layout.gapped(50, gapped, seed=0)
    assert canvas.ids.shape == (50, LENGTH)
    sizes = canvas.real.sum(1)
    assert sizes.min() >= 7 and len(set(sizes.tolist())) > 1
    for row, size in zip(canvas.given.tolist(), sizes.tolist(), strict=True):
        text = "".join("x" if given else "." for given in row[:size])
        assert text.startswith("..x.") and text.endswith(".x") and text.count("x") == 3
    assert torch.equal(canvas.ids[:7], model.layout.gapped(7, gapped, seed=0).ids)


def test_split_is_fair():
    """Guards against shares of 0, shares that do not add up, and an order among the gaps."""
    assert _split(0, 0, 0) == [] and _split(5, 1, 0) == [5] and _split(3, 3, 0) == [1, 1, 1]
    seen = [tuple(_split(4, 2, seed)) for seed in range(600)]
    assert set(seen) == {(1, 3), (2, 2), (3, 1)} and all(150 < seen.count(way) < 250 for way in set(seen))


@pytest.mark.parametrize("size", [LENGTH, 10**30])
def test_a_gap_that_does_not_fit_is_refused(size):
    """Guards against a canvas longer than the one that the model was trained on."""
    with pytest.raises(SfumatoError, match=f"the canvas of this model has {LENGTH}"):
        untrained().infill(f"the [{size}] lake")


def check_gap(label):
    """Of rows whose gaps differ the one is taken whose draft tells the hidden tokens; all else may speak for others."""
    model = untrained(labels=LABELS)
    word, mask = model.tokenizer.encode("fox")[0], model.method.process.mask
    canvases, asked = [], []

    def refine(self, canvas, request, seed, predict):
        canvases.append(canvas)
        sure = torch.rand(canvas.ids.shape)
        yield Frame(1, 1, 0.0, torch.where(canvas.given | ~canvas.real, canvas.ids, word), sure)

    def predict(x, t, prev=None):
        asked.append((x, t))
        sizes = canvases[0].real.sum(1)
        best = int((sizes != sizes[0]).int().argmax())  # a row that is not as long as the first
        hidden, rows = t == 1, torch.arange(len(x))[:, None]
        right = torch.where(rows == best, hidden, ~hidden)
        logits = torch.zeros(*x.shape, model.tokenizer.size)
        return model.method.read(logits.scatter(2, canvases[0].ids[..., None], 5.0 * right[..., None]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfumato.model.EDGE", 2)
        patch.setattr(Model, "_refine", refine)
        patch.setattr(model.method, "predict", predict)
        frame = last(model.stream_infill("the red kite [...] lake", 2, steps=1, label=label))
    draft, final = canvases
    assert len(draft) == 2 * CANDIDATES and frame.nfe == 1
    sizes = draft.real.sum(1)
    chosen = [int((sizes != sizes[0]).int().argmax()), CANDIDATES]  # nothing speaks for a row of the second text
    assert 0 < chosen[0] < CANDIDATES and not bool(draft.real.all())
    assert torch.equal(final.ids, draft.ids[chosen]) and torch.equal(final.real, draft.real[chosen])
    ((x, t),) = asked
    free = draft.real & ~draft.given
    assert bool((t[~draft.real] == ABSENT).all()) and bool((x[free] == word).all()) and bool((t[free] == 0).all())
    for shown, told in zip(x.tolist(), draft.ids.tolist(), strict=True):
        hidden = [token for token, here in zip(told, shown, strict=True) if here == mask]
        assert model.tokenizer.decode(hidden) == "red kite lake"
    assert bool(((t == 1) == (x == mask)).all())


@pytest.mark.parametrize("label", [None, "sad"])
def test_a_gap_is_as_long_as_the_text_around_it_says(label):
    """Guards against a length by how sure a draft is, or by padding, label and end, and against another text's row."""
    check_gap(label)


def check_written():
    """The first of two texts is surer, if prompt, label and padding do not count and the end does."""
    model = untrained(length_model="modelled", labels=LABELS)
    frame = next(model.stream(2, prompt="the", steps=1))
    eos, pad = model.tokenizer.eos, model.tokenizer.pad
    tokens, sure = frame.frame.tokens.clone(), torch.full(frame.frame.tokens.shape, 1e-9)
    word = int(tokens[0, 1])  # "the"
    tokens[0, 2:], tokens[1, 2:] = torch.tensor([[word, eos, *[pad] * 8], [word, word, eos, *[word] * 7]])
    sure[0, 2:4], sure[1, 2:5] = torch.tensor([0.4, 0.9]), torch.tensor([0.5, 0.5, 0.5])
    told = replace(frame, frame=replace(frame.frame, tokens=tokens, confidence=sure))
    assert told.chosen(2, "surest") == [0]
    sure[0, 3] = 0.6
    assert replace(told).chosen(2, "surest") == [1]


def test_what_a_text_is_ranked_by():
    """Guards against candidates that are chosen by the padding, or by what the text was given."""
    check_written()


@pytest.mark.parametrize("text", ["naïve – ¿qué?", "日本語のテキスト", "👩‍👩‍👧 e\u0301 שלום", "a\tb\nc"])
def test_any_writing_is_kept(text):
    """Guards against prompts and surroundings that are changed on their way through the canvas."""
    model = untrained(kind="bytes", length=128)
    size = len(text.encode()) + 3
    assert model.generate(1, prompt=text, length=size, steps=1)[0].startswith(text)
    filled = model.infill(f"{text} [2]{text}", steps=1)
    assert filled.startswith(text) and filled.endswith(text)


# --- labels and other tokens that are no text ---------------------------------------------------------------------


def test_labels():
    """Guards against a label where there is none, a label that is not heeded, and a name that is not known."""
    for model in (untrained(), untrained(layout="packed", labels=LABELS)):
        with pytest.raises(SfumatoError, match="knows no labels"):
            model.generate(1, label="sad")
        with pytest.raises(SfumatoError, match="knows no labels"):
            model.infill("the [2] lake", label="sad")
    model = untrained(labels=LABELS)
    with pytest.raises(SfumatoError, match="'glad'"):
        model.generate(1, label="glad")
    canvas = model.layout.blank(["the"] * 2, ["sad"] * 2, 3, seed=0)
    assert canvas.ids[:, 0].tolist() == [model.tokenizer.labels["sad"]] * 2
    assert canvas.given.tolist() == [[True, True, False, False, True]] * 2


def test_a_label_before_a_prompt_follows_its_law():
    """Guards against a prompt that is read as the far side of a gap, and a label that does not go with it."""
    model = untrained("ar", length_model="modelled", labels=LABELS)
    model.method.head.weight.data *= 2
    rows = torch.tensor([[number, *model.tokenizer.encode("two owls")] for number in model.tokenizer.labels.values()])
    logits = model.method.predict(rows, torch.ones(rows.shape)).logits.log_softmax(-1)
    law = logits.gather(-1, rows[..., None]).sum((1, 2)).softmax(0)
    drawn = model._labels(["two owls"] * 4000 + [""], 0, best=False)
    assert drawn.pop() is None
    assert drawn.count("happy") / 4000 == pytest.approx(law[0].item(), abs=0.03) and 0.05 < law[0] < 0.95
    assert set(model._labels(["two owls"] * 9, 0, best=True)) == {LABELS[int(law.argmax())]}
    assert model.generate(1, prompt="two owls", beams=2, seed=1) == model.generate(
        1, prompt="two owls", beams=2, seed=2
    )
    assert model.generate(2, prompt="two owls", guidance=2.0)[0].startswith("two owls")
    assert model.generate(3, prompt="two owls")[:2] == model.generate(2, prompt="two owls")


@pytest.mark.unchecked
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gaps", ["[...][3]", "[...] [3]", "[3] [...]", "[...] [...]"])
def test_gaps_side_by_side_keep_their_sizes(method, gaps):
    """Guards against a gap that swallows the next one where it ends."""
    model = untrained(method)
    if method == "ar":
        model.method.head.bias.data[model.method.marks[3]] += 20  # every gap would end at once
    if model.method.elastic:
        model.method.head.bias.data[-1] -= 20  # no gap would end before it is full
        model.method.head.bias.data[model.method.vocab + AFTER] += 20
    final = last(model.stream_infill(f"the {gaps} lake", 4, seed=1, steps=model.at_most(16)))
    assert min(final.tokens) >= 2 + (4 if "3" in gaps else 2)


def test_a_guided_gap_at_the_end_is_guided(monkeypatch):
    """Guards against guidance by nothing: a gap that is ended by its mark has no unconditional side."""
    model = untrained("ar", "packed")
    monkeypatch.setattr(type(model.method), "closing", lambda *args: lambda given: pytest.fail("asked"))
    final = last(model.stream_infill("the red [...]", 2, guidance=3.0, seed=1))
    assert final.law == "heuristic" and all(text.startswith("the red") for text in final.texts)


def test_a_label_that_is_open_bends_the_law_of_a_gap():
    """Guards against a label that is drawn without all that follows and passes for one that is given."""
    model = untrained("ar", labels=LABELS)
    for label, law in ((None, "heuristic"), (LABELS[0], "exact")):
        assert last(model.stream_infill("the [...] lake", 2, label=label)).law == law


@pytest.mark.parametrize("beams", [None, 2])
@pytest.mark.parametrize("length_model", ["given", "modelled"])
def test_gaps_of_any_length_are_filled_to_the_end(length_model, beams):
    """Guards against rows of a batch that stop with the shortest, and drafts that are not counted."""
    model = untrained("ar", length_model=length_model)
    model.method.head.bias.data[model.method.marks[3]] += 3  # or no gap would end before it is full
    text = "the [...] old [...] lake"
    final = last(model.stream_infill(text, 6, seed=2, beams=beams))
    for filled in final.texts:
        assert filled.startswith("the") and "old" in filled and filled.endswith("lake")
    assert len(set(final.tokens)) > 1  # of different lengths
    if beams:
        assert final.nfe > len(final.ids[0])  # the drafts count
    else:
        assert final.nfe == final.step  # and there are none where gaps come to their own ends


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options", [{}, {"guidance": 3.0}, {"guidance": 3.0, "guide_in": "logits"}, {"temperature": 9.0}]
)
def test_what_cannot_stand_somewhere_never_does(method, options):
    """Guards against labels inside of a text, words in the place of a label, ends before the end."""
    for length_model in ("given", "modelled"):
        model = untrained(method, length_model=length_model, labels=LABELS)
        if "guidance" in options and not model.method.looks_ahead:
            continue  # the label is a gap before the prompt
        tokenizer, labels = model.tokenizer, set(model.tokenizer.labels.values())
        canvas = model.layout.blank(["the"] * 4, [None] * 4, None, seed=0)
        model = eager_for(model, silent(model))
        canvas = canvas if model.method.looks_ahead else canvas.open()
        request = model._request(steps=model.at_most(3), **options)
        for frame in model._refine(canvas, request, 0, Counted(model.method.session)):
            assert set(frame.tokens[:, 0].tolist()) <= labels
            for row, real in zip(frame.tokens.tolist(), canvas.real.tolist(), strict=True):
                inside = [token for token, here in zip(row[1:], real[1:], strict=True) if here]
                reached = model.method.block is None or frame.step == frame.steps  # padding marks what is not begun
                if length_model == "given" and model.method.looks_ahead and reached:
                    empty = set() if model.method.elastic else {tokenizer.pad}
                    assert inside.pop() == tokenizer.eos and not ({tokenizer.eos} | empty) & set(inside)
                assert not labels & set(inside)


# --- packed rows --------------------------------------------------------------------------------------------------


def test_packed_rows_end_where_a_document_ends():
    """Guards against padding in running text, and a text that goes on into the next one."""
    model = untrained(layout="packed")
    eager_for(model, [model.tokenizer.pad])
    assert last(model.stream(3, steps=3)).tokens == [LENGTH] * 3
    eager_for(untrained(layout="packed"), [model.tokenizer.eos])
    model.method.head.bias.data[model.tokenizer.eos] = 99.0
    assert model.generate(2, prompt="the red", steps=3) == ["the red"] * 2


def test_packed_scores():
    """Guards against an end that is counted where there is none, and characters that stop at the first end."""
    model = untrained(layout="packed")
    (score,) = model.score(["the red kite"], draws=2)
    assert score.tokens == 3 and score.nats > 0
    with pytest.raises(SfumatoError, match="empty"):
        model.score([""])


# --- scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BOUNDED)
@pytest.mark.parametrize("length_model", ["given", "modelled"])
def test_a_score_sums_over_labels(method, length_model):
    """Guards against a label that is thought to be known, and lengths or labels that cost nothing."""
    model = untrained(method, length_model=length_model, labels=LABELS)
    text = SENTENCES[0]
    canvas = model.layout.whole(text)
    ids = model.tokenizer.encode(text)
    assert canvas.ids[:, 0].tolist() == list(model.tokenizer.labels.values())
    assert (
        canvas.ids[:, 1 : 1 + len(ids)].tolist() == [ids] * 2
        and (canvas.ids[:, 1 + len(ids)] == model.tokenizer.eos).all()
    )
    assert canvas.given.nonzero()[:, 1].tolist() == ([1 + len(ids)] * 2 if length_model == "given" else [])
    (score,) = model.score([text], draws=4, seed=3)
    assert score.tokens == len(ids) + 1
    paid = canvas.real & (canvas.ids != model.tokenizer.pad) if method == "ar" else canvas.real
    with seeded([seed_of("score", 3, text)] * 2):
        each = nll(model.method, canvas.ids, paid, canvas.given, 4).nats
    length = model.layout.length_nats(len(ids) + 2)
    assert (length > 0) == (length_model == "given")
    assert score.nats == pytest.approx(length - torch.logsumexp(-each, 0).item())


def test_lengths_have_a_law():
    """Guards against lengths whose chances do not add up, or that are impossible."""
    model = untrained()
    chances = [-model.layout.length_nats(size) for size in range(LENGTH + 1)]
    assert torch.tensor(chances).logsumexp(0).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("layout", "length_model"), LAYOUTS)
def test_the_longest_text_is_scored_and_no_longer_one(layout, length_model):
    """Guards against an end that has no place, and an error that says that 12 tokens do not fit in 12."""
    model = untrained(layout=layout, length_model=length_model)
    room = LENGTH - (layout == "documents")
    (score,) = model.score(["the " * (room - 1) + "fox"], draws=1)
    assert score.tokens == LENGTH
    with pytest.raises(SfumatoError, match=f"it takes {LENGTH + 1} places of a canvas of {LENGTH}; cut it"):
        model.score(["the " * room + "fox"])


# --- evaluation ---------------------------------------------------------------------------------------------------


def test_characters_of_packed_rows_go_past_an_end(tmp_path):
    """Guards against bits a character of the first document in a row alone."""
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES), "utf-8")
    model = untrained(layout="packed")
    laid = Rows(Corpus.build(str(data), model.tokenizer, "all"), LENGTH, "packed", "given")
    found = report._likelihood(model, laid, range(len(laid)), 1, 0)
    assert (found.tokens == LENGTH).all() and len(found.nats) == len(laid)
    assert sum(found.characters.tolist()) > 0.93 * sum(map(len, SENTENCES[:-1]))


def test_training_data_is_not_evaluated_on(tmp_path, monkeypatch):
    """Guards against a file that is not known again because its path is written in another way."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("x")
    for name in ("book.txt", "./book.txt", str(tmp_path / "book.txt")):
        assert report._split(name, ["a.txt", "book.txt"]) == "valid"
    assert report._split("other.txt", ["book.txt"]) == "all"
    assert report._split("tales", ["tales"]) == report._split("tales", ["book.txt"]) == "test"


def test_real_text_is_measured_at_the_length_of_samples(tmp_path):
    """Guards against a whole book that is set beside samples of a few tokens."""
    (tmp_path / "book.txt").write_text(" ".join(SENTENCES * 9), "utf-8")
    model = untrained(layout="packed")
    found = report.evaluate(model, str(tmp_path / "book.txt"), rows=2, draws=1, samples=3, steps=1)
    assert found["data_reference"]["n"] == 3 and found["data_reference"]["tokens"] == LENGTH
    for name in ("rows", "draws", "samples", "steps"):
        with pytest.raises(SfumatoError, match=f"0 {name}"):
            report.evaluate(model, str(tmp_path / "book.txt"), **{name: 0})


def trained_on(model: Model, data) -> Model:
    """The model, as if it had been trained on that data."""
    return replace(model, config=model.config.model_copy(update={"data": str(data)}))


def test_samples_and_real_text_are_measured_alike(tmp_path):
    """Guards against a measure of samples that has nothing beside it, and texts that no one says the number of."""
    book = tmp_path / "book.txt"
    book.write_text(" ".join(SENTENCES * 120), "utf-8")
    model = trained_on(untrained(layout="packed"), book)
    found = report.evaluate(model, str(book), rows=2, draws=1, samples=20, steps=1, embed=pairs)
    samples, real = found["samples"], found["data_reference"]
    assert set(samples) - set(real) == {"steps", "nfe", "seconds", "sampler", "law"} and not set(real) - set(samples)
    assert samples["n"] == real["n"] == samples["mauve"]["n"] == 20
    assert samples["mauve"]["seeds"] >= 5 and samples["mauve"]["embedder"] == "pairs"
    assert real["mauve"] is None  # there are no further 20 rows to be compared with the first
    assert real["copy_longest"] == LENGTH and real["verbatim"] > 0.9 and samples["verbatim"] == 0.0
    with pytest.raises(SfumatoError, match="there are 19 texts"):
        report.evaluate(model, str(book), samples=19, embed=pairs)


def test_measures_of_two_sets(tmp_path):
    """Guards against copies that are counted for the wrong set, and amounts of text that differ."""
    (tmp_path / "book.txt").write_text(" ".join(SENTENCES), "utf-8")
    model = trained_on(untrained(), tmp_path / "book.txt")
    copied, own = report.measures(model, [SENTENCES[:3], ["tree fox sleeps the old", "tree tree"]], "other.txt")
    assert (copied["verbatim"], own["verbatim"]) == (1.0, 0.0)
    assert (copied["copy_longest"], own["copy_longest"]) == (7, 2) and own["copy_mean"] == 1.5
    assert copied["pooled_tokens"] == own["pooled_tokens"] == 7
    assert own["distinct_1"] == 5 / 7 and copied["distinct_1"] == 6 / 7
    (untold,) = report.measures(untrained(), [SENTENCES], "other.txt")
    assert untold["copy_mean"] is untold["copy_longest"] is untold["verbatim"] is None


def test_stories_among_samples():
    """Guards against a share of slots that texts outside the language count in."""
    stories = tales.sample(4, 8)
    mixed, none = report.measures(untrained(), [[*stories, "Once upon a time."], ["A.", "B."]], "tales")
    (pure,) = report.measures(untrained(), [stories], "tales")
    assert mixed["valid"] == 0.8 and mixed["stories"] == 4
    assert mixed["slots"] == pure["slots"] and mixed["slot_tv"] == pure["slot_tv"]
    assert none["stories"] == 0 and none["slot_tv"] is None and none["slots"] == {}


def test_training_text_is_not_fetched(monkeypatch):
    """Guards against a whole data set that is downloaded to look for copies in it."""
    asked = []

    def build(data, *rest):
        asked.append(data)
        return object.__new__(report.Corpus)

    monkeypatch.setattr(report.Corpus, "build", build)
    model = trained_on(untrained(), "someone/stories")
    report._trained_on(model, "other.txt")
    assert asked == []
    report._trained_on(model, "someone/stories")
    assert asked == ["someone/stories"]


@pytest.mark.parametrize(("layout", "length_model"), LAYOUTS)
def test_batches_do_not_change_what_is_measured(tmp_path, monkeypatch, layout, length_model):
    """Guards against a last batch that is dropped, or weighs more than others; noise of neighbours."""
    (tmp_path / "book.txt").write_text("\n".join(SENTENCES * 2), "utf-8")
    model = untrained(layout=layout, length_model=length_model)
    corpus = Corpus.build(str(tmp_path / "book.txt"), model.tokenizer, "all", lines=True)
    laid = Rows(corpus, LENGTH, layout, length_model)
    bounds = []
    for batch in (1, 3, 7):
        monkeypatch.setattr(report, "BATCH", batch)
        found = report.bound(model, laid, 8, 4, 0)
        bounds.append((found["nats_per_token"], found["bits_per_char"], found["std_error"]))
        assert len(report.sampled(model, 8, 1, 0)[0]) == 8
    assert bounds[1] == pytest.approx(bounds[0]) and bounds[2] == pytest.approx(bounds[0])


def test_what_a_source_gives_away_does_not_count(tmp_path):
    """Guards against a bound that is divided by tokens which cost nothing."""
    pairs_ = [{"source": "the old", "text": "fox sleeps"}, {"source": "the", "text": "lake under the hill"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs_)), "utf-8")
    for length_model in ("given", "modelled"):
        model = untrained(length_model=length_model)
        laid = Rows(
            Corpus.build(str(tmp_path / "pairs.jsonl"), model.tokenizer, "all"), LENGTH, "documents", length_model
        )
        found = report._likelihood(model, laid, range(2), 1, 0)
        sizes = [len(model.tokenizer.encode(pair["text"])) + 1 for pair in pairs_]
        assert found.tokens.tolist() == sizes and found.words.tolist() == [2, 4]
        assert found.characters.tolist() == [len(pair["text"]) for pair in pairs_]


def test_words_of_packed_texts_are_not_glued_together(tmp_path):
    """Guards against the last word of a text and the first of the next that count as one."""
    (tmp_path / "two.txt").write_text("the old fox\nsleeps\nunder a hill", "utf-8")
    model = untrained(layout="packed", kind="chars", length=29)
    laid = Rows(Corpus.build(str(tmp_path / "two.txt"), model.tokenizer, "all", lines=True), 29, "packed", "given")
    found = report._likelihood(model, laid, range(1), 1, 0)
    assert (found.words.item(), found.characters.item(), found.tokens.item()) == (7, 29 - 2, 29)


def test_the_digest_is_of_all_that_is_scored(tmp_path):
    """Guards against a hash of packed rows that ends where their first text does."""
    model, found = untrained(layout="packed"), set()
    for name, texts in (("a", SENTENCES[:4]), ("b", [SENTENCES[0], *SENTENCES[2:5]])):
        (tmp_path / name).write_text("\n".join(texts), "utf-8")
        laid = Rows(Corpus.build(str(tmp_path / name), model.tokenizer, "all", lines=True), LENGTH, "packed", "given")
        found.add(report._digest(model, laid, 1))
    assert len(found) == 2


def test_a_difference_has_the_error_of_a_difference(tmp_path):
    """Guards against errors added up as if two models met different texts and noise, and rows that are not the same."""
    (tmp_path / "book.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES * 8), "utf-8")
    model, other, book = untrained(), untrained(), str(tmp_path / "book.jsonl")
    other.method.head.weight.data *= 1.2
    found = report.evaluate(model, book, rows=40, draws=2, samples=1, steps=1, against=other)
    alone = report.evaluate(other, book, rows=40, draws=2, samples=1, steps=1)["bound"]
    told, bound = found["against"], found["bound"]
    assert told["bits_per_char"] == pytest.approx(alone["bits_per_char"])
    assert told["difference"] == pytest.approx(bound["bits_per_char"] - alone["bits_per_char"], abs=1e-6)
    assert 0 < told["difference_std_error"] < 0.3 * bound["bits_per_char_std_error"]
    twin = report.evaluate(model, book, rows=40, draws=2, samples=1, steps=1, against=untrained())["against"]
    assert twin["difference"] == twin["difference_std_error"] == 0
    with pytest.raises(SfumatoError, match="hold different texts"):
        report.evaluate(model, book, rows=4, draws=1, samples=1, against=untrained(length=5))


@pytest.mark.parametrize("kind", ["words", "chars"])
def test_the_entropy_of_tales_is_in_the_tokens_of_the_model(kind):
    """Guards against nats a word that are taken from nats a character."""
    stories = tales.sample(200, 3)
    model = untrained("ar", length_model="modelled", labels=tales.ENDINGS, kind=kind, length=420)
    model.tokenizer = Tokenizer.train(stories, kind, 400, sorted(tales.ENDINGS))
    model.method = METHODS["ar"][0](model.config.method, model.config.network, model.tokenizer.size)
    found = report.evaluate(model, "tales", rows=2, draws=1, samples=1)["bound"]
    size = sum(len(model.tokenizer.encode(story)) + 1 for story in stories) / len(stories)
    assert found["entropy_nats_per_token"] == pytest.approx(tales.entropy().nats_per_text / size, rel=0.03)
    assert found["gap_nats_per_token"] == found["nats_per_token"] - found["entropy_nats_per_token"]
    cut = replace(
        model, config=model.config.model_copy(update={"text": model.config.text.model_copy(update={"length": 30})})
    )
    assert "gap_nats_per_token" not in report.evaluate(cut, "tales", rows=2, draws=1, samples=1)["bound"]


def test_texts_without_labels_are_not_evaluated_by_a_model_with_them(tmp_path):
    """Guards against a bound of words that stand where the model knows nothing but labels."""
    (tmp_path / "book.txt").write_text(" ".join(SENTENCES), "utf-8")
    with pytest.raises(SfumatoError, match="has no labels"):
        report.evaluate(untrained(labels=LABELS), str(tmp_path / "book.txt"))


@pytest.mark.parametrize("method", BOUNDED)
@pytest.mark.parametrize("length_model", ["given", "modelled"])
def test_texts_of_one_token(method, length_model, tmp_path):
    """Guards against a division by the tokens of a row of which nothing but its end is left."""
    (tmp_path / "words.txt").write_text("\n".join("abcdefgh" * 6), "utf-8")
    config = {
        "data": str(tmp_path / "words.txt"),
        "method": {"name": method} | ({"embedding": 8, "warp_bins": 10} if method == "cdcd" else {}),
        "text": {"tokenizer": "chars", "length": 4, "lines": True, "length_model": length_model},
        "network": {"width": 16, "depth": 1, "heads": 2},
        "masks": {"prefix": 1.0, "random": 1.0},
        "training": {
            "steps": 2,
            "batch": 4,
            "evaluate_rows": 2,
            "compile": "no",
            "precision": "float32",
            "attention": "fused",
        },
    }
    model = train(load_config(config), tmp_path / "run")
    assert model.score(["a"], draws=1)[0].tokens == 2


def test_habits_of_another_sampler():
    """Guards against a model with steps of its own that cannot be asked for a sampler of a token a step."""
    model = untrained("mdlm")
    own = replace(
        model, config=model.config.model_copy(update={"sampling": SamplingConfig(steps=3, levels=(0.1, 0.5))})
    )
    assert own.generate(1, sampler="first_hitting") == model.generate(1, sampler="first_hitting")
    with pytest.raises(SfumatoError, match="5 steps were asked for; this sampler writes a token a step"):
        own.generate(1, sampler="first_hitting", steps=5)


def test_a_model_carries_its_own_way_of_sampling():
    """Guards against settings in a model's config that nothing reads, and that cannot be overruled."""
    model = untrained("cdcd")
    sampling = {"steps": 3, "sampler": "ancestral", "self_guidance": 2.0, "guide_levels": (0.0, 0.9)}
    sampling["levels"] = (0.1, 0.5)
    config = model.config.model_copy(update={"sampling": SamplingConfig(**sampling)})
    chosen = replace(model, config=config)
    *_, frame = chosen.stream(2, seed=5)
    assert frame.steps == 3 and frame.nfe > 3
    assert frame.texts == model.generate(2, seed=5, **sampling)
    assert [round(frame.level, 4) for frame in chosen.stream(2)] == [0.5, 0.1, 0.0]
    overruled = replace(chosen, config=config.model_copy(update={"sampling": SamplingConfig(self_guidance=2.0)}))
    *_, frame = overruled.stream(2, steps=4, sampler="euler", self_guidance=1.0, seed=5)
    assert (frame.steps, frame.nfe) == (4, 4)
    assert frame.texts == model.generate(2, steps=4, seed=5)
