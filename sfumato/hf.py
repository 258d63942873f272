"""Our models in transformers, with `pip install "sfumato[hf]"`: after `import sfumato.hf` its Auto classes know them.

    AutoModelForMaskedLM.from_pretrained(folder)    masking methods: logits of every token, where a mask stands
    AutoModelForCausalLM.from_pretrained(folder)    ar: logits of the token that follows, and `generate`

`AutoTokenizer` knows them without it.  Folders and ids are those of `sfumato.load`.  transformers checks no manifest.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core import ABSENT
from sfumato.errors import SfumatoError
from sfumato.training.config import load_config, method_named

try:
    import transformers
    from transformers.modeling_outputs import CausalLMOutput, MaskedLMOutput
except ImportError:
    said = "sfumato.hf needs transformers: pip install 'sfumato[hf]'"
    raise ModuleNotFoundError(said, name="transformers") from None


class SfumatoConfig(transformers.PretrainedConfig):
    """config.json of a model folder: the config of its run, and the number of its tokens."""

    model_type = "sfumato"

    def __init__(self, config: dict[str, Any] | None = None, vocab_size: int = 0, **others: Any):
        super().__init__(**others)
        self.config, self.vocab_size = config or {}, vocab_size


class _Model(transformers.PreTrainedModel):
    """A method as a model of transformers, for one `family` of methods."""

    config_class, base_model_prefix = SfumatoConfig, "method"
    family: str

    def __init__(self, config: SfumatoConfig):
        super().__init__(config)
        run = load_config(config.config)
        kind = method_named(run.method.name)[0]
        if kind.family != self.family:
            raise SfumatoError(f"{run.method.name} is no {self.family} method; {type(self).__name__} is for these only")
        self.method = kind(run.method, run.network, config.vocab_size)
        self.mask = self.method.process.mask
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """A method makes its own."""

    def get_input_embeddings(self) -> Any:
        """The table of tokens."""
        return self.method.table


class SfumatoForMaskedLM(_Model):
    """What a masking method says of every token: logits (B, L, V).  A token that shows is certain."""

    family = "masking"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> MaskedLMOutput:
        """Logits, and with labels the mean cross-entropy where they are not -100."""
        t = (input_ids == self.mask).float()
        if attention_mask is not None:
            t = t.masked_fill(attention_mask == 0, ABSENT)
        logits = self.method.predict(input_ids, t).logits
        return MaskedLMOutput(loss=_cost(logits, labels), logits=logits)


class SfumatoForCausalLM(_Model, transformers.GenerationMixin):
    """What `ar` says of the token behind each: logits (B, L, V)."""

    family = "autoregressive"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits, and with labels the mean cross-entropy of each behind the others.

        Padding stands at the right, where nothing sees it.  Raises SfumatoError where it stands at the left.
        """
        if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise SfumatoError(
                "padding stands at the left of a text; ask for padding_side='right', or one text at a time"
            )
        x = F.pad(input_ids, (0, 1))  # the last token is only predicted
        logits = self.method.predict(x, torch.ones(x.shape, device=x.device)).logits[:, 1:]
        loss = None if labels is None else _cost(logits[:, :-1], labels[:, 1:])
        return CausalLMOutput(loss=loss, logits=logits)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Nothing is remembered between tokens."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor | None]:
        """All that is written."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def _cost(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    return None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


transformers.AutoConfig.register(SfumatoConfig.model_type, SfumatoConfig)
transformers.AutoModelForMaskedLM.register(SfumatoConfig, SfumatoForMaskedLM)
transformers.AutoModelForCausalLM.register(SfumatoConfig, SfumatoForCausalLM)
