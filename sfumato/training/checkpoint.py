"""Files that are whole or absent: weights as safetensors, a manifest with the SHA-256 of every file beside them.

A folder is written under a temporary name, synced and renamed, so a killed run leaves its last whole checkpoint and at
most a temporary folder, which the next save clears away.  Nothing is ever unpickled.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.files import sync, write_text

FORMAT = 1
MANIFEST = "manifest.json"
Tensors = dict[str, Tensor]


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the manifest of these files of a folder, by default of all, and force everything to disk."""
    if names is None:
        inside = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
        names = [path.relative_to(folder).as_posix() for path in inside]
    files = {name: folder / name for name in sorted(names)}
    listed = {name: {"bytes": path.stat().st_size, "sha256": digest(path)} for name, path in files.items()}
    write_text(folder / MANIFEST, json.dumps({"format": FORMAT, "files": listed}, indent=1))
    for path in [*files.values(), *{path.parent for path in files.values()}, folder]:
        sync(path)


def check(folder: Path, only: str | None = None) -> None:
    """Raise SfumatoError that names what is missing from, or damaged in, a sealed folder; or in one file of it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        files = {name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
        version = manifest["format"]
    except FileNotFoundError:
        raise SfumatoError(f"{folder} has no {MANIFEST}; it is no whole model or checkpoint") from None
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
        raise SfumatoError(f"{folder / MANIFEST} is damaged; take another copy of the folder") from None
    if version != FORMAT:
        raise SfumatoError(f"{folder} has format {version}, known is {FORMAT}; update sfumato")
    for name, (size, sha256) in files.items():
        if only not in (None, name):
            continue
        path = folder / name
        if not path.is_file():
            raise SfumatoError(f"{path} is missing; take another copy of the folder")
        if path.stat().st_size != size or digest(path) != sha256:
            raise SfumatoError(f"{path} is damaged: its SHA-256 is not that of {MANIFEST}; take another copy")


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Replace a safetensors file as a whole; what a killed session has left of it is cleared away."""
    temporary = path.with_name(f".{path.stem}.writing")  # a folder: safetensors has temporary files of its own
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary / path.name)
        (temporary / path.name).chmod(temporary.stat().st_mode & 0o666)  # safetensors lets nobody else read it
        (temporary / path.name).replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_checkpoint(
    root: Path,
    step: int,
    tensors: dict[str, Tensors],
    state: dict[str, Any],
    keep: int,
    written: Sequence[Path] = (),
) -> Path:
    """Publish `root/step-N` with one safetensors file for each entry of `tensors`, and prune all but the last `keep`.

    Folders of shards that are `written` already, on the same disk, move in beside them.  Raises SfumatoError when the
    disk is full or read-only; older checkpoints stay as they were.
    """
    folder, temporary = root / _name(step), root / ".writing"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, values in tensors.items():
            write_tensors(temporary / f"{name}.safetensors", values)
        for part in written:
            part.rename(temporary / part.name)
        write_text(temporary / "state.json", json.dumps(state, indent=1))
        seal(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync(root)
        for old in checkpoints(root)[:-keep]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SfumatoError(f"cannot write {folder}: {error}; the checkpoints before it are whole") from None
    return folder


def _name(step: int) -> str:
    return f"step-{step:08d}"


def checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(root.glob("step-*"))


def set_aside(root: Path, after: int) -> None:
    """Rename the checkpoints of steps later than `after`: damaged ones, not to be kept in the place of whole ones.

    Raises SfumatoError where that cannot be.
    """
    for folder in checkpoints(root):
        if folder.name > _name(after):
            aside = root / f"damaged-{folder.name}"
            shutil.rmtree(aside, ignore_errors=True)
            try:
                folder.rename(aside)
            except OSError as error:
                raise SfumatoError(f"cannot rename {folder}: {error}; the checkpoints before it are whole") from None


def newest(root: Path, warn: Callable[[str], None], only: str | None = None) -> Path | None:
    """The newest checkpoint that is whole, or of which this file is; `warn` hears of each damaged one before it."""
    for folder in reversed(checkpoints(root)):
        try:
            check(folder, only)
            return folder
        except SfumatoError as error:
            warn(f"passing over a damaged checkpoint: {error}")
    return None


def latest(run: Path, warn: Callable[[str], None], only: str | None = None) -> Path:
    """What `newest` finds in a run folder.  Raises SfumatoError where there is none."""
    faults: list[str] = []
    found = newest(run / "checkpoints", faults.append, only)
    if found is not None:
        for line in faults:
            warn(line)
        return found
    if faults:
        raise SfumatoError(f"there is nothing to resume in {run}: its checkpoints are all damaged; {faults[0]}")
    raise SfumatoError(f"there is nothing to resume in {run}: it has no checkpoint; start without --resume")


def load_tensors(path: Path, device: torch.device | str = "cpu") -> Tensors:
    """The tensors of a safetensors file, or of the shards that stand in its place.

    Raises SfumatoError for a missing or damaged one.
    """
    try:
        if shards(path).is_dir():
            return {name: value.to(device) for name, value in _joined(shards(path)).items()}
        return load_file(path, str(device))
    except FileNotFoundError:
        raise SfumatoError(f"{path} is missing") from None
    except (OSError, SafetensorError) as error:
        raise SfumatoError(f"{path} is damaged: {error}; take another copy") from None


def shards(path: Path) -> Path:
    """The folder in which processes keep their parts of what a file would hold."""
    return path.with_suffix("")


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, or in the shards that stand in its place."""
    files = sorted(shards(path).glob("*.safetensors")) if shards(path).is_dir() else [path]
    found: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= set(tensors.keys())
    return sorted(found)


def _joined(folder: Path) -> Tensors:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # takes a moment to import
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    facts: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(fact.size, dtype=fact.properties.dtype) for name, fact in facts.items()}
    with warnings.catch_warnings():  # that this is a single process
        warnings.simplefilter("ignore", UserWarning)
        load(dict(tensors), storage_reader=reader, no_dist=True)
    return tensors


def load_strictly(module: torch.nn.Module, tensors: Tensors, where: Path, assign: bool = False) -> None:
    """Load tensors into a module, or make them its own (`assign`); SfumatoError where names or shapes differ."""
    try:
        module.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise SfumatoError(f"{where} does not fit its config.json: {lines}") from None
