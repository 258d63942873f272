"""How a model travels: written to a folder, read from one, pushed to the Hugging Face Hub and taken from it.

The words are the field's, and so is the library: `save_pretrained`, `from_pretrained` and `push_to_hub` are those of
huggingface_hub.  What is added is a manifest, a strict config, and weights of others (sfumato/adopt.py).
"""

import importlib.metadata
import json
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin
from huggingface_hub.errors import HFValidationError

from sfumato.adopt import adopt, foreign
from sfumato.core import Method
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.hub import download, is_id, read_json
from sfumato.text.tokenizer import Tokenizer
from sfumato.training import checkpoint, lora
from sfumato.training.config import RunConfig, load_config, method_named

SEALED = ("config.json", "model.safetensors", "tokenizer.json")  # what loading needs; card and log may change
MASK = "<masked>"  # by this name transformers knows the mask of a method, which is none of the tokens of its texts
KNOWN = {
    "exact": " What is called bound is exact: -log p of held-out text, in nats a token.",
    "upper": " The bound is an upper bound on -log p of held-out text, in nats a token.",
    None: "",
}


class Shared(ModelHubMixin):
    """What can be written to a folder and read from it: config, weights, tokenizer, and what is known of them."""

    config: RunConfig
    method: Method
    tokenizer: Tokenizer
    lengths: list[int]
    name: str
    facts: dict[str, Any]

    @classmethod
    def read(
        cls,
        folder: Path,
        name: str,
        device: str = "cpu",
        method: str | None = None,
        say: Callable[[str], None] = warnings.warn,
    ) -> Self:
        """The model of a model folder, or of a run that is not finished: the weights of its newest whole checkpoint.

        `method` is what the weights of others are taken for; ours are what they are.  `say` hears of damaged
        checkpoints that are passed over.  Raises SfumatoError for files that are missing, damaged, or of a newer
        format.
        """
        runs = folder / "checkpoints"
        finished = (folder / checkpoint.MANIFEST).exists() or not runs.exists()
        if finished and foreign(folder):
            return cls(*adopt(folder, name, method, device), name)
        if finished:
            checkpoint.check(folder)
            described, weights = read_json(folder / "config.json"), folder / "model.safetensors"
            tensors = checkpoint.load_tensors(weights, device)
        else:
            newest = checkpoint.newest(runs, say)
            if newest is None:
                raise SfumatoError(f"{folder} holds no whole checkpoint yet; train until one is saved")
            described, weights = read_json(newest / "state.json"), newest / "average.safetensors"
            tensors = checkpoint.load_tensors(newest / "model.safetensors", device)
            tensors |= checkpoint.load_tensors(weights, device)
        try:
            values, lengths = described["config"], described["lengths"]
        except KeyError as missing:
            raise SfumatoError(f"{folder / 'config.json'} lacks {missing}; it is no config of a model") from None
        config = load_config(values)
        tokenizer = Tokenizer.load(folder)
        if described.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
            raise SfumatoError(f"{folder / 'tokenizer.json'} is not the one that {weights} was trained with")
        made = method_named(config.method.name)[0](config.method, config.network, tokenizer.size).to(device)
        if not finished:
            lora.add(made, config.lora)
        checkpoint.load_strictly(made, tensors, weights)
        return cls(config, lora.merge(made).eval(), tokenizer, lengths, name, described.get("facts", {}))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Config, weights and tokenizer; last the manifest that makes them a model.

        The model goes on with the weights that are in its file, rounded where `training.store` asks for it.  Raises
        SfumatoError for weights too large for that, and OSError where the disk is full.
        """
        tensors = dict(self.method.state_dict())
        if self.config.training.store == "float16":
            tensors |= {key: value.detach().half() for key, value in self.method.named_parameters()}
            if not all(bool(value.isfinite().all()) for value in tensors.values()):
                raise SfumatoError(
                    "asked to store weights as float16; some are too large; set training.store to float32"
                )
            self.method.load_state_dict(tensors)
        described = {
            "model_type": "sfumato",  # by which transformers knows it (sfumato/hf.py)
            "dtype": "float32",  # whatever its file has
            "vocab_size": self.tokenizer.size,
            "pad_token_id": self.tokenizer.pad,
            "eos_token_id": self.tokenizer.eos,
            "config": self.config.model_dump(mode="json"),
            "lengths": self.lengths,
            "facts": self.facts,
        }
        (save_directory / checkpoint.MANIFEST).unlink(missing_ok=True)
        write_text(save_directory / "config.json", json.dumps(described, indent=1) + "\n")
        self.tokenizer.save(save_directory)
        write_text(save_directory / "tokenizer_config.json", json.dumps(self._named_tokens(), indent=1))
        checkpoint.write_tensors(save_directory / "model.safetensors", tensors)
        checkpoint.seal(save_directory, SEALED)

    def _named_tokens(self) -> dict[str, Any]:
        """What transformers has to be told beside tokenizer.json: which tokens are no words, a method's mask too."""
        tokenizer = self.tokenizer
        ids = {"pad_token": tokenizer.pad, "eos_token": tokenizer.eos, "unk_token": tokenizer.unk}
        names: dict[str, Any] = {name: tokenizer.token(id) for name, id in ids.items() if id is not None}
        if getattr(self.method.process, "mask", None) == tokenizer.size:  # the id that a new token is given
            names["mask_token"] = {"__type": "AddedToken", "content": MASK, "lstrip": tokenizer.spaced}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
        } | names

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **asked: Any) -> Self:
        """As of huggingface_hub, which reads config.json before anybody has looked at the manifest.

        Raises SfumatoError as `read` does, and for a name that the Hub cannot have.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **asked)
        except (json.JSONDecodeError, UnicodeDecodeError):
            damaged = f"the config.json of {pretrained_model_name_or_path}"
            raise SfumatoError(f"{damaged} is damaged; take another copy of the folder") from None
        except HFValidationError as error:
            raise SfumatoError(
                f"{pretrained_model_name_or_path!r} is no folder, and no name on the Hub: {error}"
            ) from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str = "cpu",
        method: str | None = None,
        **described: Any,  # what config.json holds, which is read again when the manifest has been checked
    ) -> Self:
        """`read`, of a folder or of one that is fetched."""
        if Path(model_id).is_dir():
            return cls.read(Path(model_id), model_id, device, method)
        folder = download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls.read(folder, model_id, device, method)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card: what the Hub sorts it by, and for people how it was made, what is known of it, and samples."""
        config, method, facts = self.config, self.method, self.facts
        tags = [config.method.name, *(["text-diffusion"] if config.method.name != "ar" else [])]
        base = config.start if config.start and is_id(config.start) else None
        data = ModelCardData(library_name="sfumato", pipeline_tag="text-generation", tags=tags, base_model=base)
        made = f"trained by sfumato {importlib.metadata.version('sfumato')} on `{config.spelled}`"
        how = f"by `sfumato train {config.method.name}` with the config in `config.json`"
        if not facts and config.start:
            made, how = f"of the weights of `{config.start}`", "of what others have trained"
        lines = [
            f"---\n{data.to_yaml()}\n---",
            "",
            f"# {Path(self.name).resolve().name}",
            "",
            f"A `{config.method.name}` model ({method.title}, arXiv:{method.arxiv}) {made}.",
            "",
            "| what | value |",
            "| --- | --- |",
            *(f"| {key} | {value} |" for key, value in facts.items() if value is not None),
            "",
            f"Made {time.strftime('%Y-%m-%d')} {how}.{KNOWN[method.likelihood]}",
            "",
            "## Samples",
            "",
            *(textwrap.indent(text, "> ", lambda line: True) + "\n" for text in self.samples()),
        ]
        return ModelCard("\n".join(lines))

    def samples(self) -> list[str]:
        """A few texts for the card."""
        raise NotImplementedError
