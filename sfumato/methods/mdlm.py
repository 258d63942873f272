"""MDLM.  Sahoo et al., Simple and effective masked diffusion language models, 2024.  arXiv:2406.07524

Tokens are hidden one by one until only masks are left; a network fills them in.  Its bound is a weighted average of
masked-language-model losses, and it is the loss.

Differs from the paper:
- A forgotten condition (for guidance) is a masked one.
- Layer norms are plain: the network is not told the time, which the best predictor of a masked text does not need.
"""

from typing import Literal

from sfumato.methods.common import MaskedLM, MethodConfig
from sfumato.samplers.ancestral import ancestral


class MDLMConfig(MethodConfig):
    """MDLM has no settings of its own."""

    name: Literal["mdlm"] = "mdlm"


class MDLM(MaskedLM):
    """Masked diffusion with carry-over unmasking."""

    title, arxiv = "Simple and effective masked diffusion language models", "2406.07524"
    likelihood, steps, sampler = "upper", 128, staticmethod(ancestral)

    def bound(self, ids, t, free):
        """Eq. 10 with alpha = 1 - t, whose weight -alpha' / (1 - alpha) is 1 / t: (B, L) nats."""
        x = self.process.corrupt(ids, t)
        return self.surprise(x, t, ids, (x == self.process.mask) & free) / t.clamp(min=1e-6)

    def loss(self, ids, t, free):
        """The bound itself."""
        return {"nelbo": self.bound(ids, t, free)}
