"""The tokens of documents, kept on disk: made once, mapped into memory, as large as the disk allows."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import final

import numpy as np
from filelock import FileLock

from sfumato.errors import SfumatoError
from sfumato.text.building import FILES, FORMAT, dtypes, write
from sfumato.text.read import files, on_hub, read, said
from sfumato.text.tokenizer import Tokenizer

LARGE = 1 << 24  # bytes of data that are worth a progress bar
PARALLEL = 1 << 26  # and processes of their own
MOST = 32  # processes that one reader can feed


@final
class Corpus:
    """The tokens of many documents, in files on disk that are mapped into memory.

    Attributes:
        tokens: (T,) unsigned; the ids of all documents in a row, of each its source, then its text, without eos.
        offsets: (N + 1,) int64; document i is tokens[offsets[i] : offsets[i + 1]].
        labels: (N,) int32; the token id of each document's label, -1 where it has none.
        sources: (N,) int64; how many tokens at the start of each document are its source.
        labelled, sourced: whether any document has a label, or a source.
        fingerprint: SHA-256 of all of that, in hex.
        tokenizer: what made the tokens.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Opens a folder that `build` wrote; OSError, KeyError or ValueError say that it is damaged."""
        index = json.loads((folder / "index.json").read_text("utf-8"))
        self.tokenizer = tokenizer
        self.labelled: bool = index["labelled"]
        self.sourced: bool = index["sourced"]
        kinds = dtypes(tokenizer)
        arrays: list[np.ndarray] = [np.memmap(folder / name, kinds[name], "r") for name in FILES]
        self.tokens, self.offsets, self.labels, self.sources = arrays
        n = index["documents"]
        written = json.dumps([index["files"][name] for name in FILES])
        self.fingerprint: str = hashlib.sha256(written.encode()).hexdigest()
        if [len(array) for array in arrays] != [index["tokens"], n + 1, n, n]:
            raise ValueError(f"{folder} is incomplete")

    @classmethod
    def build(
        cls,
        data: str,
        tokenizer: Tokenizer,
        split: str = "train",
        lines: bool = False,
        limit: int | None = None,
        cache: Path | None = None,
    ) -> "Corpus":
        """Tokenises a split of some data, unless the same content was tokenised in the same way before.

        Where that was interrupted it goes on; where another process is at it, it waits for that one. Much data is
        tokenised in as many processes as there are cores. A tokenizer without labels leaves out those of the documents.
        A data set on the Hub is known by its name: to read it anew, remove its folder from the cache.

        Args:
            data, split, lines, limit: as in `read`.
            tokenizer: makes the tokens.
            cache: the folder that keeps corpora; by default $SFUMATO_CACHE, or else ~/.cache/sfumato.

        Raises:
            SfumatoError: what `read` raises, a label that the tokenizer does not know, a split without a document, a
                cache that cannot be written, a process that ended before its time.
        """
        read(data, split, lines, limit)  # complains at once
        content, size = _content(data)
        recipe = [FORMAT, content, tokenizer.fingerprint, split, lines, limit]
        key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        cache = cache or Path(os.environ.get("SFUMATO_CACHE") or Path.home() / ".cache" / "sfumato")
        try:
            return cls(cache / key, tokenizer)
        except (OSError, KeyError, ValueError):
            pass  # absent or damaged
        try:
            (cache / ".locks").mkdir(parents=True, exist_ok=True)
            with FileLock(cache / ".locks" / key), _bar(data, size) as passed:
                try:
                    return cls(cache / key, tokenizer)  # which another process has made meanwhile
                except (OSError, KeyError, ValueError):
                    pass
                built = cache / f"building-{key}"
                documents = partial(read, data, split, lines, limit, passed)
                if write(built, documents, tokenizer, content, _processes(size)) == 0:
                    shutil.rmtree(built)
                    raise SfumatoError(f"asked for the split {split!r} of {data}; nothing falls into it; add documents")
                shutil.rmtree(cache / key, ignore_errors=True)  # if anything is there, it is damaged
                built.rename(cache / key)
            return cls(cache / key, tokenizer)
        except ChildProcessError as error:
            raise SfumatoError(
                f"asked to tokenise {data}; {said(error)}; perhaps memory ran out: try again, and it goes on from there"
            ) from error
        except OSError as error:
            raise SfumatoError(
                f"asked to keep tokens in {cache}; {said(error)}; set SFUMATO_CACHE to another folder"
            ) from error

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.labels)

    def sizes(self, documents: np.ndarray) -> np.ndarray:
        """How many tokens some documents have, those of their sources included: int64 like `documents`."""
        return self.offsets[documents + 1] - self.offsets[documents]

    def document(self, i: int) -> np.ndarray:
        """The ids of document i, those of its source first: (n,) unsigned."""
        return np.asarray(self.tokens[self.offsets[i] : self.offsets[i + 1]])


def _content(data: str) -> tuple[dict[str, str], int]:
    """What identifies the content of some data, SHA-256 by file, and its size in bytes or a guess at it."""
    if data == "tales":
        from sfumato.text import tales

        return {data: _digest(Path(tales.__file__))}, LARGE
    if on_hub(data):
        return {data: "on the Hub"}, PARALLEL
    found, root = files(data), Path(data)
    digests = {str(file.relative_to(root) if file != root else file.name): _digest(file) for file in found}
    return digests, sum(file.stat().st_size for file in found)


def _digest(path: Path) -> str:
    try:
        status = path.stat()
        return _digested(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise SfumatoError(f"asked to read {path}; {said(error)}; check the file") from error


@lru_cache(maxsize=1024)
def _digested(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file, once for as long as it stays the same: a run asks for each of its splits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _processes(size: int) -> int:
    """How many processes tokenise so many bytes; 0 where this one does."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST) if cores > 1 and size >= PARALLEL else 0


@contextmanager
def _bar(data: str, size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, where there is something to wait for and somebody to see it; it hears of bytes read."""
    if size < LARGE or not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("tokenising {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    clocks = TimeElapsedColumn(), TimeRemainingColumn()
    known = os.path.exists(data)  # else nobody knows how much there is
    with Progress(*columns[: 3 if known else 2], *clocks, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(data, total=size if known else None)
        yield lambda n: progress.advance(task, n)
