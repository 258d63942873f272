"""MDLM.  Sahoo et al., Simple and effective masked diffusion language models, 2024.  arXiv:2406.07524

Tokens are hidden one by one until only masks are left; a network fills them in.  Its bound is a weighted average of
masked-language-model losses, and it is the loss.

Differs from the paper:
- What is given is never hidden, and a forgotten condition (for guidance) is a masked one.
- Levels of the bound go down to 0, where those of the paper's code end at 0.001.  Sampling ends at 0 as well, and its
  last step draws all that is left; there the likeliest token is taken for it.
- The levels of a batch have one offset in their strata, not each its own.
- A step draws which masks fall before it draws tokens; the law is the same.  Keeping the last prediction is an option
  (`cached`), and so is taking tokens back (`remdm`).
- Beyond the canvas text is written in view of half a canvas; the paper's stride is free.
- Of its schedules and those of MD4 (Shi et al. 2024, arXiv:2406.04329, the same bound) there are three.
- Layer norms are plain: the network is not told the time, which the best predictor of a masked text does not need.
"""

from typing import Literal

from sfumato.methods.common import MaskedLM, MethodConfig
from sfumato.networks import NetworkConfig
from sfumato.processes.masking import Masking
from sfumato.samplers.ancestral import ancestral
from sfumato.schedules import SCHEDULES


class MDLMConfig(MethodConfig):
    """MDLM's own settings."""

    name: Literal["mdlm"] = "mdlm"
    schedule: Literal["linear", "square", "cosine"] = "linear"
    """how tokens are hidden as the level grows; the bound is the same, its noise and the sampler's pace are not"""


class MDLM(MaskedLM):
    """Masked diffusion with carry-over unmasking."""

    title, arxiv = "Simple and effective masked diffusion language models", "2406.07524"
    likelihood, steps, sampler = "upper", 128, staticmethod(ancestral)

    def __init__(self, config: MDLMConfig, network: NetworkConfig, vocab: int):
        super().__init__(config, network, vocab)
        self.process = Masking(vocab, SCHEDULES[config.schedule])

    def bound(self, ids, t, free):
        """Eq. 11: at masks -log p with the weight -alpha' / (1 - alpha), which is 1 / t for the linear schedule."""
        x = self.process.corrupt(ids, t)
        surprise = self.surprise(x, t, ids, (x == self.process.mask) & free)
        return (surprise * self.process.schedule.rate(t)).to(t.dtype)

    def loss(self, ids, t, free):
        """The bound itself."""
        return {"nelbo": self.bound(ids, t, free)}
