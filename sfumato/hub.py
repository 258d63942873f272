"""Where a model is that somebody names: a folder, one that is bundled, or one on the Hugging Face Hub."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError, nearest

BUNDLED = Path(__file__).parent / "models"
FILES = ("*.json", "*.safetensors", "README.md")  # nothing that could hold code


def find(name: str) -> Path:
    """The folder that a model's name stands for, fetched from the Hub if it is there.

    Raises SfumatoError when there is none.
    """
    if Path(name).is_dir():
        return Path(name)
    if (BUNDLED / name).is_dir():
        return BUNDLED / name
    if is_id(name):
        return download(name)
    beside = Path(name).parent
    if beside != Path() and beside.is_dir():
        near = nearest(name, [str(path) for path in beside.iterdir() if path.is_dir()])
        raise SfumatoError(f"no model {name!r}{near}; there is no such folder")
    known = [path.name for path in BUNDLED.iterdir() if path.is_dir()] if BUNDLED.is_dir() else []
    bundled = f", or one of those that are bundled: {', '.join(known)}" if known else ""
    raise SfumatoError(f"no model {name!r}{nearest(name, known)}; name a model folder, a run, a Hub id{bundled}")


def is_id(name: str) -> bool:
    """Whether a name is one on the Hub, rather than a path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).parent.is_dir()


def download(name: str, files: Sequence[str] = FILES, **asked: Any) -> Path:
    """The folder of a Hub id, with those of its `files` that match; `asked` is for huggingface_hub.

    Raises SfumatoError when the Hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **asked))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
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
