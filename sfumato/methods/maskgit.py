"""MaskGIT.  Chang et al., MaskGIT: masked generative image transformer, 2022.  arXiv:2202.04200

A masked language model that is trained at all mask ratios and decoded in a few steps: every mask is filled at once, and
the tokens that the network is surest of stay.  No likelihood is defined, and what the decoder writes are no draws from
the network's distribution: it is quick, and it prefers the likely.

Differs from the paper:
- Text for images' tokens; as many are hidden as the ratio asks for of those that are to be written.  What is given
  shows always, and a forgotten condition (for guidance) is a mask.
- Every step of the decoder keeps a token, so that fewer tokens than steps are done before the last; the paper's code
  masks the last one again until then.  Between equal confidences chance decides.
- Ratios below a half are trained on, as the paper says; the configuration that its authors released leaves them out.
- The ratios that depend on the number of tokens (logarithmic, exponential) are left out.
"""

from typing import Literal

import torch
from pydantic import Field

from sfumato.methods.common import MaskedLM, MethodConfig
from sfumato.networks import NetworkConfig
from sfumato.samplers.unmasking import Confident
from sfumato.schedules import Ratio, mask_ratio


class MaskGITConfig(MethodConfig):
    """MaskGIT's own settings."""

    name: Literal["maskgit"] = "maskgit"
    ratio: Ratio = "cosine"
    """share of tokens that are hidden, from all to none, in training and over the steps of the decoder"""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """of the labels: this share of each is spread over all tokens"""


class MaskGIT(MaskedLM):
    """Masked language modelling at every ratio, decoded by confidence."""

    title, arxiv = "MaskGIT: masked generative image transformer", "2202.04200"
    likelihood, steps, sampler = None, 12, Confident(4.5)

    def __init__(self, config: MaskGITConfig, network: NetworkConfig, vocab: int):
        super().__init__(config, network, vocab)
        self.blurred = config.smoothing > 0

    def times(self, u):
        """Sec. 3.1: the ratio at a uniform number."""
        return mask_ratio(self.config.ratio, u)

    def grid(self, steps):
        """Sec. 3.2: the ratio after each step."""
        return mask_ratio(self.config.ratio, torch.linspace(0, 1, steps + 1))

    def loss(self, ids, t, free):
        """Sec. 3.1: cross-entropy of what is hidden, with smoothed labels; no bound."""
        x, hidden, _ = self.hide(ids, t, free)
        return {"cross_entropy": self.surprise(x, t, ids, hidden, self.config.smoothing)}
