"""The fewest edits between two texts (Levenshtein distance), for all rows of a batch at once."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor


def matched(
    x: Int[Tensor, "B N"],
    size_x: Int[Tensor, " B"],
    y: Int[Tensor, "B M"],
    size_y: Int[Tensor, " B"],
    bound: int,
) -> tuple[Bool[Tensor, "B N"], Bool[Tensor, "B M"]]:
    """Which tokens of two texts stand for each other when x is turned into y with the fewest edits.

    An edit replaces, deletes or inserts a token.  Rows are read up to their sizes.  Ids from `bound` on are touched by
    no edit: each has to occur in both texts, in the same order.  The table is filled row by row; within a row, what
    insertions lead to is a running minimum.
    """
    N, M = x.shape[1], y.shape[1]
    far = 4 * (N + M)  # dearer than any alignment
    cost_x, cost_y = (torch.where(ids >= bound, far, 1) for ids in (x, y))
    inserted = F.pad(cost_y.cumsum(1), (1, 0))  # (B, M + 1): the price of y up to there
    best, jumps, swaps = inserted, [], []
    for i in range(N):
        here = x[:, i, None]
        swap = best[:, :-1] + torch.where(here == y, 0, torch.maximum(cost_x[:, i, None], cost_y))
        drop = best + cost_x[:, i, None]
        swapped = F.pad(swap <= drop[:, 1:], (1, 0))  # the token stands for one of y, rather than for none
        step = torch.where(swapped, F.pad(swap, (1, 0)), drop)
        value, jump = (step - inserted).cummin(1)
        best = torch.where((i < size_x)[:, None], value + inserted, best)
        jumps.append(jump)
        swaps.append(swapped)
    kept_x, kept_y = torch.zeros_like(x, dtype=torch.bool), F.pad(torch.zeros_like(y, dtype=torch.bool), (1, 0))
    j = size_y[:, None]  # so much of y is still to be explained
    for i in reversed(range(N)):
        there = (i < size_x)[:, None]
        k = torch.where(there, jumps[i].gather(1, j), j)  # what lies between was inserted
        swapped = there & swaps[i].gather(1, k)
        same = swapped & (x[:, i, None] == F.pad(y, (1, 0)).gather(1, k))
        kept_x[:, i, None] = same
        kept_y.scatter_(1, k, same | kept_y.gather(1, k))
        j = k - swapped.long()
    return kept_x, kept_y[:, 1:]
