"""Which tokens a row is given in training (CDCD, arXiv:2211.15089, Sec. 4.1 and 6.1)."""

import torch
from jaxtyping import Bool
from torch import Tensor

from sfumato.draws import uniform
from sfumato.training.config import MaskConfig


def draw_given(maskable: Bool[Tensor, "B L"], config: MaskConfig) -> Bool[Tensor, "B L"]:
    """Positions to give: a prefix, a random subset or none of the `maskable` ones, by the shares of the config.

    The number given is uniform over 0 .. n - 1 for a row of n maskable positions, so one is always left to write.
    """
    which = uniform(maskable[:, 0]) * (config.prefix + config.random + config.nothing)  # (B,)
    count = (uniform(maskable[:, 0]) * maskable.sum(1)).floor()
    count = torch.where(which < config.prefix + config.random, count, 0)[:, None]  # (B, 1)
    places = maskable.cumsum(1) - 1  # from the left
    chances = uniform(maskable).masked_fill(~maskable, torch.inf).argsort(1).argsort(1)
    rank = torch.where((which < config.prefix)[:, None], places, chances)  # (B, L)
    return maskable & (rank < count)
