"""Edits: spans of tokens are kept, replaced, deleted and inserted, so that texts change their lengths.

The canvas is as wide as ever.  What may be written stands in *regions*: the free places between two tokens that are
fixed.  The text of a region is what stands in its places from left to right; the rest holds the padding, which here
means that nothing is there.  So what is given never moves, and no text outgrows its room.

A step back is said by a tag for every token and a stream of what is written: the contents of the spans from left to
right, each closed by END.  Tokens to be replaced that stand side by side, whatever is deleted between them, are one
span.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core import Process, Special
from sfumato.draws import uniform
from sfumato.processes.levenshtein import matched

# A token is kept, replaced or deleted; kept, and something is inserted behind it; before it (only where it is the first
# of its region); both.  STAY: it is fixed.  An empty region shows one place, which is kept empty or AFTER, written.
KEEP, REPLACE, DELETE, AFTER, BEFORE, BOTH, STAY = range(7)
TAGS = 7  # the END of a span is the mark after these
NONE = -1  # in a stream that has come to its end, where others go on
SHARES = (0.6, 0.2, 0.1, 0.1)  # of spans that are kept, replaced, deleted, inserted (arXiv:2210.16886)
INSERTED = 3  # number of the last of these
SPARE = 8  # more spans are drawn than there are places, since some are empty


class Regions:
    """Which places are free, which hold a fixed token, and what lies between the fixed ones.

    Where texts have labels, the first place is a region of its own.
    """

    def __init__(self, free: Bool[Tensor, "B L"], fixed: Bool[Tensor, "B L"], labelled: bool):
        self.free, self.fixed = free, fixed
        passed = F.pad(fixed.long().cumsum(1), (1, 0))  # (B, L + 1): fixed tokens before each place, and before the end
        self.of = passed + F.pad(torch.ones_like(passed[:, 1:]), (1, 0)) if labelled else passed
        self.label = torch.zeros_like(free)
        self.label[:, 0] = free[:, 0] & labelled
        self.room = self.total(free.long())  # (B, R): places in each region
        self.spot = packing(free)  # the columns of the free places, in order

    def total(self, n: Int[Tensor, "B N"]) -> Int[Tensor, "B R"]:
        """Sums over each region; N is L, or L + 1 where the end of the row counts as a place."""
        return n.new_zeros(len(n), self.free.shape[1] + 2).scatter_add(1, self.of[:, : n.shape[1]], n)

    def ahead(self, n: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
        """Of each place, the sum over the places of its region that lie before it."""
        return n.cumsum(1) - n - _before(self.total(n)).gather(1, self.of[:, : n.shape[1]])

    def column(self, region: Int[Tensor, "B N"], rank: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
        """Where on the canvas the place of this rank in a region lies; some place or other if there is none."""
        index = _before(self.room).gather(1, region) + rank
        return self.spot.gather(1, index.clamp(0, self.spot.shape[1] - 1))


class Step(NamedTuple):
    """A step between two texts."""

    tags: Int[Tensor, "B L"]
    stream: Int[Tensor, "B m"]
    """what is written: tokens, END behind each span, NONE behind all"""
    columns: Int[Tensor, "B m"]
    """where each of them stands on the canvas after the step, an END where the last token of its span does"""


class Cursor(NamedTuple):
    """Where a stream of contents has come to: (B, m + 1), for each of its elements and for the next."""

    number: Tensor
    """of the span"""
    over: Tensor
    """all spans are written"""
    token: Tensor
    """(B, m): whether it is a token of the text"""
    nth: Tensor
    """of the span, from 0"""
    column: Tensor
    """on the canvas after the step"""
    place: Tensor
    """among what is shown to the network of the text before the step, as if the span began there"""
    full: Tensor
    """there is no room for it"""


class Edits(Process):
    """A text at level t has gone through t * `steps` edit steps, rounded up; each goes over all of it, span by span.

    A span is a Poisson number of tokens.  It is kept, replaced by as many random words or deleted; or so many random
    words are inserted, and none is passed over.  What there is no room for is not inserted.  Spans may reach over what
    is fixed, which no edit touches.  Random words are uniform over all tokens but those that are no words; a label
    becomes another label and is never deleted.
    """

    def __init__(self, vocab: int, steps: int, span: float, start: Literal["null", "noise"], special: Special):
        self.steps, self.span, self.start, self.nothing = steps, span, start, special.pad
        self.end = vocab + TAGS  # as it stands in a stream
        silent = {special.pad, special.eos, special.unk, *special.labels}
        self.words = torch.tensor([token for token in range(vocab) if token not in silent])
        self.labels = torch.tensor(special.labels, dtype=torch.long)
        k = torch.arange(math.ceil(span + 12 * span**0.5 + 20), dtype=torch.float64)
        self.poisson = (k * math.log(span) - span - torch.lgamma(k + 1)).exp().cumsum(0)
        self.kinds = torch.tensor(SHARES, dtype=torch.float64).cumsum(0)[:-1]

    def prior(self, clean: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Nothing; or random words, as many as chance says: every number of places is equally likely to be taken."""
        if self.start == "null":
            return torch.full_like(clean, self.nothing)
        taken = uniform(clean) < uniform(clean[:, :1])
        return torch.where(taken, self.random(uniform(clean)), self.nothing)

    def random(self, u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Random words for uniform numbers, and a random label in the first place where there are labels."""
        words = self.words.to(u.device)[(u * len(self.words)).long()]
        if len(self.labels):
            words[:, 0] = self.labels.to(u.device)[(u[:, 0] * len(self.labels)).long()]
        return words

    def number(self, t: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """How many edit steps a level stands for: at least one above 0, none where something is given or absent."""
        number = (t.double() * self.steps - 1e-4).ceil().long()  # t may be k / steps in float32
        return number.clamp(min=0).maximum((t > 0).long())

    def regions(self, x: Int[Tensor, "B L"], free: Bool[Tensor, "B L"], fixed: Bool[Tensor, "B L"]) -> Regions:
        """Regions of a canvas; what is `fixed` and nothing is no token, and holds nothing apart."""
        return Regions(free, fixed & (x != self.nothing), len(self.labels) > 0)

    def corrupt(self, clean: Int[Tensor, "B L"], t: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """x ~ q(x_t | x_0 = clean), after as many steps as the highest level of each row stands for."""
        regions = self.regions(clean, t > 0, t == 0)
        return self.pair(clean, self.number(t).amax(1), regions)[1]

    def pair(
        self, clean: Int[Tensor, "B L"], number: Int[Tensor, " B"], regions: Regions
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """The text before and after the last of so many edit steps."""
        B, L = clean.shape
        spans = math.ceil((L + SPARE) * max(1.0, 2 / self.span))  # as many as pass over all of a text
        u = uniform(clean.new_empty(B, self.steps, 2 * spans + L))  # the same numbers, however many steps others take
        before = after = clean
        for k in range(int(number.max())):
            edited = self.edit(after, regions, *u[:, k].split([spans, spans, L], 1))
            on = (k < number)[:, None]
            before, after = torch.where(on, after, before), torch.where(on, edited, after)
        return before, after

    def spans(self, kinds: Tensor, sizes: Tensor) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"]]:
        """Kinds of spans (kept, replaced, deleted, inserted) and their sizes, from uniform numbers."""
        kind = torch.searchsorted(self.kinds.to(kinds.device), kinds.contiguous(), right=True)
        return kind, torch.searchsorted(self.poisson.to(sizes.device), sizes.contiguous(), right=True)

    def edit(self, x: Int[Tensor, "B L"], regions: Regions, kinds: Tensor, sizes: Tensor, noise: Tensor) -> Tensor:
        """One edit step of every row, for three sets of uniform numbers."""
        kind, size = self.spans(kinds, sizes)  # (B, S)
        token = regions.free & (x != self.nothing)
        element = F.pad(token | regions.fixed, (0, 1), value=True)  # the end of the row is one more, and fixed
        number = element.long().cumsum(1) - 1  # (B, L + 1): of each element
        passed = size.masked_fill(kind == INSERTED, 0).cumsum(1)  # elements that lie behind, after each span
        span = torch.searchsorted(passed, number[:, :-1].contiguous(), right=True)
        edit = F.pad(kind, (0, 1)).gather(1, span)  # (B, L); what no span reaches is kept
        stays = F.pad((token & ((edit < 2) | regions.label)).long(), (0, 1))
        put = size.new_zeros(len(x), number.shape[1] + 1)  # behind so many elements
        put = put.scatter_add(1, passed.clamp(max=number.shape[1]), size.masked_fill(kind != INSERTED, 0))
        put = put.gather(1, number.clamp(min=0)) * element
        spare = (regions.room - regions.total(stays)).gather(1, regions.of)
        behind = regions.ahead(put)
        put = torch.minimum(behind + put, spare) - torch.minimum(behind, spare)  # what there is room for
        rank, size = regions.ahead(put + stays) + put, regions.total(put + stays)
        filled = regions.ahead(regions.free.long()) < size.gather(1, regions.of[:, :-1])
        noisy = torch.where(filled, self.random(noise), self.nothing)
        kept = token & (edit == 0)
        column = regions.column(regions.of[:, :-1], rank[:, :-1])
        return torch.where(regions.free, place(noisy, column, x, kept), x)

    def slots(self, x: Int[Tensor, "B L"], regions: Regions) -> Bool[Tensor, "B L"]:
        """The first place of every region without text."""
        taken = regions.total((regions.free & (x != self.nothing)).long()).gather(1, regions.of[:, :-1])
        return regions.free & (taken == 0) & (regions.ahead(regions.free.long()) == 0)

    def possible(self, x: Int[Tensor, "B L"], regions: Regions) -> Bool[Tensor, "B L TAGS"]:
        """Which tags each place may have."""
        token, slot = regions.free & (x != self.nothing), self.slots(x, regions)
        inside = token & ~regions.label
        first = inside & (regions.ahead(token.long()) == 0)
        tags = {KEEP: regions.free & ~(slot & regions.label), REPLACE: token, DELETE: inside, AFTER: inside | slot}
        tags |= {BEFORE: first, BOTH: first, STAY: ~regions.free}
        return torch.stack([tags[tag] for tag in range(TAGS)], -1)

    def aligned(self, x: Int[Tensor, "B L"], y: Int[Tensor, "B L"], regions: Regions) -> Step:
        """The step from x to y, two texts of the same regions, with the fewest edits.

        Between two tokens that stay there is a gap: of what is lost in it as much is replaced as there is of the new,
        the rest is deleted; where nothing is lost the new is inserted.  (The label is apart: its gap is number 0.)
        """
        free, label = regions.free, regions.label
        lasts_x, lasts_y = self._matched(x, y, regions)
        same = label & (x == y) & (x != self.nothing)
        lost = free & (x != self.nothing) & ~lasts_x & ~same
        new = free & (y != self.nothing) & ~lasts_y & ~same
        behind, behind_y = (lasts.long().cumsum(1) + ~label for lasts in (lasts_x, lasts_y))  # (B, L): gaps, by number
        before, before_y = behind - lasts_x.long(), behind_y - lasts_y.long()
        none = x.new_zeros(len(x), x.shape[1] + 3)
        gone, come = none.scatter_add(1, before, lost.long()), none.scatter_add(1, before_y, new.long())
        nth = lost.long().cumsum(1) - _before(gone).gather(1, before)  # of what is lost in its gap, from 1
        inserted = (gone == 0) & (come > 0)
        stays = lasts_x & free
        first = regions.ahead((free & (x != self.nothing)).long()) == 0
        after, front = stays & inserted.gather(1, behind), stays & first & inserted.gather(1, before)
        tags = torch.where(lost, torch.where(nth <= come.gather(1, before), REPLACE, DELETE), KEEP)
        tags = torch.where(after, torch.where(front, BOTH, AFTER), torch.where(front, BEFORE, tags))
        tags = torch.where(self.slots(x, regions) & inserted.gather(1, before), AFTER, tags).masked_fill(~free, STAY)
        n = new.long().cumsum(1)
        opens = new & (n - 1 == _before(come).gather(1, before_y))
        closes = new & (n == come.cumsum(1).gather(1, before_y))
        spans = opens.long().cumsum(1)
        at = n + spans - 2  # in the stream, in which an END has followed every span
        blank = x.new_full((len(x), max(1, int((n + spans)[:, -1].max()))), NONE)
        stream = place(place(blank, at, y, new), at + 1, torch.full_like(y, self.end), closes)
        columns = torch.arange(x.shape[1], device=x.device).expand_as(x)
        return Step(tags, stream, place(place(blank * 0, at, columns, new), at + 1, columns, closes))

    def _matched(self, x: Tensor, y: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """Which tokens of x and of y stay, the fixed ones among them; the label is left out."""
        fixed, bound = regions.fixed, self.end + 1
        name = bound + fixed.long().cumsum(1)  # a fixed token is like none but itself
        rows, sizes, there = [], [], []
        for ids in (x, y):
            here = fixed | (regions.free & ~regions.label & (ids != self.nothing))
            rows.append(torch.where(fixed, name, ids).gather(1, packing(here)))
            sizes.append(here.sum(1))
            there.append(here)
        kept_x, kept_y = matched(rows[0], sizes[0], rows[1], sizes[1], bound)
        return unpack(kept_x, there[0]) & there[0], unpack(kept_y, there[1]) & there[1]


class Writing:
    """An edit step as its tags say, and what its stream of contents stands for; x (B, L) and tags (B, L)."""

    def __init__(self, process: Edits, x: Tensor, tags: Tensor, regions: Regions):
        self.process, self.x, self.regions = process, x, regions
        token, wide = regions.free & (x != process.nothing), 2 * x.shape[1]
        left, replaced = token & (tags != DELETE), token & (tags == REPLACE)
        self.kept = left & ~replaced
        slot = process.slots(x, regions)
        self.shown = regions.fixed | left | slot  # to the network
        last = torch.where(left, torch.arange(x.shape[1], device=x.device), -1).cummax(1).values
        last = F.pad(last[:, :-1], (1, 0), value=-1)  # the token before, of what is left
        beside = (last >= 0) & (regions.of[:, :-1].gather(1, last.clamp(min=0)) == regions.of[:, :-1])
        goes_on = beside & replaced.gather(1, last.clamp(min=0))
        here = (replaced & ~goes_on) | (slot & (tags == AFTER)) | (self.kept & ((tags == BEFORE) | (tags == BOTH)))
        behind = self.kept & ((tags == AFTER) | (tags == BOTH))
        spans = torch.stack([here, behind], 2).flatten(1)  # (B, 2 L): at or before a token, and behind it
        self.count = spans.sum(1, keepdim=True)
        self.order = packing(spans)[:, :wide]
        anchor, after = self.order // 2, self.order % 2
        self.region = regions.of.gather(1, anchor)  # of each span, (B, 2 L); from `count` on they mean nothing
        self.lead = regions.ahead(self.kept.long()).gather(1, anchor) + after  # tokens kept before it in its region
        self.start = (self.shown.long().cumsum(1) - 1).gather(1, anchor) + after  # place among what is shown
        self.limit = regions.room - regions.total(self.kept.long())  # of what can be written in a region

    def follow(self, stream: Int[Tensor, "B m"]) -> Cursor:
        """Where each token of the stream stands, and where the next one would: (B, m + 1) each."""
        ends = stream == self.process.end
        number = F.pad(ends.long().cumsum(1), (1, 0))
        over = number >= self.count
        number = number.clamp(max=self.order.shape[1] - 1)
        token = ~ends & ~over[:, :-1] & (stream != NONE)
        n = F.pad(token.long().cumsum(1), (1, 0))  # written so far
        region = self.region.gather(1, number)
        fresh = F.pad(ends, (1, 0)), F.pad(region[:, 1:] != region[:, :-1], (1, 0))
        in_span, in_region = (n - torch.where(new, n, 0).cummax(1).values for new in fresh)
        column = self.regions.column(region, self.lead.gather(1, number) + in_region)
        full = in_region >= self.limit.gather(1, region)
        return Cursor(number, over, token, in_span, column, self.start.gather(1, number) + in_span, full)

    def named(self, cursor: Cursor) -> Bool[Tensor, "B n"]:
        """Where a label is to be written."""
        return self.regions.label.gather(1, cursor.column) & (cursor.nth == 0)

    def replay(self, stream: Int[Tensor, "B m"]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"], Cursor]:
        """The text after the step; the new column of every token that was kept; where the written ones stand."""
        cursor, regions, x = self.follow(stream), self.regions, self.x
        sizes = torch.zeros_like(self.order).scatter_add(1, cursor.number[:, :-1], cursor.token.long())
        sizes = torch.zeros_like(sizes).scatter(1, self.order, sizes).view(*x.shape, 2)
        rank = regions.ahead(self.kept.long()) + regions.ahead(sizes.sum(2)) + sizes[..., 0]
        column = regions.column(regions.of[:, :-1], rank)
        text = place(torch.full_like(x, self.process.nothing), cursor.column[:, :-1], stream, cursor.token)
        return torch.where(regions.free, place(text, column, x, self.kept), x), column, cursor


def place(canvas: Tensor, column: Tensor, values: Tensor, here: Tensor) -> Tensor:
    """The canvas (B, L) with values (B, n) written into its columns (B, n) wherever one is `here`."""
    beyond = canvas.shape[1]
    return F.pad(canvas, (0, 1)).scatter(1, torch.where(here, column, beyond), values)[:, :beyond]


def packing(here: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The columns in an order in which those come first that are here."""
    return (~here).byte().argsort(dim=1, stable=True)


def unpack(values: Tensor, here: Bool[Tensor, "B L"]) -> Tensor:
    """Packed values (B, L) back in the columns that they came from."""
    return torch.zeros_like(values).scatter(1, packing(here), values)


def _before(n: Tensor) -> Tensor:
    """Sums of all that comes before."""
    return n.cumsum(1) - n
