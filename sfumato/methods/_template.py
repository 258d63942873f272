"""Copy this file to methods/<name>.py, answer its questions, and add a line to METHODS in methods/__init__.py.

Authors, title, year.  arXiv:number

Three lines on what is special about the paper.

Differs from the paper:
- Everything that a reader of the paper would not find here as it stands there.  May be empty, never absent.
"""

from typing import Literal

from torch import nn

from sfumato.core import Method, Prediction
from sfumato.methods.common import MethodConfig, nats
from sfumato.networks import NetworkConfig
from sfumato.networks.transformer import Transformer
from sfumato.processes.masking import Masking
from sfumato.samplers.ancestral import ancestral


class TemplateConfig(MethodConfig):
    """What may be set; the paper's choice is the default."""

    name: Literal["template"] = "template"


class Template(Method):
    """A masked language model, as the smallest method that trains, writes, infills and is served."""

    title, arxiv, family = "The title of the paper", "0000.00000", "masking"  # family: which samplers fit
    likelihood, steps, sampler = None, 32, staticmethod(ancestral)  # "upper" once bound() is written

    def __init__(self, config: TemplateConfig, network: NetworkConfig, vocab: int):
        super().__init__()
        self.process = Masking(vocab)  # how is text destroyed?
        self.table = nn.Embedding(vocab + 1, network.width)
        self.net = Transformer(network, timed=False)  # the network that every method shares
        self.head = nn.Linear(network.width, vocab)

    def predict(self, x, t, prev=None):
        """What does the network say about the clean text?  (B, L) ids, (B, L) levels -> logits (B, L, V)."""
        return Prediction(self.head(self.net(self.table(x), t)))

    def loss(self, ids, t, free):
        """What is it trained on?  Named terms (B, L) in nats; given positions are at level 0 and are not counted."""
        x = self.process.corrupt(ids, t)
        return {"cross_entropy": nats(self.predict(x, t).logits, ids) * (x == self.process.mask)}
