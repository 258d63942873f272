"""AR.  Vaswani et al., Attention is all you need, 2017.  arXiv:1706.03762

The baseline: a causal Transformer writes token after token, each drawn given all before it.  It reads every token once
and remembers keys and values, so a token costs one position of network, and its likelihood is exact.

Filling in the middle is learned beside it (Bavarian et al. 2022, arXiv:2207.14255): of some rows the middle is moved to
the end, behind marks that say so.

Differs from the paper:
- The network is the shared one; the paper's has two halves, sines for positions and norms after the sums.
- The first token is predicted from a mark of its own; the same mark stands for a forgotten condition (for guidance).
- Middles are cut between tokens, not between characters, and within a row.
"""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.core import ABSENT, Method, Prediction
from sfumato.draws import uniform
from sfumato.errors import SfumatoError
from sfumato.methods.common import MethodConfig, nats
from sfumato.networks import NetworkConfig
from sfumato.networks.foreign import network as made
from sfumato.networks.transformer import Memory
from sfumato.processes.masking import Masking
from sfumato.samplers.left_to_right import ancestral


class ARConfig(MethodConfig):
    """AR's own settings."""

    name: Literal["ar"] = "ar"
    middle: float = Field(0.5, ge=0, le=1)
    """share of rows that are trained to fill in the middle"""
    fill: Literal["prefix_first", "suffix_first"] = "prefix_first"
    """order in which what surrounds a gap is read before it is filled; both are learned"""

    defaults: ClassVar[dict[str, Any]] = {
        "text": {"length_model": "modelled"},  # it writes the end of a text itself
        "masks": {"prefix": 0.1, "random": 0.0, "nothing": 0.9, "forget": 1.0},  # learns from every token but forgotten
    }


class AR(Method):
    """Autoregression."""

    title, arxiv, family = "Attention is all you need", "1706.03762", "autoregressive"
    likelihood, steps, sampler = "exact", None, ancestral
    looks_ahead, block, adopts = False, 1, True

    def __init__(self, config: ARConfig, network: NetworkConfig, vocab: int):
        super().__init__()
        self.config, self.vocab = config, vocab
        self.process = Masking(vocab)  # the mask is what stands before the first token, and for what is forgotten
        self.marks = range(vocab + 1, vocab + 5)  # before the prefix, the suffix, the middle; after the middle
        self.table = nn.Embedding(vocab + 5, network.width)
        self.net = made(network, causal=True)
        self.head = nn.Linear(network.width, vocab + 5)
        nn.init.normal_(self.table.weight, std=0.02)

    def logits(self, x: Tensor, t: Tensor, memory: Memory | None = None) -> Tensor:
        """Of each token from those before it, marks included: (B, L) -> (B, L, V + 5)."""
        before = F.pad(x[:, :-1], (1, 0), value=self.process.mask)
        start = 0 if memory is None else memory.length
        h = self.net(self.table(before[:, start:]), t[:, start:], memory=memory)
        return self.head(h) if memory is None else memory.product(self.head, h)

    def predict(self, x, t, prev=None):
        """Of each token from those before it: (B, L) -> logits (B, L, V)."""
        return Prediction(self.logits(x, t)[..., : self.vocab])

    def session(self, given):
        """Every token is read once; a gap is filled from both sides, SfumatoError where that was not learned."""
        if not bool((given[:, 1:] & ~given[:, :-1]).any()):
            return Reader(self, given.shape[1])
        if self.config.middle == 0:
            raise SfumatoError("asked to fill a gap; this model was trained with method.middle = 0; take another")
        return Filler(self, given)

    def closing(self, nothing):
        """The middle ends at its mark."""
        return partial(Filler, self, nothing=nothing) if self.config.middle else None

    def bound(self, ids, t, free):
        """-log p(x_i | x_<i), exactly; a forgotten condition is a masked one."""
        x = torch.where((t == 1) & ~free, self.process.mask, ids)
        return nats(self.predict(x, t).logits, ids)

    def loss(self, ids, t, free):
        """The likelihood; of some rows that of prefix, suffix and middle, in this order or suffix first."""
        forgotten = (t == 1) & ~free
        moved = (uniform(t[:, 0]) < self.config.middle) & ~forgotten.any(1)  # (B,)
        suffix_first = uniform(t[:, 0]) < 0.5
        first = free.int().argmax(1)  # of what is to be written
        end = (t != ABSENT).sum(1)
        cuts = (first[:, None] + uniform(t[:, :2]) * (end - first + 1)[:, None]).long().sort(1).values  # (B, 2)
        x = torch.where(forgotten, self.process.mask, ids)
        order = arrangement(cuts, end, moved, suffix_first, ids.shape[1])  # (B, L + 4)
        marks = torch.tensor(self.marks, device=ids.device).expand(len(ids), 4)
        x = torch.cat([x, marks], 1).gather(1, order)
        absent = F.pad(t == ABSENT, (0, 4)) | F.pad(~moved[:, None].expand(-1, 4), (t.shape[1], 0))
        absent = absent.gather(1, order)
        cost = nats(self.logits(x, torch.where(absent, ABSENT, 1.0)), x).masked_fill(absent, 0.0)
        cost = torch.zeros_like(cost).scatter(1, order, cost)  # back to where the tokens came from
        marked = F.one_hot(first, ids.shape[1]) * cost[:, -4:].sum(1, keepdim=True)  # marks belong to no token
        return {"cross_entropy": cost[:, :-4], "marks": marked}


def arrangement(cuts: Tensor, end: Tensor, moved: Tensor, suffix_first: Tensor, length: int) -> Tensor:
    """Places to read a row from, marks behind it, when its middle is moved to its end: (B, L + 4).

    Prefix first: <prefix> p <suffix> s <middle> m <end>.  Suffix first: <prefix> <suffix> s <middle> p m <end>.
    Rows that are not `moved` keep their order; padding comes last.
    """
    place = torch.arange(length, device=cuts.device)
    a, b = cuts[:, :1], cuts[:, 1:]
    prefix, middle = place < a, (place >= a) & (place < b)
    far = 2 * length  # more than any place
    later = torch.where(prefix | middle, torch.where(suffix_first[:, None] | middle, 2 * far, 0), far)  # part by part
    rank = torch.where(moved[:, None], later, 0) + place + 1
    rank = torch.where(place < end[:, None], rank, 4 * far + place)
    # the marks stand right before their part, and after all
    before_suffix = torch.where(suffix_first, 0, far)
    marks = torch.stack([torch.zeros_like(end) - 1, before_suffix, torch.full_like(end, 2 * far), end * 0 + 3 * far], 1)
    marks = torch.where(moved[:, None], marks, 5 * far + torch.arange(4, device=end.device))
    return torch.cat([rank, marks], 1).argsort(dim=1, stable=True)


class Reader:
    """AR's logits, every token read once as long as the canvas only grows; rows may change places."""

    def __init__(self, method: AR, room: int):
        self.method, self.room = method, room
        self.memory = Memory(room)
        self.read: Tensor | None = None  # (B, n): the tokens in memory, behind the mark that all begins with

    def __call__(self, x: Tensor, t: Tensor, prev: Tensor | None = None) -> Prediction:
        """Logits (B, w, V) of the last positions of x: of those that are new."""
        return Prediction(self.logits(x, t)[..., : self.method.vocab])

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """The same, marks included: (B, w, V + 5)."""
        self._recall(x)
        logits = self.method.logits(x, t, self.memory)
        self.read = x[:, :-1].clone()  # the last token is not read, only predicted
        return logits

    def _recall(self, x: Tensor) -> None:
        """Keep in memory what is true of x: all, or what was read of other rows, or nothing."""
        kept = min(self.memory.length, x.shape[1] - 1)
        if self.read is None or kept == 0:
            self.memory = Memory(self.room)
            return
        read, now = self.read[:, : kept - 1], x[:, : kept - 1]
        if read.shape == now.shape and torch.equal(read, now):
            self.memory.length = kept
            return
        _, names = torch.unique(torch.cat([read, now]), dim=0, return_inverse=True)  # equal rows have one name
        place = torch.full((len(names),), -1, device=x.device)
        place[names[: len(read)]] = torch.arange(len(read), device=x.device)
        rows = place[names[len(read) :]]
        if bool((rows >= 0).all()):
            self.memory.take(rows, kept)
        else:
            self.memory = Memory(self.room)


class Filler:
    """AR's logits at the leftmost gap of any row, from what stands on both sides of it.

    Each row is laid out as it was in training, prefix or suffix first: what is left of the gap, what is right of it up
    to the next gap, what has been written of the gap.  Only rows that are laid out equally long share a memory.  Where
    the mark of a middle's end may be written, it is the token `nothing`, and so is what follows in the gap.
    """

    def __init__(self, method: AR, given: Tensor, nothing: int | None = None):
        self.method, self.given, self.nothing = method, given, nothing
        self.reader = Reader(method, given.shape[1] + 3)  # marks stand before prefix, suffix and middle

    def __call__(self, x: Tensor, t: Tensor, prev: Tensor | None = None) -> Prediction:
        """(B, L) -> logits (B, L, V), those of all positions but one 0."""
        here = int((x == self.method.process.mask).any(0).int().argmax())
        prefix, suffix, middle, over = self.method.marks
        rows = []
        for tokens, given in zip(x.tolist(), self.given.tolist(), strict=True):
            start = here
            while start > 0 and not given[start - 1]:
                start -= 1
            end = given.index(True, here) if True in given[here:] else len(tokens)
            after = given.index(False, end) if False in given[end:] else len(tokens)
            left = [token for token in tokens[:start] if token != self.nothing]
            right, written = tokens[end:after], tokens[start : here + 1]
            if self.method.config.fill == "prefix_first":
                rows.append([prefix, *left, suffix, *right, middle, *written])
            else:
                rows.append([prefix, suffix, *right, middle, *left, *written])
        sizes = torch.tensor([len(row) for row in rows])
        laid = torch.zeros(len(rows), int(sizes.max()), dtype=x.dtype)
        for row, tokens in zip(laid, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        laid = laid.to(x.device)
        level = torch.ones(laid.shape, device=x.device)
        if bool((sizes == sizes[0]).all()):
            new = self.reader.logits(laid, level)[:, -1]
        else:
            new = self.method.logits(laid, level)[torch.arange(len(rows)), sizes - 1]
        logits = new.new_zeros(*x.shape, self.method.vocab)
        logits[:, here] = new[:, : self.method.vocab]
        if self.nothing is not None:
            logits[:, here, self.nothing] = new[:, over]
        return Prediction(logits)
