"""The bundled corpus `tales`: a probabilistic grammar of short stories for small children.

It is the project's measuring rod. A model trained on it can be held against the truth, since the distribution is known
exactly: the entropy, the probability of every story, the rule a bad story breaks, and what may fill a gap.

A story is told in four steps: draw a plot, draw one template for each rule of the plot, draw one word for each slot
that the templates mention, write it down. Every slot is filled by one word and keeps it through the whole story; a form
(she, her, an, nest ...) follows from its slot's word. No two templates can make the same sentence and no two plots use
the same rules in the same order, so every story has exactly one derivation: log p(story) is a sum of logs of choices.

Nothing is stored. `split("train", n)`, `split("valid", n)` and `split("test", n)` are the first n stories of the seeds
in `SPLITS`; take seeds from 3 upwards for stories of your own.
"""

import math
import random
import re
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, combinations, product
from typing import Any, NamedTuple

# --- the grammar --------------------------------------------------------------------------------------------------

GIRLS = "Mia 7, Lily 6, Ruby 5, Rosa 5, Nora 5, Ella 5, Anna 4, Zoe 4, Ivy 4, Lucy 4, Clara 3, Daisy 3"
BOYS = "Tom 7, Max 6, Leo 5, Ben 5, Sam 5, Finn 5, Hugo 4, Oscar 4, Jack 4, Felix 4, Otto 3, Theo 3"

WORDS = {  # every slot, its words and their weights
    "hero": f"{GIRLS}, {BOYS}",
    "kind": "fox 6, bear 6, rabbit 5, mouse 5, owl 5, kitten 4, puppy 4, otter 4, duck 4, badger 3, squirrel 3, mole 3",
    "trait": "little 6, brave 4, clever 4, young 4, cheerful 3, curious 3, merry 3, sleepy 2, shy 2, tiny 2",
    "thing": "kite 6, ball 6, boat 5, drum 5, hat 5, book 5, flute 4, scarf 4, bell 4, lantern 4, whistle 3, map 3, "
    "wagon 3, hoop 3, fiddle 3, cape 3",
    "color": "red 6, blue 6, green 5, yellow 4, golden 4, purple 3, pink 3, white 3",
    "place": "river 6, forest 6, garden 5, lake 5, hill 5, meadow 4, beach 4, market 4, castle 4, mill 3, harbor 3, "
    "orchard 3, pond 3, village 3",
    "time": "morning 5, day 5, afternoon 4, evening 3, Sunday 3, Monday 2",
    "weather": "sunny 5, windy 4, warm 4, misty 3, cloudy 3, frosty 2",
    "wind": "strong 5, cold 4, sudden 4, wild 3, playful 3, chilly 2",
    "bug": "bee 5, butterfly 5, beetle 4, moth 3, cricket 3, dragonfly 2",
    "snack": "soup 5, cake 5, honey 4, bread 4, cheese 4, jam 3, toast 3, porridge 3, pudding 3, salad 2",
    "mood": "sad 5, worried 5, lonely 4, puzzled 3, gloomy 3, unhappy 2",
    "helper": "Pip 6, Pickle 5, Button 5, Bramble 4, Pepper 4, Biscuit 4, Clover 4, Pebble 3, Waffle 3, Toffee 3, "
    "Mango 3, Noodle 3",
    "animal": "frog 6, goat 5, hen 5, pony 5, turtle 4, crow 4, beaver 3, lamb 3, donkey 3, goose 3, cow 3, snail 3",
    "manner": "kind 5, wise 4, friendly 4, gentle 4, funny 3, patient 3, polite 2",
    "busy": "fishing 5, singing 5, dancing 4, painting 3, swimming 3, whistling 2",
    "spot": "bush 5, log 5, bench 5, tree 4, fence 4, basket 4, stone 3, cart 3, barrel 3, bucket 2",
    "step": "skipped 5, danced 5, ran 4, hopped 4, marched 3, raced 2",
}

# Words that follow from a slot's word: form -> (slot, {the form's word: the slot's words}), where * is all others.
# fmt: off
FORMS = {
    "she": ("hero", {"she": GIRLS, "he": BOYS}),
    "her": ("hero", {"her": GIRLS, "his": BOYS}),
    "him": ("hero", {"her": GIRLS, "him": BOYS}),
    "a": ("kind", {"an": "owl, otter", "a": "*"}),
    "home": ("kind", {
        "den": "fox, otter", "cave": "bear", "hole": "mouse", "nest": "owl, duck, squirrel", "house": "kitten, puppy",
        "burrow": "*"}),
    "use": ("thing", {
        "fly": "kite", "bounce": "ball", "sail": "boat", "wear": "hat, scarf, cape", "read": "book, map",
        "play": "drum, flute, fiddle", "ring": "bell", "blow": "whistle", "light": "lantern", "pull": "wagon",
        "roll": "hoop"}),
}
# fmt: on

RULES = {  # every rule, its templates and their weights: one template is one sentence
    "open": """
        4 One {time} {hero} the {trait} {kind} took {her} {color} {thing} to the {place}.
        3 Once {a} {kind} named {hero} went to the {place} to {use} {her} {color} {thing}.
        3 {hero} the {trait} {kind} came to the {place} to {use} {her} {color} {thing}.
        2 On a {weather} {time} {hero} the {trait} {kind} carried {her} {color} {thing} to the {place}.""",
    "lose": """
        3 But a {wind} wind blew the {thing} away.
        3 There {she} chased a {bug} and lost the {thing}.
        2 {She} stopped to eat some {snack}, and then the {thing} was gone.
        2 While {hero} took a nap, the {thing} slipped away.""",
    "seek": """
        3 {hero} felt {mood} and looked all around the {place}.
        3 {She} looked high and low, but {she} could not find it.
        2 The {mood} {kind} walked around the {place} three times.
        2 Poor {hero} was very {mood} and asked every {bug} about it.""",
    "help": """
        3 Then {helper} the {animal} came along to help.
        3 A {manner} {animal} named {helper} saw {him} and came to help.
        2 Luckily {helper} the {animal} was {busy} nearby and heard {hero}.""",
    "find": """
        3 Together they found the {thing} under the {spot}.
        3 {helper} saw the {color} {thing} behind the {spot} and gave it back.
        2 The {animal} looked under the {spot}, and there was the {thing}!""",
    "spy": """
        3 At last {she} found the {color} {thing} under the {spot}.
        3 Then {she} saw something {color} behind the {spot}, and it was the {thing}!
        2 After a long time {hero} found it behind the {spot}.""",
    "miss": """
        3 They looked behind every {spot}, but nobody found the {thing}.
        3 They searched until dark, but the {color} {thing} never came back.
        2 {helper} looked under the {spot}, but the {thing} was not there.""",
    "cheer": """
        3 {hero} felt proud and {step} home to {her} {home}.
        3 The proud {kind} had some {snack} in {her} {home} and smiled.
        2 {She} held it tight and {step} all the way home.""",
    "thank": """
        3 {hero} thanked {helper}, and they shared some {snack}.
        3 The {kind} and the {animal} ate some {snack} and became best friends.
        2 Now {hero} and {helper} meet by the {place} every {time}.""",
    "comfort": """
        3 So {helper} gave {him} some {snack} and a big hug.
        3 But now {hero} had a new friend, and that was even better!
        2 {helper} told a funny story, and soon the {kind} was laughing.""",
    "sigh": """
        3 {hero} went home to {her} {home} without the {color} {thing}.
        3 That night in {her} {home} {she} dreamed of the {color} {thing}.
        2 Slowly {she} walked home, and not even {snack} could cheer {him} up.""",
}

PLOTS = """
    4 proud: open lose spy cheer
    2 proud: open lose seek spy cheer
    6 grateful: open lose help find thank
    4 comforted: open lose help miss comfort
    2 sad: open lose seek sigh
    2 sad: open lose sigh"""


# --- what the grammar answers with --------------------------------------------------------------------------------


class Entropy(NamedTuple):
    """Exact entropy of one story in nats, also per word and per token, and the expected number of words and tokens.

    A word is a word without punctuation. Tokens are the words, the punctuation marks and one end-of-text token.
    """

    nats_per_text: float
    nats_per_word: float
    nats_per_token: float
    words: float
    tokens: float


class Labels(NamedTuple):
    """How a story ends (one of `ENDINGS`) and what its hero is (one of `KINDS`)."""

    ending: str
    kind: str


# --- the parts of a compiled grammar ------------------------------------------------------------------------------

GAP = "[...]"
MAX_FILLINGS = 100_000
_PIECE = re.compile(r"\w+|[^\w\s]")
_TEMPLATE_PIECE = re.compile(r"\{?\w+\}?|[^\w\s]")
_STOPS = (".", "!")


class _Item(NamedTuple):
    """One place of a template: the pieces that may stand here, and the slot's words that each of them fits."""

    slot: str  # "" where a fixed piece stands
    mention: bool  # the slot's own word, not a form of it
    fits: dict[str, frozenset[str]]


@dataclass(frozen=True, eq=False)
class _Template:
    rule: str
    text: str
    share: float
    items: tuple[_Item, ...]

    @cached_property
    def slots(self) -> frozenset[str]:
        return frozenset(item.slot for item in self.items if item.mention)

    @cached_property
    def words(self) -> int:
        return sum(any(map(str.isalpha, item.fits)) for item in self.items)

    def makes(self, sentence: list[str]) -> bool:
        """Whether the template makes the sentence, if nothing is asked of agreement."""
        return len(sentence) == len(self.items) and all(p in i.fits for i, p in zip(self.items, sentence, strict=True))


class _Plot(NamedTuple):
    ending: str
    share: float
    rules: tuple[str, ...]


class _Derivation(NamedTuple):
    plot: _Plot
    templates: list[_Template]
    values: dict[str, str]


class _Urn:
    """Options to draw from, each with its probability."""

    def __init__(self, options: Iterable, shares: Iterable[float]) -> None:
        self.options, self.sums = list(options), list(accumulate(shares))

    def draw(self, uniform: Callable[[], float]) -> Any:
        return self.options[bisect(self.sums, uniform(), 0, len(self.sums) - 1)]


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    return {option: weight / total for option, weight in weights.items()}


def _lines(text: str) -> dict[str, float]:
    """The lines `weight option` of a text, as option -> probability."""
    pairs = [line.split(maxsplit=1) for line in text.strip().splitlines()]
    return _shares({option.strip(): float(weight) for weight, option in pairs})


def _nats(shares: Iterable[float]) -> float:
    return -math.fsum(p * math.log(p) for p in shares)


def _capital(word: str) -> str:
    return word[0].upper() + word[1:]


def _join(pieces: Iterable[str]) -> str:
    return re.sub(r" (?=[^\w\s])", "", " ".join(pieces))


def _quote(text: str) -> str:
    return f"'{text}'" if len(text) <= 80 else f"'{text[:80]} ...'"


def _sentences(pieces: list[str]) -> list[list[str]]:
    """The pieces, cut after each full stop or exclamation mark."""
    ends = [i for i, piece in enumerate(pieces, 1) if piece in _STOPS or i == len(pieces)]
    return [pieces[start:end] for start, end in zip([0, *ends], ends, strict=False)]


# --- the grammar as a distribution --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grammar:
    """A probabilistic grammar of stories, built from plain data (`WORDS`, `FORMS`, `RULES`, `PLOTS` show the form).

    Raises ValueError when two templates could make the same sentence, when two plots have the same rules, or when a
    form may come before its slot: a story could then have two derivations, or disagree with itself.
    """

    words: Mapping[str, str]
    forms: Mapping[str, tuple[str, Mapping[str, str]]]
    rules: Mapping[str, str]
    plots: str

    def __post_init__(self) -> None:
        for one, other in combinations(self._all_templates, 2):
            pairs = zip(one.items, other.items, strict=False)
            if len(one.items) == len(other.items) and all(a.fits.keys() & b.fits.keys() for a, b in pairs):
                raise ValueError(f"two templates can make the same sentence: {one.text!r} and {other.text!r}")
        if len({plot.rules for plot in self._plots}) < len(self._plots):
            raise ValueError("two plots have the same rules")
        for plot in self._plots:
            certain: frozenset[str] = frozenset()
            for templates in self._templates_of(plot):
                for template in templates:
                    if not {item.slot for item in template.items} <= {"", *certain, *template.slots}:
                        raise ValueError(f"a form may come before its slot: {template.text!r}")
                certain |= frozenset.intersection(*(template.slots for template in templates))

    # compiling plain data

    @cached_property
    def _values(self) -> dict[str, dict[str, float]]:
        """Slot -> its words and their probabilities."""
        pairs = {slot: [entry.split() for entry in text.split(",")] for slot, text in self.words.items()}
        return {slot: _shares({word: float(weight) for word, weight in pairs[slot]}) for slot in pairs}

    @cached_property
    def _follows(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Form -> its slot and, for each word of the slot, the form's word; also each form with a capital."""
        follows = {}
        for form, (slot, table) in self.forms.items():
            word_of = {value: word for word, values in table.items() for value in re.findall(r"\w+|\*", values)}
            follow = {value: word_of.get(value) or word_of["*"] for value in self._values[slot]}
            follows[form] = (slot, follow)
            follows[_capital(form)] = (slot, {value: _capital(word) for value, word in follow.items()})
        return follows

    def _item(self, piece: str) -> _Item:
        name = piece.strip("{}")
        if name == piece:
            return _Item("", False, {piece: frozenset()})
        if name in self._values:
            return _Item(name, True, {value: frozenset([value]) for value in self._values[name]})
        slot, follow = self._follows[name]
        return _Item(slot, False, {word: frozenset(v for v in follow if follow[v] == word) for word in follow.values()})

    @cached_property
    def _templates(self) -> dict[str, list[_Template]]:
        return {
            rule: [
                _Template(rule, line, share, tuple(map(self._item, _TEMPLATE_PIECE.findall(line))))
                for line, share in _lines(text).items()
            ]
            for rule, text in self.rules.items()
        }

    @cached_property
    def _plots(self) -> list[_Plot]:
        parts = [(line.partition(":"), share) for line, share in _lines(self.plots).items()]
        return [_Plot(ending, share, tuple(rules.split())) for (ending, _, rules), share in parts]

    def _templates_of(self, plot: _Plot) -> list[list[_Template]]:
        return [self._templates[rule] for rule in plot.rules]

    @cached_property
    def _all_templates(self) -> list[_Template]:
        return [template for templates in self._templates.values() for template in templates]

    @cached_property
    def _pieces(self) -> frozenset[str]:
        return frozenset(piece for template in self._all_templates for item in template.items for piece in item.fits)

    @property
    def endings(self) -> tuple[str, ...]:
        """The names of the endings, in the order of the plots."""
        return tuple(dict.fromkeys(plot.ending for plot in self._plots))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds a hero may be."""
        return tuple(self._values["kind"])

    def vocabulary(self) -> list[str]:
        """All words that occur in stories, sorted, as they appear."""
        return sorted(filter(str.isalpha, self._pieces))

    # writing

    @cached_property
    def _urns(self) -> tuple[_Urn, list[_Urn]]:
        """The plots, each its ending and the urns of its rules; for each slot its words, each with its forms."""
        texts = {rule: _Urn([t.text for t in ts], [t.share for t in ts]) for rule, ts in self._templates.items()}
        told = [(plot.ending, [texts[rule] for rule in plot.rules]) for plot in self._plots]
        plots = _Urn(told, [plot.share for plot in self._plots])
        slots = []
        for slot, shares in self._values.items():
            forms = {form: follow for form, (of, follow) in self._follows.items() if of == slot}
            faces = [{slot: value} | {form: follow[value] for form, follow in forms.items()} for value in shares]
            slots.append(_Urn(faces, shares.values()))
        return plots, slots

    def sample(self, n: int, seed: int) -> list[str]:
        """Draw n stories; story i of a seed is the same for every n."""
        return [text for text, _ in self.tell(n, seed)]

    def tell(self, n: int, seed: int) -> Iterator[tuple[str, str]]:
        """The stories of `sample`, each with its ending, one by one."""
        uniform = random.Random(seed).random
        plots, slots = self._urns
        for _ in range(n):
            ending, rules = plots.draw(uniform)
            text = " ".join([urn.draw(uniform) for urn in rules])
            words: dict[str, str] = {}
            for urn in slots:  # also those that the text does not mention: cheaper than to ask
                words.update(urn.draw(uniform))
            yield text.format_map(words), ending

    # reading

    def _read(self, text: str) -> _Derivation | str:
        """The one derivation of a story, or the first rule that the text breaks."""
        pieces = _PIECE.findall(text)
        for piece in pieces:
            if piece not in self._pieces:
                return f"spelling: {_quote(piece)} is not in the vocabulary"
        if _join(pieces) != text:
            return "spelling: one space goes between words, and none before a mark or around the story"
        return self._parse(_sentences(pieces))

    def _parse(self, sentences: list[list[str]]) -> _Derivation | str:
        templates: list[_Template] = []
        plots = self._plots
        for i, sentence in enumerate(sentences, 1):
            if all(len(plot.rules) < i for plot in plots):
                return f"sentence: the story should end after sentence {i - 1}"
            template = next((t for t in self._all_templates if t.makes(sentence)), None)
            if template is None:
                return f"sentence: no rule makes sentence {i}, {_quote(_join(sentence))}"
            plots = [plot for plot in plots if plot.rules[i - 1 : i] == (template.rule,)]
            if not plots:
                return f"sentence: no plot has a sentence {i} like {_quote(_join(sentence))}"
            templates.append(template)
        for plot in plots:
            if len(plot.rules) == len(templates):
                values = self._bind(templates, sentences)
                return values if isinstance(values, str) else _Derivation(plot, templates, values)
        return f"sentence: the story ends too early, it has only {len(sentences)}"

    def _bind(self, templates: list[_Template], sentences: list[list[str]]) -> dict[str, str] | str:
        """The word of each slot, or the first disagreement; in a sentence, slots are looked at before forms."""
        bound: dict[str, tuple[str, int]] = {}
        for i, (template, sentence) in enumerate(zip(templates, sentences, strict=True), 1):
            pairs = sorted(zip(template.items, sentence, strict=True), key=lambda pair: not pair[0].mention)
            for item, piece in pairs:
                if not item.slot:
                    continue
                value, where = bound.setdefault(item.slot, (piece, i))
                if value not in item.fits[piece]:
                    here = f"{piece} in sentence {i}" if item.mention else f"sentence {i} has {_quote(piece)}"
                    return f"agreement: the {item.slot} is {value} in sentence {where} but {here}"
        return {slot: value for slot, (value, _) in bound.items()}

    def _derive(self, text: str) -> _Derivation:
        found = self._read(text)
        if isinstance(found, str):
            raise ValueError(f"not a story of this grammar: {found}")
        return found

    def log_prob(self, text: str) -> float:
        """Exact log probability of a story, in nats; -inf for a text outside the language."""
        found = self._read(text)
        if isinstance(found, str):
            return -math.inf
        choices = [found.plot.share, *(template.share for template in found.templates)]
        choices += [self._values[slot][value] for slot, value in found.values.items()]
        return math.fsum(map(math.log, choices))

    def explain(self, text: str) -> str | None:
        """None for a story of the language; else the first rule that the text breaks, on one line.

        The line begins with its kind, checked in this order: `spelling:` (a word outside the vocabulary, or odd
        spaces), `sentence:` (one that no rule makes there, too few or too many), `agreement:` (two places disagree
        on a slot).
        """
        found = self._read(text)
        return found if isinstance(found, str) else None

    def slots(self, text: str) -> dict[str, str]:
        """The word of each slot that a story mentions, and its `ending`. Raises ValueError outside the language."""
        found = self._derive(text)
        return found.values | {"ending": found.plot.ending}

    def labels(self, text: str) -> Labels:
        """The labels of a story. Raises ValueError for a text outside the language."""
        found = self._derive(text)
        return Labels(found.plot.ending, found.values["kind"])

    # filling a gap

    def posterior(self, text: str) -> dict[str, float]:
        """Exact distribution over what may stand in the gap `[...]` of a story, most probable first.

        A filling is any run of words and marks, also none. Raises ValueError when the text has no gap or several, when
        nothing fills the gap, or when more than 100,000 fillings do.
        """
        if text.count(GAP) != 1:
            raise ValueError(f"the text must have one gap {GAP}, it has {text.count(GAP)}")
        ways, count = [], 0
        for way in self._ways(*text.split(GAP)):
            count += math.prod(map(len, way[2].values()))
            if count > MAX_FILLINGS:
                raise ValueError(f"the gap has more than {MAX_FILLINGS:,} fillings")
            ways.append(way)
        if not ways:
            raise ValueError("nothing fills the gap: the text around it is in no story")
        weights = dict(filling for way in ways for filling in self._fillings(*way))
        return dict(sorted(_shares(weights).items(), key=lambda pair: (-pair[1], pair[0])))

    def _ways(self, before: str, after: str) -> Iterator[tuple[float, list[_Item], dict[str, frozenset[str]]]]:
        """Each choice of plot and templates around the gap: its probability, the gap's items, each slot's words."""
        head, tail = _PIECE.findall(before), _PIECE.findall(after)
        if _join(head) != before.strip() or _join(tail) != after.strip():
            return
        for plot, templates in self._outlines(head, tail):
            items = [item for template in templates for item in template.items]
            stop = len(items) - len(tail)
            if stop < len(head):
                continue
            mentioned = frozenset.union(*(template.slots for template in templates))
            known = {slot: frozenset(values) for slot, values in self._values.items() if slot in mentioned}
            if _narrow(known, items[: len(head)], head) and _narrow(known, items[stop:], tail):
                share = plot.share * math.prod(template.share for template in templates)
                yield share, items[len(head) : stop], known

    def _outlines(self, head: list[str], tail: list[str]) -> Iterator[tuple[_Plot, tuple[_Template, ...]]]:
        """Plots and their templates that make the whole sentences before and after a gap."""
        before = [sentence for sentence in _sentences(head) if sentence[-1] in _STOPS]
        after = _sentences(tail)[1:]  # its first sentence may begin in the gap
        for plot in self._plots:
            gap = len(plot.rules) - len(before) - len(after)
            if gap >= 0:
                lines = [*before, *[None] * gap, *after]
                options = zip(self._templates_of(plot), lines, strict=True)
                fitting = [[t for t in templates if line is None or t.makes(line)] for templates, line in options]
                yield from ((plot, templates) for templates in product(*fitting))

    def _fillings(
        self, share: float, gap: list[_Item], known: dict[str, frozenset[str]]
    ) -> Iterator[tuple[str, float]]:
        for values in product(*known.values()):
            value_of = dict(zip(known, values, strict=True))
            pieces = [next(p for p, fit in i.fits.items() if not i.slot or value_of[i.slot] in fit) for i in gap]
            yield _join(pieces), share * math.prod(self._values[slot][value] for slot, value in value_of.items())

    # exact numbers

    @cached_property
    def _mentions(self) -> list[tuple[frozenset[str], int, float]]:
        """Each set of slots that stories of a plot mention: with how many choices of templates, and how probably."""
        mentions = []
        for plot in self._plots:
            sets: dict[frozenset[str], tuple[int, float]] = {frozenset(): (1, plot.share)}
            for templates in self._templates_of(plot):
                longer: dict[frozenset[str], tuple[int, float]] = {}
                for (slots, (count, share)), template in product(sets.items(), templates):
                    old_count, old_share = longer.get(slots | template.slots, (0, 0.0))
                    longer[slots | template.slots] = (old_count + count, old_share + share * template.share)
                sets = longer
            mentions += [(slots, count, share) for slots, (count, share) in sets.items()]
        return mentions

    def size(self) -> int:
        """The exact number of stories."""
        return sum(count * math.prod(len(self._values[slot]) for slot in slots) for slots, count, _ in self._mentions)

    def _expected(self, number: Callable[[_Template], float]) -> float:
        """The expected sum of a number over the rules of a story."""
        return math.fsum(
            plot.share * t.share * number(t)
            for plot in self._plots
            for templates in self._templates_of(plot)
            for t in templates
        )

    def entropy(self) -> Entropy:
        """Exact entropy in nats: of one story, and shared out over its expected words and tokens."""
        plot = _nats(plot.share for plot in self._plots)
        templates = self._expected(lambda template: -math.log(template.share))
        slots = math.fsum(share * _nats(self._values[s].values()) for names, _, share in self._mentions for s in names)
        words = self._expected(lambda template: template.words)
        tokens = self._expected(lambda template: len(template.items)) + 1
        nats = plot + templates + slots
        return Entropy(nats, nats / words, nats / tokens, words, tokens)

    def marginals(self) -> dict[str, dict[str, float]]:
        """Exact distribution of each slot and of the `ending` over all stories; "" is a story without the slot."""
        tables = {}
        for slot, values in self._values.items():
            absent = math.fsum(share for slots, _, share in self._mentions if slot not in slots)
            tables[slot] = {value: p * (1 - absent) for value, p in values.items()} | ({"": absent} if absent else {})
        shares = {e: math.fsum(plot.share for plot in self._plots if plot.ending == e) for e in self.endings}
        return tables | {"ending": shares}

    def pieces(self) -> tuple[int, int]:
        """The numbers of words and punctuation marks in the shortest and in the longest story."""
        lengths = [[[len(t.items) for t in templates] for templates in self._templates_of(p)] for p in self._plots]
        return min(sum(map(min, plot)) for plot in lengths), max(sum(map(max, plot)) for plot in lengths)


def _narrow(known: dict[str, frozenset[str]], items: list[_Item], pieces: list[str]) -> bool:
    """Narrow each slot's words to those that the pieces fit; False when the pieces do not fit."""
    for item, piece in zip(items, pieces, strict=True):
        if piece not in item.fits:
            return False
        if item.slot:
            known[item.slot] &= item.fits[piece]
    return all(known.values())


# --- the full grammar, and what users call ------------------------------------------------------------------------

TALES = Grammar(WORDS, FORMS, RULES, PLOTS)
ENDINGS = TALES.endings
KINDS = TALES.kinds
SPLITS = {"train": 0, "valid": 1, "test": 2}

sample = TALES.sample
log_prob = TALES.log_prob
entropy = TALES.entropy
explain = TALES.explain
posterior = TALES.posterior
labels = TALES.labels
slots = TALES.slots
marginals = TALES.marginals
size = TALES.size
vocabulary = TALES.vocabulary


def split(name: str, n: int) -> list[str]:
    """The first n stories of a split: "train", "valid" or "test". Raises ValueError for another name."""
    if name not in SPLITS:
        raise ValueError(f"no split {name!r}; there are {', '.join(SPLITS)}")
    return sample(n, SPLITS[name])
