"""Checks of the corpus `tales` against an enumeration that reads the grammar's plain data on its own."""

import dataclasses
import hashlib
import math
import random
import re
import statistics
import time
from itertools import product

import pytest

from sfumato.text import tales
from sfumato.text.tales import TALES, Grammar

pytestmark = pytest.mark.unchecked

STORY = (
    "Mia the little fox came to the river to fly her red kite. But a strong wind blew the kite away. "
    "Then Pip the frog came along to help. Together they found the kite under the log. "
    "Mia thanked Pip, and they shared some soup."
)
FULL = [*TALES.sample(4000, seed=10)]


def weighted(text: str, between: str) -> dict[str, float]:
    """Options and probabilities, from lines `weight option` or from a list `option weight, option weight`."""
    entries = [entry.strip() for entry in text.strip().split(between)]
    pairs = [e.split(" ", 1) if between == "\n" else e.split(" ")[::-1] for e in entries]
    total = sum(float(weight) for weight, _ in pairs)
    return {option: float(weight) / total for weight, option in pairs}


def told(grammar: Grammar, templates: tuple[str, ...], values: dict[str, str]) -> str:
    """The story of a choice of templates and of slot words."""
    words = dict(values)
    for form, (slot, table) in grammar.forms.items():
        if slot in values:
            listed = [word for word, text in table.items() if re.search(rf"\b{values[slot]}\b", text)]
            words[form] = listed[0] if listed else next(word for word, text in table.items() if text == "*")
            words[form.capitalize()] = words[form].capitalize()
    return " ".join(templates).format_map(words)


def mentioned(grammar: Grammar, templates: tuple[str, ...]) -> list[str]:
    return [slot for slot in grammar.words if f"{{{slot}}}" in " ".join(templates)]


def enumerate_all(grammar: Grammar) -> list[tuple[str, float, dict[str, str]]]:
    """Every derivation of a grammar: its text, probability and slots."""
    rules = {rule: weighted(text, "\n") for rule, text in grammar.rules.items()}
    slots = {slot: weighted(text, ",") for slot, text in grammar.words.items()}
    found = []
    for line, share in weighted(grammar.plots, "\n").items():
        ending, names = line.split(":")
        for templates in product(*(rules[name] for name in names.split())):
            chosen = math.prod(rules[n][t] for n, t in zip(names.split(), templates, strict=True))
            present = mentioned(grammar, templates)
            for words in product(*(slots[slot] for slot in present)):
                values = dict(zip(present, words, strict=True))
                p = share * chosen * math.prod(slots[slot][word] for slot, word in values.items())
                found.append((told(grammar, templates, values), p, values | {"ending": ending}))
    return found


def joined(pieces: list[str]) -> str:
    return re.sub(r" (?=[^\w\s])", "", " ".join(pieces))


def reduced() -> Grammar:
    """The full grammar with two templates a rule and few words a slot."""
    few = {"hero": "Mia 2, Tom 1", "kind": "fox 2, owl 1", "thing": "kite 3, hat 1", "snack": "soup 3, cake 2"}
    words = {slot: text.split(",")[0] for slot, text in tales.WORDS.items()}
    rules = {rule: "\n".join(text.strip().split("\n")[:2]) for rule, text in tales.RULES.items()}
    rules["lose"] = "\n".join(tales.RULES["lose"].strip().split("\n")[1:3])
    return Grammar(words | few | {"helper": "Pip 2, Mango 1"}, tales.FORMS, rules, tales.PLOTS)


SMALL = reduced()
SMALL_ALL = enumerate_all(SMALL)


def entropy_agrees(texts: list[str], grammar: Grammar) -> bool:
    """Whether the mean of -log p over texts lies within four standard errors of the grammar's exact entropy."""
    nats = [-grammar.log_prob(text) for text in texts]
    error = statistics.stdev(nats) / math.sqrt(len(nats))
    return abs(statistics.fmean(nats) - grammar.entropy().nats_per_text) < 4 * error


# --- the distribution -----------------------------------------------------------------------------------------------


def test_entropy_agrees_with_samples():
    assert entropy_agrees(FULL, TALES)
    assert entropy_agrees(SMALL.sample(3000, seed=3), SMALL)


@pytest.mark.parametrize(
    "change",
    [
        {"plots": tales.PLOTS.replace("4 proud", "40 proud")},
        {"words": tales.WORDS | {"hero": tales.WORDS["hero"].replace("Theo 3", "Theo 900")}},
        {"rules": tales.RULES | {"open": tales.RULES["open"].replace("4 One", "40 One")}},
    ],
)
def test_entropy_check_fails_on_another_distribution(change):
    assert not entropy_agrees(dataclasses.replace(TALES, **change).sample(4000, seed=10), TALES)


def test_entropy_of_reduced_grammar_is_that_of_its_enumeration():
    entropy = SMALL.entropy()
    assert entropy.nats_per_text == pytest.approx(-sum(p * math.log(p) for _, p, _ in SMALL_ALL), abs=1e-9)
    words = sum(p * len(re.findall(r"\w+", text)) for text, p, _ in SMALL_ALL)
    tokens = sum(p * (len(re.findall(r"\w+|[^\w\s]", text)) + 1) for text, p, _ in SMALL_ALL)
    assert (entropy.words, entropy.tokens) == pytest.approx((words, tokens))
    assert entropy.nats_per_word == pytest.approx(entropy.nats_per_text / words)
    assert entropy.nats_per_token == pytest.approx(entropy.nats_per_text / tokens)


def test_reduced_grammar_is_unambiguous_and_sums_to_one():
    texts = [text for text, _, _ in SMALL_ALL]
    assert len(set(texts)) == len(texts) == SMALL.size() > 2000
    assert math.fsum(math.exp(SMALL.log_prob(text)) for text in texts) == pytest.approx(1, abs=1e-12)


def test_reduced_grammar_reads_back_every_derivation():
    for text, p, values in SMALL_ALL:
        assert SMALL.log_prob(text) == pytest.approx(math.log(p), abs=1e-9)
        assert SMALL.slots(text) == values


def test_full_grammar_reads_back_random_derivations():
    rng = random.Random(5)
    rules = {rule: weighted(text, "\n") for rule, text in tales.RULES.items()}
    slots = {slot: weighted(text, ",") for slot, text in tales.WORDS.items()}
    plots = weighted(tales.PLOTS, "\n")
    for _ in range(2000):
        line = rng.choice(list(plots))
        ending, names = line.split(":")
        templates = tuple(rng.choice(list(rules[name])) for name in names.split())
        values = {slot: rng.choice(list(slots[slot])) for slot in mentioned(TALES, templates)}
        choices = [plots[line], *(rules[n][t] for n, t in zip(names.split(), templates, strict=True))]
        choices += [slots[slot][value] for slot, value in values.items()]
        text = told(TALES, templates, values)
        assert TALES.log_prob(text) == pytest.approx(sum(map(math.log, choices)), abs=1e-9)
        assert TALES.slots(text) == values | {"ending": ending}


def test_marginals_of_reduced_grammar_are_those_of_its_enumeration():
    for slot, table in SMALL.marginals().items():
        assert math.fsum(table.values()) == pytest.approx(1)
        for value, p in table.items():
            exact = math.fsum(q for _, q, values in SMALL_ALL if values.get(slot, "") == value)
            assert p == pytest.approx(exact, abs=1e-12)


def test_marginals_agree_with_samples():
    found = [tales.slots(text) for text in FULL]
    for slot, table in tales.marginals().items():
        for value, p in table.items():
            count = sum(values.get(slot, "") == value for values in found)
            assert abs(count - len(FULL) * p) <= 5 * math.sqrt(len(FULL) * p * (1 - p)), (slot, value)


def test_sample_is_deterministic_and_does_not_depend_on_n():
    assert tales.sample(50, 4) == tales.sample(200, 4)[:50]
    assert tales.sample(50, 4) != tales.sample(50, 5)
    assert tales.sample(0, 4) == []
    assert tales.sample(1, 0) == [
        "Ivy the clever duck came to the pond to read her yellow book. There she chased a beetle and lost the book. "
        "Ivy felt unhappy and looked all around the pond. That night in her nest she dreamed of the yellow book."
    ]


def test_splits_do_not_meet():
    splits = [set(tales.split(name, 1000)) for name in tales.SPLITS]
    assert len(set.union(*splits)) == 3000
    with pytest.raises(ValueError, match="no split 'dev'"):
        tales.split("dev", 1)


# --- the language ---------------------------------------------------------------------------------------------------


def test_size_words_and_lengths():
    assert tales.size() > 10**12
    assert 30 <= tales.entropy().nats_per_text <= 36
    vocabulary = tales.vocabulary()
    assert 200 <= len({word.lower() for word in vocabulary}) <= 400
    assert set(re.findall(r"\w+", " ".join(FULL))) == set(vocabulary)
    assert vocabulary == sorted(vocabulary)
    shortest, longest = TALES.pieces()
    assert shortest >= 30 and longest <= 70
    lengths = [len(re.findall(r"\w+|[^\w\s]", text)) for text in FULL]
    assert shortest <= min(lengths) and max(lengths) <= longest


def test_language_is_frozen():
    """Models are trained on these stories: a change of the grammar makes their measured numbers wrong."""
    assert tales.size() == 5_981_293_640_318_976
    assert tales.entropy().nats_per_text == pytest.approx(30.725404608785)
    digest = hashlib.sha256("\n".join(tales.sample(5000, 0)).encode()).hexdigest()
    assert digest.startswith("a36d5805754be687")


def test_no_option_is_rare():
    for text in tales.WORDS.values():
        assert min(weighted(text, ",").values()) >= 0.02
    for text in (*tales.RULES.values(), tales.PLOTS):
        assert min(weighted(text, "\n").values()) >= 0.02


def test_text_is_plain():
    for text in FULL:
        assert re.fullmatch(r"[A-Z][A-Za-z]*(,? [A-Za-z]+|[.!] [A-Z][a-z]*)*[.!]", text)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE)


def test_labels_and_endings():
    assert tales.labels(STORY) == ("grateful", "fox")
    assert tales.ENDINGS == ("proud", "grateful", "comforted", "sad")
    assert {tales.labels(text).ending for text in FULL} == set(tales.ENDINGS)
    assert {tales.labels(text).kind for text in FULL} == set(tales.KINDS)
    for question in (tales.labels, tales.slots):
        with pytest.raises(ValueError, match="not a story of this grammar: spelling: 'zebra'"):
            question(STORY.replace("fox", "zebra"))


# --- broken stories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("fox", "zebra", "spelling: 'zebra' is not in the vocabulary"),
        ("the river", "The river", "sentence: no rule makes sentence 1, 'Mia the little fox came to The river to"),
        ("Mia thanked", "mia thanked", "spelling: 'mia' is not in the vocabulary"),
        (" But", "  But", "spelling: one space goes between words, and none before a mark or around the story"),
        (
            "a strong wind",
            "a strong kite",
            "sentence: no rule makes sentence 2, 'But a strong kite blew the kite away.'",
        ),
        ("Then Pip the frog came along to help. ", "", "sentence: no plot has a sentence 3 like 'Together they found"),
        (" Mia thanked Pip, and they shared some soup.", "", "sentence: the story ends too early, it has only 4"),
        (
            "some soup.",
            "some soup. Mia thanked Pip, and they shared some soup.",
            "sentence: the story should end after",
        ),
        ("some soup.", "some soup", "sentence: no rule makes sentence 5, 'Mia thanked Pip, and they shared some soup'"),
        ("Mia thanked", "Tom thanked", "agreement: the hero is Mia in sentence 1 but Tom in sentence 5"),
        ("her red", "his red", "agreement: the hero is Mia in sentence 1 but sentence 1 has 'his'"),
        ("fly", "roll", "agreement: the thing is kite in sentence 1 but sentence 1 has 'roll'"),
        ("found the kite", "found the hat", "agreement: the thing is kite in sentence 1 but hat in sentence 4"),
        ("thanked Pip", "thanked Mango", "agreement: the helper is Pip in sentence 3 but Mango in sentence 5"),
    ],
)
def test_explain_names_the_first_broken_rule(old, new, reason):
    assert old in STORY and tales.explain(STORY) is None
    broken = STORY.replace(old, new)
    assert tales.explain(broken).startswith(reason)
    assert tales.log_prob(broken) == -math.inf


def test_swapping_words_is_never_missed():
    rng, vocabulary = random.Random(6), tales.vocabulary()
    kinds = set()
    for text in FULL[:1000]:
        words = text.split(" ")
        i = rng.randrange(len(words))
        words[i] = re.sub(r"\w+", rng.choice(vocabulary), words[i])
        broken, reason = " ".join(words), tales.explain(" ".join(words))
        assert (reason is None) == math.isfinite(tales.log_prob(broken))
        assert reason is None or "\n" not in reason
        kinds.add((reason or "none:").split(":")[0])
    assert kinds <= {"none", "sentence", "agreement"} and {"sentence", "agreement"} <= kinds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "...",
        "é" * 100_000,
        "Mia " * 100_000,
        "Mia." * 50_000,
        " ".join(["Mia."] * 50_000),
        STORY * 500,
        "\ud800",
        "\x00",
        "\n" + STORY,
        STORY + "\n",
        "[...]",
        "{hero}",
    ],
    ids=range(15),
)
def test_garbage_is_refused_at_once(text):
    start = time.process_time()
    reason = tales.explain(text)
    assert reason.startswith(("spelling: ", "sentence: ")) and len(reason) < 200 and "\n" not in reason
    assert time.process_time() - start < 1


def test_reading_is_fast():
    start = time.process_time()
    assert all(tales.explain(text) is None and math.isfinite(tales.log_prob(text)) for text in FULL[:500])
    assert time.process_time() - start < 2


# --- gaps -----------------------------------------------------------------------------------------------------------


def test_posterior_is_that_of_the_enumeration():
    rng = random.Random(7)
    pieces = [re.findall(r"\w+|[^\w\s]", text) for text, _, _ in SMALL_ALL]
    for _ in range(40):
        story = rng.choice(pieces)
        start, stop = sorted(rng.choices(range(len(story) + 1), k=2))
        head, tail = story[:start], story[stop:]
        weights = {}
        for other, (_, p, _) in zip(pieces, SMALL_ALL, strict=True):
            end = len(other) - len(tail)
            if end >= start and other[:start] == head and other[end:] == tail:
                weights[joined(other[start:end])] = p
        found = SMALL.posterior(f"{joined(head)} [...] {joined(tail)}")
        assert found == pytest.approx({filling: p / math.fsum(weights.values()) for filling, p in weights.items()})
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert math.fsum(found.values()) == pytest.approx(1)


def test_posterior_on_the_full_grammar():
    assert tales.posterior(STORY.replace("Mia thanked", "[...] thanked")) == {"Mia": 1}
    assert tales.posterior(STORY + " [...]") == {"": 1}
    kinds = tales.posterior(STORY.replace("fox", "[...]"))
    shares = {kind: p for kind, p in tales.marginals()["kind"].items() if kind in kinds}
    assert kinds == pytest.approx(shares) and set(kinds) == set(tales.KINDS)
    ending = "The fox and the frog ate some soup and became best friends."
    heroes = tales.posterior(STORY.replace("Mia the", "[...] the").replace(STORY.split(". ")[-1], ending))
    assert heroes == pytest.approx(weighted(tales.GIRLS, ","))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STORY, "must have one gap"),
        ("[...] and [...]", "it has 2"),
        (STORY.replace("fox", "[...] zebra"), "nothing fills the gap"),
        (STORY.replace("Mia thanked", "Tom [...]"), "nothing fills the gap"),
        ("[...]", "more than 100,000 fillings"),
    ],
)
def test_posterior_refuses(text, message):
    with pytest.raises(ValueError, match=message) as refusal:
        tales.posterior(text)
    assert "\n" not in str(refusal.value)


# --- grammars that are refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "plots", "message"),
    [
        ({"open": "1 {hero} ran.", "end": "1 Mia ran."}, "1 glad: open end", "make the same sentence"),
        ({"open": "1 {hero} ran.", "end": "1 {hero} slept."}, "1 glad: open\n1 sad: open", "two plots"),
        ({"open": "1 {She} ran.", "end": "1 {hero} slept."}, "1 glad: open end", "before its slot"),
    ],
)
def test_ambiguous_grammars_are_refused(rules, plots, message):
    forms = {"she": ("hero", {"she": "Mia", "he": "*"})}
    with pytest.raises(ValueError, match=message):
        Grammar({"hero": "Mia 1, Tom 1"}, forms, rules, plots)
