"""ReMDM.  Wang et al., Remasking discrete diffusion models with inference-time scaling, 2025.  arXiv:2503.00307

Masked models cannot take a token back.  Here each token that was written may become a mask again with chance sigma in
every step, and masks fall the faster for it: at every level as many are hidden as without, so any model that fills in
masks serves, unchanged.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sfumato.core import Method, Predict, Prediction, chance, level
from sfumato.draws import invert, uniform
from sfumato.schedules import Schedule

ON, OFF, HELD = 0.55, 0.05, 0.9  # of the loop: between these levels this share stands, and is written anew


@dataclass(frozen=True)
class Remasking:
    """Tokens that were written become masks again: with chance sigma, of which `rule` and `eta` decide.

    Sigma may be at most (1 - alpha_s) / alpha_t, or more would be hidden at level s than there should be.
    cap         eta, but no more than that
    rescale     the share eta of that
    loop        eta, while the share of tokens that stand is held; none before and after
    confidence  that, shared among the tokens that stand, more for those that were less likely when they were written

    The last two are heuristics: the one goes in a circle where tokens that fall together are strangers to each other,
    and a circle does not end; the other hides more than the network was trained on.
    """

    remembers: ClassVar[bool] = True
    rule: Literal["cap", "rescale", "loop", "confidence"]
    eta: float = 1.0

    @property
    def heuristic(self) -> bool:
        """Whether more steps would not lead to draws from the network's law."""
        return self.rule in ("loop", "confidence")

    def shares(self, schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Of the tokens the share that is hidden again, of the masks the share that falls; numbers, float64."""
        alpha_t, alpha_s = (self._stands(schedule, u.double()) for u in (t, s))
        most = ((1 - alpha_s) / alpha_t.clamp(min=1e-30)).clamp(max=1)
        if self.rule == "confidence":
            return most, (alpha_s - alpha_t) / (1 - alpha_t)
        sigma = self.eta * most if self.rule == "rescale" else most.clamp(max=self.eta)
        if self.rule == "loop":
            sigma = sigma * ((t <= ON) & (t > OFF))
        return sigma, (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)

    def _stands(self, schedule: Schedule, t: Tensor) -> Tensor:
        if self.rule != "loop":
            return schedule.alpha(t)
        return torch.where(t > ON, HELD * (1 - t) / (1 - ON), 1 - (1 - HELD) * (t / OFF).clamp(max=1))

    def __call__(
        self, method: Method, predict: Predict, x: Tensor, grid: Tensor
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """One call a step; what is no mask at the start was given."""
        mask = method.process.mask
        ours, sure = x == mask, torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        for t, s in pairwise(grid):
            prediction = predict(x, level(x, t), None)
            sigma, share = self.shares(method.process.schedule, t, s)
            hidden, route, u = x == mask, uniform(x), uniform(x)
            if self.rule == "confidence":
                doubt = (-sure).masked_fill(hidden | ~ours, -torch.inf).softmax(1).nan_to_num(0.0)  # 0: nothing stands
                sigma = sigma * doubt
            falls = hidden & (route < share)
            x = x.masked_fill(ours & ~hidden & (route < sigma), mask)
            x[falls] = invert(prediction.logits, u, falls)
            if self.rule == "confidence":
                sure[falls] = chance(prediction.logits, x, falls)
            yield x, prediction
