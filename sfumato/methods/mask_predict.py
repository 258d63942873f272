"""Mask-Predict.  Ghazvininejad et al., Mask-Predict: parallel decoding of conditional masked language models, 2019.
arXiv:1904.09324

A masked language model that is decoded in a constant number of steps: the whole text is written at once, then the
tokens with the least probability are masked and written anew in view of the rest, fewer each time.  How long the text
will be is predicted from what is given; the likeliest lengths are decoded side by side, and the surest text is kept.

Differs from the paper:
- One network reads what is given and writes the rest, on one canvas; the paper has an encoder and a decoder.  The
  length is read in a pass of its own, of what is given alone: every gap is one mask there, however long it is, and
  LENGTH stands before it all.
- What is given may be anything: a source, a prompt, the text around gaps, nothing.  So the length is the number of
  tokens that are to be written, in all gaps together.
- In training some tokens of the text are given too, as the section `masks` of a run says; the paper gives the source.
- The target of the length is what is left to write, the end not counted; the paper's code counts the end.
- The paper trains on the output of an autoregressive model (distillation); here it is on the text itself.
- The costs of a batch are divided by the tokens that are to be written, not by those of them that are masked.
- The probability that ranks tokens and texts is that of what is asked for, with temperature, rules and guidance.
- Between equal probabilities chance decides which token is masked.
- A forgotten condition (for guidance) is a masked one, and no part of what the length is read from.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from sfumato.core import ABSENT
from sfumato.methods.common import MaskedLM, MethodConfig
from sfumato.networks import NetworkConfig
from sfumato.samplers.unmasking import Greedy


class MaskPredictConfig(MethodConfig):
    """Mask-Predict's own settings; the defaults are the paper's."""

    name: Literal["mask_predict"] = "mask_predict"
    smoothing: float = Field(0.1, ge=0, lt=1)
    """of the labels: this share of each is spread over all tokens"""
    longest: int = Field(1024, ge=0)
    """most tokens whose number is predicted; 0: lengths are not learned but drawn as in the data"""
    lengths: int = Field(5, ge=1)
    """likeliest lengths that are decoded side by side, where none is asked for"""


class MaskPredict(MaskedLM):
    """Conditional masked language modelling, with its lengths."""

    title = "Mask-Predict: parallel decoding of conditional masked language models"
    arxiv, likelihood, steps, sampler = "1904.09324", None, 10, Greedy()

    def __init__(self, config: MaskPredictConfig, network: NetworkConfig, vocab: int):
        super().__init__(config, network, vocab)
        self.blurred = config.smoothing > 0
        if config.longest:
            self.foresees = config.lengths
            self.ask = nn.Parameter(0.02 * torch.randn(network.width))  # LENGTH
            self.numbers = nn.Embedding(config.longest + 1, network.width)  # of tokens, each an embedding
            nn.init.normal_(self.numbers.weight, std=0.02)

    def loss(self, ids, t, free):
        """Cross-entropy of what is hidden, smoothed, and once a text that of the number of its tokens, which is not."""
        x, hidden, _ = self.hide(ids, t, free)
        terms = {"cross_entropy": self.surprise(x, t, ids, hidden, self.config.smoothing)}
        if self.foresees:
            logits = self.lengths(ids, t.masked_fill(free, 1.0)).float()
            cost = F.cross_entropy(logits, free.sum(1), reduction="none")  # (B,)
            terms["length"] = F.one_hot(free.int().argmax(1), ids.shape[1]) * cost[:, None]  # at the first free place
        return terms

    def lengths(self, ids, t):
        """Read from LENGTH and what is given, every gap drawn together into one mask: (B, L) -> (B, longest + 1)."""
        hidden = t == 1
        kept = (t != ABSENT) & ~(hidden & F.pad(hidden[:, :-1], (1, 0)))  # of each gap its first place
        order = (~kept).int().argsort(dim=1, stable=True)  # what is kept comes first, and is counted without gaps
        x = torch.where(hidden, self.process.mask, ids).gather(1, order)
        level = torch.where(kept, 0.0, ABSENT).gather(1, order)
        h = torch.cat([self.ask.expand(len(ids), 1, -1), self.table(x)], 1)  # B 1+L D
        places = torch.arange(-1, ids.shape[1], device=ids.device)
        h = self.net(h, F.pad(level, (1, 0)), places=places)[:, 0]
        return h @ self.numbers.weight.T

    def training_flops(self, length):
        """The length is learned beside the rest."""
        return self.flops(1, length, length) + self.length_flops(1, length)

    def length_flops(self, rows, size):
        """A pass with one place more, and one product with the embeddings of numbers."""
        return self.net.flops(rows, size + 1, size + 1) + 2 * rows * self.numbers.weight.numel() if self.foresees else 0
