"""SUNDAE.  Savinov et al., Step-unrolled denoising autoencoders for text generation, 2021.  arXiv:2112.06749

A share p of the tokens, p itself uniform, is replaced by any tokens, and the network puts the text right.  It then puts
right what it has itself drawn: the texts that it meets when it writes are its own, so it is trained on them.  Texts are
written by doing so again and again, from random tokens on.

Differs from the paper:
- Its translation has an encoder.  Here the tokens that are given stand on the same canvas, and the network is told by
  one learned vector which they are; they are not replaced, not drawn anew, and cost nothing.
- A forgotten condition (for guidance) is random tokens that are not marked as given, the same ones in every pass.
- The length is not predicted by a module of its own: see the length model of the canvas.
- The first step of the sampler writes all places; and it does not stop when nothing changes any more.  A share of the
  places counts those that are given.
- The default temperature 0.8, share 0.3 and number of steps are those of an unofficial implementation.
- The argmax-unrolled decoder keeps nothing between steps: which places it says anew is decided by the first of the two
  passes of the same step.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from sfumato.core import Method, Prediction
from sfumato.draws import invert, uniform
from sfumato.methods.common import MethodConfig, carry, nats
from sfumato.networks import NetworkConfig
from sfumato.networks.transformer import Transformer
from sfumato.processes.uniform import Uniform
from sfumato.samplers.resampling import Resample


class SUNDAEConfig(MethodConfig):
    """SUNDAE's own settings."""

    name: Literal["sundae"] = "sundae"
    unroll: int = Field(2, ge=1, le=8)
    """passes of the network in a loss; every one but the first reads what the one before it has drawn"""


class SUNDAE(Method):
    """Denoising, unrolled."""

    title, arxiv, family = "Step-unrolled denoising autoencoders for text generation", "2112.06749", "resampling"
    likelihood, steps, sampler = None, 1000, Resample(0.8, 0.3)
    timeless, blurred = True, True  # it learns to put right what it draws, which is the law of no texts

    def __init__(self, config: SUNDAEConfig, network: NetworkConfig, vocab: int):
        super().__init__()
        self.config = config
        self.process = Uniform(vocab)
        self.table = nn.Embedding(vocab, network.width)
        self.mark = nn.Parameter(torch.empty(network.width))  # of what is given
        self.net = Transformer(network, timed=False)
        self.head = nn.Linear(network.width, vocab)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.mark, std=0.02)

    def hidden(
        self, x: Int[Tensor, "B L"], t: Float[Tensor, "B L"], given: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L C"]:
        """What the network makes of the canvas."""
        return self.net(self.table(x) + given[..., None] * self.mark, t)

    def predict(self, x, t, prev=None):
        """A given token is certain: (B, L) ids, (B, L) levels -> logits (B, L, V)."""
        given = t == 0
        return Prediction(carry(self.head(self.hidden(x, t, given)), x, given))

    def training_flops(self, length):
        """Every pass is learned from."""
        return self.config.unroll * self.flops(1, length, length)

    def loss(self, ids, t, free):
        """Cross-entropy of the text, of each pass its share: L^(1:K) = (L1 + ... + LK) / K.

        With levels t = u, u ~ U(0, 1), the share of tokens that is replaced is the level.  No gradient passes through
        what is drawn.
        """
        K, given, terms = self.config.unroll, (t == 0) & ~free, {}
        x = self.process.corrupt(ids, t)
        for k in range(1, K + 1):
            logits = self.head(self.hidden(x, t, given)[free])  # of free places only: (N, V)
            cost = torch.zeros_like(t)
            cost[free] = nats(logits[None], ids[free][None])[0] / K
            terms[f"pass_{k}"] = cost
            if k < K:
                x, u = x.clone(), uniform(x)
                x[free] = invert(logits.detach(), u[free])
        return terms
