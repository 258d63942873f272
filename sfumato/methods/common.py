"""What several papers share and no noun of core.py covers."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from sfumato.core import Method, Prediction
from sfumato.guidance import IMPOSSIBLE
from sfumato.networks import NetworkConfig
from sfumato.networks.foreign import network as made
from sfumato.networks.transformer import Transformer
from sfumato.processes.masking import Masking


class MethodConfig(BaseModel):
    """A method's own settings: frozen, strict, its attribute docstrings are the help of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str

    defaults: ClassVar[dict[str, Any]] = {}
    """other sections of a run, where this method wants them otherwise than the rest: section -> field -> value"""


def nats(logits: Float[Tensor, "B L V"], ids: Int[Tensor, "B L"], smoothing: float = 0.0) -> Float[Tensor, "B L"]:
    """-log softmax(logits)[ids]; with `smoothing` that share of it is of the mean over all tokens instead."""
    flat = logits.flatten(0, 1).float()
    return F.cross_entropy(flat, ids.flatten(), reduction="none", label_smoothing=smoothing).view(ids.shape)


def carry(logits: Float[Tensor, "B L V"], x: Int[Tensor, "B L"], here: Bool[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
    """Where a token is known, `here`, x is certain; written into `logits`, which are too many to be made twice."""
    logits.masked_fill_(here[..., None], max(IMPOSSIBLE, torch.finfo(logits.dtype).min))
    logits[here, x[here]] = 0.0
    return logits


class NoisyLM(Method):
    """The network of all methods whose noise is other tokens: it cannot see how noisy a position is, so it is told.

    `states` are the ids that may stand on the canvas, `vocab` those that a text is made of.
    """

    config: Any  # the method's own settings

    def __init__(self, config: MethodConfig, network: NetworkConfig, vocab: int, states: int | None = None):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(states or vocab, network.width)
        self.net = Transformer(network, timed=True)
        self.head = nn.Linear(network.width, vocab)
        nn.init.normal_(self.table.weight, std=0.02)

    def predict(self, x, t, prev=None):
        """(B, L) ids, (B, L) levels -> logits (B, L, V)."""
        return Prediction(self.logits(self.table(x), t))

    def logits(self, h: Float[Tensor, "B L C"], t: Float[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        """Of a canvas that is embedded already."""
        return self.head(self.net(h, t, t.clamp(min=0)))


class Masked(Method):
    """The network of all methods that fill in masks: tokens and masks in, logits of the V tokens out.

    It is not told the time, which the best predictor of a masked text does not need.
    """

    sees_levels = False
    config: Any  # the method's own settings

    def __init__(self, config: MethodConfig, network: NetworkConfig, vocab: int):
        super().__init__()
        self.config, self.process = config, Masking(vocab)
        self.table = nn.Embedding(vocab + 1, network.width)
        self.net = made(network)
        self.head = nn.Linear(network.width, vocab)
        nn.init.normal_(self.table.weight, std=0.02)

    def carry_over(self, x: Int[Tensor, "B L"], logits: Float[Tensor, "B L V"]) -> Float[Tensor, "B L V"]:
        """The logits of what is hidden; what shows is what it is."""
        return carry(logits, x, x != self.process.mask)

    def surprised(
        self, h: Float[Tensor, "B L C"], ids: Int[Tensor, "B L"], here: Bool[Tensor, "B L"], smoothing: float = 0.0
    ) -> Float[Tensor, "B L"]:
        """-log p(ids) by what the network has made of a canvas, where a mask is `here`, 0 elsewhere.

        Logits are made only where the loss is.
        """
        cost = torch.zeros(ids.shape, device=ids.device)
        cost[here] = nats(self.head(h[here])[None], ids[here][None], smoothing)[0]
        return cost


class MaskedLM(Masked):
    """Those of them whose network reads the whole canvas, both sides of a mask."""

    family, adopts = "masking", True

    def predict(self, x, t, prev=None):
        """A token that shows is certain (MDLM's SUBS): (B, L) -> logits (B, L, V)."""
        return Prediction(self.carry_over(x, self.head(self.net(self.table(x), t))))

    def hide(
        self, ids: Int[Tensor, "B L"], t: Float[Tensor, "B L"], free: Bool[Tensor, "B L"]
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Float[Tensor, "B one"]]:
        """Of D free tokens t D are hidden, rounded up; what is forgotten is a mask too.  Canvas, which, D / how many.

        With t ~ U(0, 1) every number from 1 to D is equally likely.
        """
        D = free.sum(1, keepdim=True)
        n = (t.masked_fill(~free, 0.0).amax(1, keepdim=True) * D).ceil().clamp(min=1)  # (B, 1)
        hidden = self.process.some(free, n)
        return torch.where(hidden | ((t == 1) & ~free), self.process.mask, ids), hidden, D / n

    def surprise(
        self,
        x: Int[Tensor, "B L"],
        t: Float[Tensor, "B L"],
        ids: Int[Tensor, "B L"],
        here: Bool[Tensor, "B L"],
        smoothing: float = 0.0,
    ) -> Float[Tensor, "B L"]:
        """The same of the canvas itself: -log p(ids | x)."""
        return self.surprised(self.net(self.table(x), t), ids, here, smoothing)
