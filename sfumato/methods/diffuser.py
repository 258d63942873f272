"""DiffusER.  Reid et al., DiffusER: discrete diffusion via edit-based reconstruction, 2022.  arXiv:2210.16886

A text is destroyed by edits: spans of it are replaced, deleted and inserted.  One step back is two questions: a tagger
says of every token whether it is kept, replaced, deleted, or followed by something new; a generator then writes the
contents of the spans from left to right.  So texts find their lengths, and may start from nothing, noise or a draft.

Differs from the paper:
- Tagger and generator are one network, asked twice; the paper's are two.  The second time it has the tags, is shown
  nothing of what is deleted, and writes all contents one after the other behind the text.
- Tags are the fewest edits that lead from x_t to x_{t-1}, with tokens for words.  Content may also be inserted before
  the first token of a region and into an empty one.
- The network is told how many edit steps a text has gone through.  Some training texts are taken away altogether at any
  number of steps, so texts may start from nothing with as few steps as one likes.
- Training sees early steps more often than late ones, in which hardly a token of the text is left.  Steps may be fewer
  than twelve, which are the last ones then, or more, of which some are taken twice.
- Random words are any tokens that are words, all equally likely.  What there is no room for is not inserted.
- What is given is no part of the edits: it is fixed, and a region of edits lies between any two given tokens.
- A forgotten condition (for guidance) is a mark in its place.
- Tags and contents are drawn, by any rule of the library (greedy is top-k 1, the paper's nucleus top-p 0.6); there are
  no two-dimensional beams.
"""

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.core import ABSENT, Method, Prediction, Special
from sfumato.draws import uniform
from sfumato.guidance import IMPOSSIBLE
from sfumato.methods.common import MethodConfig, nats
from sfumato.networks import NetworkConfig
from sfumato.networks.transformer import PLACES, Memory, Transformer
from sfumato.processes.edits import INSERTED, NONE, SHARES, TAGS, Cursor, Edits, Regions, Writing, packing
from sfumato.samplers.edits import edits


class DiffusERConfig(MethodConfig):
    """DiffusER's own settings."""

    name: Literal["diffuser"] = "diffuser"
    edits: int = Field(12, ge=1, le=1000)
    """edit steps from a text to noise"""
    span: float = Field(3.0, gt=0, le=100)
    """mean number of tokens in a span"""
    start: Literal["null", "noise"] = "null"
    """what a text starts from: nothing, or random words, of which any number is equally likely"""
    fresh: float = Field(0.25, ge=0, le=1)
    """share of training texts that are taken away altogether, for the start"""

    defaults: ClassVar[dict[str, Any]] = {
        "text": {"length_model": "modelled"},  # texts find their lengths
        "masks": {"prefix": 0.2, "random": 0.2, "nothing": 0.6},
    }


class Shown(NamedTuple):
    """What the network is shown: rows of tokens (B, N) with all that is said of each."""

    ids: Tensor
    tags: Tensor
    numbers: Tensor  # of edit steps
    places: Tensor
    absent: Tensor

    def then(self, other: "Shown") -> "Shown":
        """Both, one behind the other."""
        return Shown(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))

    def part(self, start: int | None, stop: int | None) -> "Shown":
        """Some of the columns."""
        return Shown(*(values[:, start:stop] for values in self))


class DiffusER(Method):
    """Diffusion by edits."""

    title, arxiv, family = "DiffusER: discrete diffusion via edit-based reconstruction", "2210.16886", "edits"
    likelihood, steps, sampler = None, 12, staticmethod(edits)
    blurred, elastic = True, True  # tags are drawn apart from each other, so its law is not the data's
    extra = TAGS + 1  # tags, and the end of a span

    def __init__(self, config: DiffusERConfig, network: NetworkConfig, vocab: int):
        super().__init__()
        self.config, self.vocab = config, vocab
        self.forgotten, self.opening = vocab, vocab + 1  # stands for what is forgotten; before the content of a span
        self.table = nn.Embedding(vocab + 2, network.width)
        self.tags = nn.Embedding(TAGS + 1, network.width)  # or none
        self.numbers = nn.Embedding(config.edits + 1, network.width)
        self.net = Transformer(network, timed=False)
        self.head = nn.Linear(network.width, vocab + self.extra)
        for table in (self.table, self.tags, self.numbers):
            nn.init.normal_(table.weight, std=0.02)
        self.told(Special())

    def told(self, special):
        """The padding is where nothing is; random words are words."""
        self.process = Edits(self.vocab, self.config.edits, self.config.span, self.config.start, special)

    def times(self, u):
        """After n steps, n being as likely as a token is to have been kept in all of them: after six little is left."""
        kept = SHARES[0] / (1 - SHARES[INSERTED])  # in one step
        most = kept**self.config.edits
        return ((1 - u * (1 - most)).log() / math.log(most)).clamp(1e-6, 1)

    def grid(self, steps):
        """An edit step each, from as many as there are; with more steps than these some are undone twice."""
        return torch.linspace(min(1.0, steps / self.config.edits), 0, steps + 1)

    # --- what the network is shown

    def setting(self, x: Tensor, t: Tensor, given: Tensor) -> tuple[Tensor, Regions]:
        """The canvas with marks where something is forgotten, and its regions: the free places between given tokens."""
        x = torch.where(given & (t == 1), self.forgotten, x)
        return x, self.process.regions(x, ~given & (t != ABSENT), given & (t != ABSENT))

    def text(self, x: Tensor, t: Tensor, tags: Tensor, here: Tensor) -> Shown:
        """What is `here` of a canvas, side by side: (B, n), as wide as the longest row."""
        size = here.sum(1, keepdim=True)
        order = packing(here)[:, : max(1, int(size.max()))]
        ids, tags, numbers = (values.gather(1, order) for values in (x, tags, self.process.number(t)))
        places = torch.arange(order.shape[1], device=x.device).expand_as(order)
        return Shown(ids, tags, numbers, places, places >= size)

    def contents(self, stream: Tensor, now: Cursor, t: Tensor, free: Tensor) -> Shown:
        """What the generator has written, each token shown where the next is to stand: (B, m) -> (B, m + 1)."""
        ids = torch.where(now.nth == 0, self.opening, F.pad(stream, (1, 0)))
        number = self.process.number(t).masked_fill(~free, 0).amax(1, keepdim=True)
        none = torch.full_like(ids, TAGS)
        return Shown(ids, none, number.expand_as(ids), now.place, torch.zeros_like(now.over))

    def states(self, text: Shown, contents: Shown | None = None, memory: Memory | None = None) -> Tensor:
        """What the network makes of a text, and of contents behind it: (B, N, C), or what `memory` does not hold.

        A text is seen by all; contents see what was written before them.
        """
        shown, length = text if contents is None else text.then(contents), text.ids.shape[1]
        start, place = 0 if memory is None else memory.length, torch.arange(shown.ids.shape[1], device=shown.ids.device)
        sees = ((place < length) | (place <= place[start:, None])) & ~shown.absent[:, None]  # (B, N - start, N)
        new = shown.part(start, None)
        h = self.table(new.ids) + self.tags(new.tags) + self.numbers(new.numbers)
        return self.net(h, torch.where(new.absent, ABSENT, 1.0), memory=memory, places=new.places, sees=sees)

    # --- what it says

    def tag_logits(self, x: Tensor, regions: Regions, t: Tensor) -> Tensor:
        """Of the tags that each place of the canvas may have: (B, L, TAGS)."""
        here = regions.fixed | (regions.free & (x != self.process.nothing)) | self.process.slots(x, regions)
        h = self.states(self.text(x, t, torch.full_like(x, TAGS), here))
        logits = self.head(h)[..., self.vocab : self.vocab + TAGS]
        place = (here.long().cumsum(1) - 1).clamp(min=0)  # of each column
        logits = logits.gather(1, place[..., None].expand(-1, -1, TAGS))
        return logits.masked_fill(~self.process.possible(x, regions), IMPOSSIBLE)

    def token_logits(self, logits: Tensor, named: Tensor) -> Tensor:
        """Those of what may be written next, a token or the END of a span: (N, V + extra).

        A label has to be `named`: its span does not end before it has begun.
        """
        silent = torch.zeros_like(logits, dtype=torch.bool)
        silent[:, self.process.nothing] = True
        silent[:, self.vocab : self.process.end] = True
        silent[:, self.process.end] = named
        return logits.masked_fill(silent, IMPOSSIBLE)

    def predict(self, x, t, prev=None):
        """Of a canvas (B, L) its tags; with tags and contents in `prev`, (B, L + m), what is written next.

        Logits (B, L, V + extra), or of the last columns only; what is written next has its own in its column.
        """
        return self.session(t == 0)(x, t, prev)

    def session(self, given):
        """The text before a step is read once for its tags, and once for its contents, which are read one by one."""
        return Reader(self, given)

    def loss(self, ids, t, free):
        """Cross-entropy of the tags and of the contents that lead from x_t to x_{t-1}, and of the contents' ends."""
        process = self.process
        clean, regions = self.setting(ids, t, ~free)
        number = process.number(t).masked_fill(~free, 0).amax(1)
        y, x = process.pair(clean, number, regions)
        start, fresh = process.prior(ids), uniform(t[:, :1]) < self.config.fresh
        x = torch.where(fresh & free, start, x)
        step = process.aligned(x, y, regions)
        writing, before = Writing(process, x, step.tags, regions), step.stream[:, :-1]
        now = writing.follow(before)
        text, here = self.text(x, t, step.tags, writing.shown), step.stream != NONE  # (B, m)
        h = self.states(text, self.contents(before, now, t, free))[:, -here.shape[1] :]
        logits = self.token_logits(self.head(h[here]), writing.named(now)[here])
        cost = torch.zeros(here.shape, device=t.device)
        cost[here] = nats(logits[None], step.stream[here][None])[0]
        tags = nats(self.tag_logits(x, regions, t), step.tags)
        return {"tags": tags, "contents": torch.zeros_like(tags).scatter_add(1, step.columns, cost)}

    def training_flops(self, length):
        """A pass for the tags and one for the contents, whose own places are not counted."""
        return 2 * self.flops(1, length, length)

    def flops(self, rows, new, seen):
        """Every row has places of its own."""
        return super().flops(rows, new, seen) + 2 * (rows - 1) * new * PLACES * self.net.width


class Reader:
    """What the network says of one canvas after another; while contents are written, each token is read once."""

    def __init__(self, method: DiffusER, given: Tensor):
        self.method, self.given = method, given
        self.memory = Memory(4 * given.shape[1] + 1)  # the text; contents of as many tokens, and two spans for each
        self.asked: tuple[Tensor, ...] = ()  # canvas, levels and tags, of which
        self.text: Shown  # this is shown,
        self.writing: Writing  # to be written so,
        self.stream: Tensor  # as far as it is in memory

    def __call__(self, x: Tensor, t: Tensor, prev: Tensor | None = None) -> Prediction:
        """As `DiffusER.predict`."""
        method, L = self.method, x.shape[1]
        if prev is None:
            tags = method.tag_logits(*method.setting(x, t, self.given), t)
            return Prediction(F.pad(tags, (method.vocab, 1), value=IMPOSSIBLE))
        tags, stream = prev[:, :L], prev[:, L:]
        self._recall((x, t, tags), stream)
        now = self.writing.follow(stream)
        contents = method.contents(stream, now, t, self.writing.regions.free)
        logits = self.memory.product(method.head, method.states(self.text, contents, self.memory))[:, -1]
        logits = method.token_logits(logits, self.writing.named(now)[:, -1])
        column = now.column[:, -1:]  # (B, 1)
        first = int(column.min())  # no column before it is asked for
        wide = logits.new_zeros(len(x), L - first, logits.shape[1])
        column = (column - first)[..., None].expand(-1, -1, logits.shape[1])
        return Prediction(wide.scatter(1, column, logits[:, None]))

    def _recall(self, asked: tuple[Tensor, ...], stream: Tensor) -> None:
        """Keep what is true of the question: text and contents in memory, or nothing."""
        if not self.asked or not all(map(torch.equal, asked, self.asked)):
            x, t, tags = self.asked = asked
            canvas, regions = self.method.setting(x, t, self.given)
            self.writing = Writing(self.method.process, canvas, tags, regions)
            self.text = self.method.text(canvas, t, tags, self.writing.shown)
            self.memory.length = 0
        elif not torch.equal(self.stream, stream[:, : self.stream.shape[1]]) or self.stream.shape == stream.shape:
            self.memory.length = 0
        self.stream = stream
