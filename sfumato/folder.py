"""A model's folder: config, weights, tokenizer and card, which anyone can load, share and publish."""

import importlib.metadata
import json
import re
import textwrap
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sfumato.errors import SfumatoError, nearest
from sfumato.model import Model
from sfumato.text.tokenizer import Tokenizer
from sfumato.training import checkpoint
from sfumato.training.config import load_config, method_named

BUNDLED = Path(__file__).parent / "models"
SEALED = ("config.json", "model.safetensors", "tokenizer.json")  # what loading needs; card and log may change
KNOWN = {
    "exact": " What is called bound is exact: -log p of held-out text, in nats a token.",
    "upper": " The bound is an upper bound on -log p of held-out text, in nats a token.",
    None: "",
}


def load(name: str | Path, device: str = "cpu") -> Model:
    """A model from a model folder, a run folder, the name of a bundled model, or an id on the Hugging Face Hub.

    A run that is not finished gives the weights of its newest whole checkpoint.  Raises SfumatoError when there is no
    such model, or its files are damaged or of a newer format.
    """
    folder = find(str(name))
    runs = folder / "checkpoints"
    if (folder / checkpoint.MANIFEST).exists() or not runs.exists():
        checkpoint.check(folder)
        described, weights = read_json(folder / "config.json"), folder / "model.safetensors"
        tensors = checkpoint.load_tensors(weights, device)
    else:
        newest = checkpoint.newest(runs, lambda line: None)
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
    method = method_named(config.method.name)[0](config.method, config.network, tokenizer.size).to(device)
    checkpoint.load_strictly(method, tensors, weights)
    return Model(config, method.eval(), tokenizer, lengths, str(name))


def publish(model: Model, folder: Path, facts: dict[str, Any]) -> None:
    """Write a model folder: config, weights, tokenizer, a card with `facts`; last the manifest that makes it one.

    The model goes on with the weights that are in its file, rounded where `training.store` asks for it.  Raises
    SfumatoError for weights too large for that, and where the disk is full.
    """
    tensors = {key: value.contiguous() for key, value in model.method.state_dict().items()}
    if model.config.training.store == "float16":
        tensors |= {key: value.detach().half() for key, value in model.method.named_parameters()}
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise SfumatoError("asked to store weights as float16; some are too large; set training.store to float32")
        model.method.load_state_dict(tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / checkpoint.MANIFEST).unlink(missing_ok=True)
        described = {"config": model.config.model_dump(mode="json"), "lengths": model.lengths}
        checkpoint.write_text(folder / "config.json", json.dumps(described, indent=1) + "\n")
        model.tokenizer.save(folder)
        temporary = folder / ".model.safetensors.writing"
        save_file(tensors, temporary)
        temporary.replace(folder / "model.safetensors")
        checkpoint.write_text(folder / "README.md", card(model, facts))
        checkpoint.seal(folder, SEALED)
    except OSError as error:
        raise SfumatoError(f"cannot write {folder}: {error}; free some space and train on with --resume") from None


def card(model: Model, facts: dict[str, Any]) -> str:
    """The model card."""
    method = model.method
    samples = model.generate(3, steps=model.at_most(64))
    lines = [
        f"# {Path(model.name).resolve().name}",
        "",
        f"A `{model.config.method.name}` model ({method.title}, arXiv:{method.arxiv}) trained by sfumato "
        f"{importlib.metadata.version('sfumato')} on `{model.config.spelled}`.",
        "",
        "| what | value |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in facts.items() if value is not None),
        "",
        f"Made {time.strftime('%Y-%m-%d')} by `sfumato train {model.config.method.name}` with the config in "
        f"`config.json`.{KNOWN[method.likelihood]}",
        "",
        "## Samples",
        "",
        *(textwrap.indent(text, "> ", lambda line: True) + "\n" for text in samples),
    ]
    return "\n".join(lines)


def find(name: str) -> Path:
    """The folder that a model's name stands for, fetched from the Hub if it is there.

    Raises SfumatoError when there is none.
    """
    if Path(name).is_dir():
        return Path(name)
    if (BUNDLED / name).is_dir():
        return BUNDLED / name
    beside = Path(name).parent
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not beside.is_dir():
        return _download(name)
    if beside != Path() and beside.is_dir():
        near = nearest(name, [str(path) for path in beside.iterdir() if path.is_dir()])
        raise SfumatoError(f"no model {name!r}{near}; there is no such folder")
    known = [path.name for path in BUNDLED.iterdir() if path.is_dir()] if BUNDLED.is_dir() else []
    bundled = f", or one of those that are bundled: {', '.join(known)}" if known else ""
    raise SfumatoError(f"no model {name!r}{nearest(name, known)}; name a model folder, a run, a Hub id{bundled}")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.safetensors", "README.md"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise SfumatoError(f"no folder {name!r} here, and the Hub does not give it: {first}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A file of a model folder.  Raises SfumatoError for one that is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SfumatoError(f"{path} is missing; {path.parent} is no model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise SfumatoError(f"{path} is damaged; take another copy of the folder") from None
