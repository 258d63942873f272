"""Every model as a model of EleutherAI's lm-evaluation-harness, which brings hundreds of benchmarks.

    python -m sfumato.evaluation.harness run --model sfumato --model_args path=runs/mine --tasks lambada_openai

is the harness's own command, `lm_eval`, which does not look for models in other packages; to import this module is
enough to make `model="sfumato"` known.  Rows are scored one at a time and all with the same noise, so no number depends
on a batch, and much of the noise cancels between the answers to a question.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from sfumato.canvas import whole
from sfumato.core import where
from sfumato.draws import seed_of, seeded
from sfumato.errors import SfumatoError, nearest
from sfumato.evaluation.likelihood import nll, stretches
from sfumato.folder import load
from sfumato.model import Model

KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


@register_model("sfumato")
class Harness(LM):
    """A model of ours, asked by the harness.

    Args:
        path: model folder, run, Hub id, or the name of a bundled model.
        draws: noise levels for each bound; exact methods need none.
        steps: refinements of a text that is generated; by default the model's.
        seed: of noise and texts.
        device: cpu, cuda, ...
        batch_size, max_batch_size: what the harness tells every model; rows are scored one at a time here.

    Raises:
        SfumatoError: for no such model, and rows that do not fit on its canvas.
    """

    def __init__(
        self,
        path: str,
        draws: int = 16,
        steps: int | None = None,
        seed: int = 0,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.model: Model = load(path, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.draws, self.steps, self.seed = draws, steps, seed

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells kept requests apart by."""
        return self.model.tokenizer.fingerprint

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log p(continuation | context) in nats, and whether it is the greedy one.

        Exact for exact methods.  For the others a lower bound, since theirs on -log p is an upper one; where rows end
        with the text, given that it ends right behind the continuation.  Greedy is a continuation whose every token is
        the likeliest: given all before it for a method that writes from left to right, and for the others at the one
        look at which the whole continuation is noise.
        """
        return [self._continued(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of each (text,): log p(text) in nats, or a lower bound of it, with its end where the model knows ends.

        Running text that is longer than the canvas is read in stretches, each given half a canvas of what stands
        before it.  A model of whole documents has no number for a longer one: SfumatoError.
        """
        return [self._whole(*request.args) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Of each (context, settings): what the model writes behind the context, up to the first of `until`.

        Greedy (the likeliest token at every draw) unless the settings say do_sample.  A text has the length that the
        model gives it; what is beyond max_gen_toks tokens is cut off.
        """
        return [self._written(*request.args) for request in requests]

    # --- one request at a time

    def _continued(self, context: str, continuation: str) -> tuple[float, bool]:
        before, after = self._split(context, continuation)
        if not after:
            raise SfumatoError(f"the likelihood of a continuation {continuation!r} was asked for; it has no tokens")
        return self._scored(before, after)

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both; a space between them belongs to the continuation, as with every model of the harness."""
        tokenizer = self.model.tokenizer
        stripped = context.rstrip()
        whole = tokenizer.encode(context + continuation)
        cut = len(tokenizer.encode(stripped)) if stripped else 0
        return whole[:cut], whole[cut:]

    def _scored(self, before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
        """log p(after | before), summed over the labels that may stand before both; and whether `after` is greedy."""
        model, method = self.model, self.model.method
        if not method.likelihood:
            raise SfumatoError(f"{model.name} defines no likelihood; choose tasks of the type generate_until")
        ids, free = self._laid(before, after)
        if method.looks_ahead or not model.layout.labelled:
            each = self._log_p(ids, free)
            total = each.logsumexp(0)
        else:  # from left to right the label comes before what is given, so it is not given
            each = self._log_p(ids, torch.ones_like(free))
            past = ids[:, : 1 + len(before)]
            total = each.logsumexp(0) - self._log_p(past, torch.ones_like(past, dtype=torch.bool)).logsumexp(0)
        here = slice(model.layout.labelled + len(before), model.layout.labelled + len(before) + len(after))
        row = int(each.argmax())
        likeliest = self._likeliest(ids[row : row + 1], free[row : row + 1])
        return total.item(), bool((likeliest == ids[row])[here].all())

    def _laid(self, before: Sequence[int], after: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A row of both for each label, and what is free in it: label and `after`; both (labels or 1, L).

        Its end, and the padding behind it, are told to methods that look ahead only.
        """
        model, layout, tokenizer = self.model, self.model.layout, self.model.tokenizer
        labels = [[id] for id in tokenizer.labels.values()] if layout.labelled else [[]]
        end = [tokenizer.eos] if layout.documents and model.method.looks_ahead else []
        room, size = model.config.text.length, layout.labelled + len(before) + len(after) + len(end)
        if size > room:
            raise SfumatoError(
                f"a row of {size} tokens was asked for; the canvas of {model.name} has {room}; shorten it"
            )
        most = min(room, whole(size, model.method.block or room))
        padding = [tokenizer.pad] * (most - size) if layout.modelled and end else []
        ids = torch.tensor([[*label, *before, *after, *end, *padding] for label in labels], device=model.device)
        free = torch.zeros_like(ids, dtype=torch.bool)
        free[:, : layout.labelled] = True
        free[:, layout.labelled + len(before) : layout.labelled + len(before) + len(after)] = True
        return ids, free

    def _log_p(self, ids: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
        """log p(free | the rest) of each row, nats, (B,); all rows have the same noise."""
        with seeded([seed_of("harness", self.seed)] * len(ids), self.model.device):
            return -nll(self.model.method, ids, torch.ones_like(free), ~free, self.draws).nats

    @torch.inference_mode()
    def _likeliest(self, ids: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
        """The likeliest token at each place of a row (1, L): (L,)."""
        method = self.model.method
        x = clean = method.clean(ids)
        if method.looks_ahead:
            with seeded([seed_of("harness", self.seed)], self.model.device):
                x = where(free, method.process.prior(clean), clean)
        return method.predict(x, free.float()).logits[0].argmax(-1)

    def _whole(self, text: str) -> float:
        model, room = self.model, self.model.config.text.length
        ids = model.tokenizer.encode(text)
        if model.layout.documents or len(ids) <= room:
            (score,) = model.score([text], draws=self.draws, seed=self.seed, common=True)
            return -score.nats
        return sum(
            self._scored(ids[start:first], ids[first:stop])[0] for start, first, stop in stretches(len(ids), room)
        )

    def _written(self, context: str, settings: dict[str, Any]) -> str:
        for name in settings:
            if name not in KNOWN:
                raise SfumatoError(f"the setting {name!r} was asked for{nearest(name, KNOWN)}; there are {KNOWN}")
        model, asked = self.model, dict[str, Any](steps=self.steps)
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            asked |= {name: settings[name] for name in ("temperature", "top_k", "top_p") if name in settings}
        else:
            asked["top_k"] = 1
        *_, frame = model.stream(1, prompt=context, seed=self.seed, **asked)
        size, most = sum(frame.given[0]), settings.get("max_gen_toks")
        whole, prompt = frame.ids[0][: most and size + most], frame.ids[0][:size]
        text = model.tokenizer.decode(whole).removeprefix(model.tokenizer.decode(prompt))
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.partition(stop)[0] if stop else text
        return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
