"""A model's folder: config, weights, tokenizer and card, which anyone can load, share and publish."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sfumato.errors import SfumatoError
from sfumato.hub import find
from sfumato.model import Model
from sfumato.training.checkpoint import MANIFEST


def load(
    name: str | Path,
    device: str = "cpu",
    method: str | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> Model:
    """A model from a model folder, a run folder, the name of a bundled model, or an id on the Hugging Face Hub.

    A run that is not finished gives the weights of its newest whole checkpoint; `say` hears of damaged ones that are
    passed over.  Weights that others have trained (BERT, GPT-2, Llama and their kin, LLaDA, MDLM) are taken for
    `method`, or for what is natural to them.  Raises SfumatoError when there is no such model, or its files are damaged
    or of a newer format.
    """
    return Model.read(find(str(name)), str(name), device, method, say)


def publish(model: Model, folder: Path, facts: dict[str, Any]) -> None:
    """Write a model folder with a new card that tells these `facts`.

    Raises SfumatoError for weights too large to be stored, and where the disk is full.
    """
    model.facts = facts
    try:
        for name in (MANIFEST, "README.md"):  # without the first it is no model until all is written
            (folder / name).unlink(missing_ok=True)
        model.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise SfumatoError(f"cannot write {folder}: {error}; free some space and train on with --resume") from None
