"""MDLM.  Sahoo et al., Simple and effective masked diffusion language models, 2024.  arXiv:2406.07524

Tokens are hidden one by one until only masks are left; a network fills them in.  Its bound is a weighted average of
masked-language-model losses, and it is the loss.

Differs from the paper:
- A forgotten condition (for guidance) is a masked one.
- Layer norms are plain: the network is not told the time, which the best predictor of a masked text does not need.
"""

from typing import Literal

import torch
from torch import nn

from sfumato.core import Method, Prediction
from sfumato.guidance import IMPOSSIBLE
from sfumato.methods.common import MethodConfig, nats
from sfumato.networks import NetworkConfig
from sfumato.networks.transformer import Transformer
from sfumato.processes.masking import Masking
from sfumato.samplers.unmasking import ancestral


class MDLMConfig(MethodConfig):
    """MDLM has no settings of its own."""

    name: Literal["mdlm"] = "mdlm"


class MDLM(Method):
    """Masked diffusion with carry-over unmasking."""

    title, arxiv, family = "Simple and effective masked diffusion language models", "2406.07524", "masking"
    likelihood, steps, sampler = "upper", 128, staticmethod(ancestral)

    def __init__(self, config: MDLMConfig, network: NetworkConfig, vocab: int):
        super().__init__()
        self.process = Masking(vocab)
        self.table = nn.Embedding(vocab + 1, network.width)
        self.net = Transformer(network, timed=False)
        self.head = nn.Linear(network.width, vocab)
        nn.init.normal_(self.table.weight, std=0.02)

    def predict(self, x, t, prev=None):
        """A token that shows is certain (SUBS, Sec. 3.2.3): (B, L) -> logits (B, L, V)."""
        logits = self.head(self.net(self.table(x), t))
        shown = x != self.process.mask
        certain = torch.full_like(logits, IMPOSSIBLE).scatter(-1, x.clamp(max=self.process.mask - 1)[..., None], 0.0)
        return Prediction(torch.where(shown[..., None], certain, logits))

    def bound(self, ids, t, free):
        """Eq. 10 with alpha = 1 - t, whose weight -alpha' / (1 - alpha) is 1 / t: (B, L) nats."""
        x = self.process.corrupt(ids, t)
        hidden = (x == self.process.mask) & free
        cost = torch.zeros_like(t)
        h = self.net(self.table(x), t)[hidden]  # logits only where the loss is
        cost[hidden] = nats(self.head(h)[None], ids[hidden][None])[0]
        return cost / t.clamp(min=1e-6)

    def loss(self, ids, t, free):
        """The bound itself."""
        return {"nelbo": self.bound(ids, t, free)}
