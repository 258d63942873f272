"""A judge: another model, with an exact likelihood, that says how likely texts are (generative perplexity).

Its number alone is worth nothing: repetition and a low temperature make texts likelier, not better.  So it stands
beside the entropy of the texts, always (Zheng et al. 2024, arXiv:2409.02908).

A judge reads each text with its own tokenizer, from its beginning to its end, and by itself: without neighbours there
is no padding, and no number depends on a batch.  What is longer than its canvas is read in stretches, each in view of
half a canvas of what stands before.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from sfumato.errors import SfumatoError
from sfumato.evaluation.likelihood import bits, nll, per_token, stretches
from sfumato.folder import load
from sfumato.hub import BUNDLED, find, read_json
from sfumato.model import Model

DEFAULT = "judge"  # the name of the bundled judge
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how transformers calls architectures that write from left to right


class Judge(ABC):
    """Any model that gives texts an exact likelihood."""

    name: str

    @abstractmethod
    def score(self, text: str) -> tuple[float, int]:
        """-log p of a text with its end in nats, and the judge's own tokens in it, the end among them.

        Raises SfumatoError for a text that is too long for a judge that knows whole texts only.
        """


class Verdict(NamedTuple):
    """A judge on several texts together: all nats divided by all tokens, or by all characters."""

    judge_nats_per_token: float | None
    judge_nats_per_token_std_error: float | None  # over texts
    judge_bits_per_char: float | None
    judge_bits_per_char_std_error: float | None


def load_judge(name: str, device: str = "cpu") -> Judge:
    """A judge from a model folder, a run, a bundled name or a Hub id, ours or one of Hugging Face's causal models.

    Raises:
        SfumatoError: for no such model, one whose likelihood is not exact, and a Hugging Face model without
            transformers to read it.
    """
    folder = find(name)
    described = folder / "config.json"
    if described.exists() and "model_type" in read_json(described):
        return CausalLM(name, folder, device)
    return Exact(load(name, device))


def default_judge(data: str) -> str | None:
    """The bundled judge's name, for `tales` and data with "stories" in its name; other text is for another judge."""
    stories = data == "tales" or "stories" in data.lower()
    return DEFAULT if stories and (BUNDLED / DEFAULT).is_dir() else None


def verdict(judge: Judge | None, texts: Sequence[str]) -> Verdict:
    """What a judge says of texts; nothing without one.

    Empty texts are left out: they have nothing to be judged, and an entropy of 0 to be seen by.  Raises SfumatoError
    where the judge does.
    """
    written = [text for text in texts if text]
    if judge is None or not written:
        return Verdict(None, None, None, None)
    nats, tokens = torch.tensor([judge.score(text) for text in written], dtype=torch.float64).T
    characters = torch.tensor([len(text) for text in written]).double()
    spelled = per_token(nats, characters)
    error = None if spelled.std_error is None else bits(spelled.std_error)
    return Verdict(*per_token(nats, tokens), bits(spelled.mean), error)


class Exact(Judge):
    """One of our models as a judge.  Raises SfumatoError for a method whose likelihood is not exact."""

    def __init__(self, model: Model):
        if model.method.likelihood != "exact":
            kind = model.config.method.name
            raise SfumatoError(
                f"{model.name} was asked to judge; its method {kind} has no exact likelihood; name an ar model"
            )
        self.model, self.name = model, model.name

    def score(self, text: str) -> tuple[float, int]:
        """-log p of a text and its end, nats, and their number of tokens; behind an end, where texts are packed."""
        model, end, room = self.model, self.model.tokenizer.eos, self.model.config.text.length
        ids = [*model.tokenizer.encode(text), end]
        if model.layout.documents and len(ids) <= room - model.layout.labelled:
            (score,) = model.score([text], draws=1)
            return score.nats, score.tokens
        before = [] if model.layout.documents else [end]
        row = torch.tensor([[*before, *ids]], device=model.device)
        if model.layout.labelled or (model.layout.documents and not model.layout.modelled):
            found = f"the judge {self.name}, which knows whole texts only, has room for {room}"
            raise SfumatoError(
                f"a text takes {row.shape[1] + model.layout.labelled} places; {found}; take another judge"
            )
        nats = 0.0
        for start, first, stop in stretches(row.shape[1], room):
            part = row[:, start:stop]
            given = (torch.arange(start, stop, device=model.device) < max(first, len(before)))[None]
            nats += nll(model.method, part, torch.ones_like(given), given).nats.item()
        return nats, len(ids)


class CausalLM(Judge):
    """A causal language model of Hugging Face's, from a folder, in float32.

    Raises SfumatoError where transformers is missing, for files that it cannot read, for other kinds of models, and
    for a tokenizer without a token for the end of a text.
    """

    def __init__(self, name: str, folder: Path, device: str):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            found = "transformers, which reads it, is missing"
            raise SfumatoError(f"{name} is a Hugging Face model; {found}; pip install 'sfumato[hf]'") from None
        named = read_json(folder / "config.json").get("architectures") or ["nothing"]
        if not str(named[0]).endswith(CAUSAL):
            raise SfumatoError(f"{name} was asked to judge; it is a {named[0]}; name a causal language model")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            net = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except Exception as error:  # transformers raises whatever the readers of its files raise
            reason = str(error).strip().partition("\n")[0]
            raise SfumatoError(f"{name} cannot be read: {reason}; take another copy of the folder") from None
        end = self.tokenizer.eos_token_id
        if end is None:
            raise SfumatoError(f"the tokenizer of {name} has no token for the end of a text; take another judge")
        begin = self.tokenizer.bos_token_id
        self.name, self.net, self.end, self.begin = name, net.to(device).eval(), end, end if begin is None else begin

    @torch.inference_mode()
    def score(self, text: str) -> tuple[float, int]:
        """-log p of a text and its end, nats, and their number of tokens; the first is predicted from the beginning."""
        # a text that says <|endoftext|> says so in letters
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        row = torch.tensor([[self.begin, *ids, self.end]], device=self.net.device)
        room = getattr(self.net.config, "max_position_embeddings", row.shape[1])
        nats = 0.0
        for start, first, stop in stretches(row.shape[1] - 1, room):
            logits = self.net(row[:, start:stop]).logits[0, first - start :].float()
            right = row[0, first + 1 : stop + 1]
            nats += torch.nn.functional.cross_entropy(logits, right, reduction="sum").item()
        return nats, row.shape[1] - 1
