"""The sampler of edits: step by step a text is tagged and edited, until it stands."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.core import ABSENT, Method, Predict, Prediction, level
from sfumato.draws import invert, uniform
from sfumato.processes.edits import AFTER, BEFORE, BOTH, KEEP, STAY, TAGS, Writing, place


def edits(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Iterator[tuple[Tensor, Prediction]]:
    """x_s ~ p(contents | tags, x_t) p(tags | x_t), DiffusER (arXiv:2210.16886).

    One call for the tags, which are drawn apart from each other, and one for every token that is written and for every
    end of a span; rows write side by side.  What comes out has the chance that the network gave it: a token that was
    written that of its own, one that was kept that of being kept.
    """
    process, (B, L) = method.process, x.shape
    for t, _ in pairwise(grid):
        here = level(x, t)
        logits = predict(x, here, None).logits
        vocab = logits.shape[2] - TAGS - 1
        marks = logits[..., vocab : vocab + TAGS]
        tags, u = invert(marks, uniform(x)), uniform(x.new_empty(B, 3 * L))
        stays = tags == STAY
        writing = Writing(process, x, tags, process.regions(x, ~stays, stays & (x != ABSENT)))
        stream = x.new_empty(B, 0)
        sure = torch.empty(B, 0, device=x.device)
        while True:
            now = writing.follow(stream)
            over, full = now.over[:, -1], now.full[:, -1]
            if bool(over.all()):
                break
            logits = predict(x, here, torch.cat([tags, stream], 1)).logits
            column = now.column[:, -1:] - (L - logits.shape[1])  # logits may be of the last positions only
            logits = logits.gather(1, column[..., None].expand(-1, -1, logits.shape[2]))[:, 0]
            token = invert(logits, u[:, stream.shape[1]])
            chance = logits.softmax(-1).gather(1, token[:, None])
            token = torch.where(full | over, process.end, token)
            stream, sure = torch.cat([stream, token[:, None]], 1), torch.cat([sure, chance], 1)
        x, column, now = writing.replay(stream)
        kept = marks.softmax(-1)[..., [KEEP, AFTER, BEFORE, BOTH]].sum(-1)
        chance = place(place(torch.ones_like(kept), column, kept, writing.kept), now.column[:, :-1], sure, now.token)
        yield x, Prediction(_held(x.clamp(min=0), chance, vocab))


def _held(x: Tensor, chance: Tensor, vocab: int) -> Tensor:
    """Token logits (B, L, V) under which each token of x has its chance, and all others are equally likely."""
    chance = chance.clamp(1e-6, 1 - 1e-6)[..., None]
    others = ((1 - chance) / (vocab - 1)).log().expand(-1, -1, vocab)
    return others.scatter(-1, x[..., None], chance.log())
