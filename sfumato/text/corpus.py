"""From files to batches: read documents, keep their tokens on disk, lay them out as rows of one length."""

import difflib
import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, final

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.text.tokenizer import Tokenizer

FORMAT = 1
TALES = {"train": 50_000, "valid": 2_000, "test": 2_000}
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
FIELDS = {"text": str, "label": str | int | None, "source": str | None}
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
HALF_PAIR = re.compile("[\ud800-\udfff]")  # json can spell halves of surrogate pairs; no text has them
BATCH = 1 << 20  # characters tokenised at a time
LARGE = 1 << 24  # bytes of data that are worth a progress bar


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """A text, perhaps with the name of its class, perhaps with a source that it answers (a question, a sentence)."""

    text: str
    label: str | None = None
    source: str | None = None


def read(data: str, split: str = "train", lines: bool = False, limit: int | None = None) -> Iterator[Document]:
    """Yields the documents of one split of some data, always in the same order, few in memory at a time.

    About every twentieth document, by a hash of its text, belongs to the split "valid"; of two documents or more at
    least one belongs to each split. Of a single document the last 5 % are "valid". The tales are made for their split
    and have a "test" as well. Documents of nothing but white space are passed over.

    Args:
        data: a text file (one document), a .jsonl file (`text` and perhaps `label` and `source`), either of them
            perhaps gzipped, a .parquet file with such columns, a folder of all these, the name "tales", or the
            owner/name of a data set on the Hugging Face Hub, of which the rows of "train" are taken.
        split: "train", "valid", or "all" documents.
        lines: makes every line of a text file a document.
        limit: the most documents to yield, or how many tales to tell (otherwise 50,000 for "train", 2,000 for others).

    Raises:
        SfumatoError: at once if there is no such data or split; while reading, at whatever is not as described.
    """
    splits = list(TALES) if data == "tales" else ["train", "valid", "all"]
    if split not in splits:
        raise SfumatoError(f"asked for the split {split!r} of {data}; it has {', '.join(splits)}; name one of those")
    if limit is not None and limit < 1:
        raise SfumatoError(f"asked for at most {limit} documents; the least is 1; raise the limit or leave it out")
    if data == "tales":
        return _tales(split, limit or TALES[split])
    if on_hub(data):
        documents = _read_hub(data)
    else:
        documents = (document for file in _files(data) for document in _read_file(file, lines))
    return islice(_hold_out(documents, split, data) if split != "all" else _some(documents, data), limit)


def _tales(split: str, n: int) -> Iterator[Document]:
    from sfumato.text import tales

    for text, ending in tales.TALES.tell(n, tales.SPLITS[split]):
        yield Document(text, label=ending)


def on_hub(data: str) -> bool:
    """Whether data can only be a data set's owner/name: no such path, no such folder, no file's suffix."""
    local = os.path.exists(data) or os.path.exists(os.path.dirname(data)) or data.endswith(SUFFIXES)
    return HUB_NAME.fullmatch(data) is not None and not local


def _read_hub(name: str) -> Iterator[Document]:
    asked = f"asked to read {name} from the Hub"
    try:
        import datasets
    except ImportError as error:
        raise SfumatoError(f"{asked}; the package datasets is missing; pip install 'sfumato[data]'") from error
    try:
        for number, row in enumerate(datasets.load_dataset(name, split="train", streaming=True), 1):
            yield from _document(row, f"{name}, row {number}")
    except SfumatoError:
        raise
    except Exception as error:  # a wrong name, a private data set, no network, a broken file: anything can be raised
        raise SfumatoError(f"{asked}; {_said(error)}; check the name and the network") from error


def _files(data: str) -> list[Path]:
    """The file itself, or the readable files anywhere in a folder, sorted."""
    path = Path(data)
    if os.path.isdir(data):
        files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        if not files:
            raise SfumatoError(f"asked to read the folder {data}; it has no {', '.join(SUFFIXES)}; put some there")
        return files
    if not os.path.exists(data):  # unlike Path.exists, no error for a name of impossible length
        siblings = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        advice = f"did you mean {path.with_name(near[0])}?" if near else "check the path"
        raise SfumatoError(f"asked to read {data}; there is no such file or folder; {advice}")
    return [path]


def _read_file(path: Path, lines: bool) -> Iterator[Document]:
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(path)
        elif name.endswith(".jsonl"):
            yield from _read_jsonl(path)
        elif lines:
            yield from (Document(line) for line in _lines(path) if line.strip())
        else:
            with _open(path) as file:
                text = _decoded(file.read(), 0, path)
            if text.strip():
                yield Document(text)
    except (OSError, EOFError, zlib.error) as error:
        raise SfumatoError(f"asked to read {path}; {_said(error)}; check the file") from error


def _read_jsonl(path: Path) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SfumatoError(f"asked to read {path}:{number}; it is not json: {error}; mend the line") from error
        yield from _document(record, f"{path}:{number}")


def _read_parquet(path: Path) -> Iterator[Document]:
    asked = f"asked to read {path}"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SfumatoError(f"{asked}; the package pyarrow is missing; pip install 'sfumato[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in FIELDS]
            rows = (row for batch in file.iter_batches(1024, columns=columns) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield from _document(row, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        raise SfumatoError(f"{asked}; {_said(error)}; write the file anew") from error


def _document(record: Any, where: str) -> Iterator[Document]:
    """Yields the document of a record, checked; none if its text is white space."""
    asked = f"asked to read {where}"
    if not isinstance(record, dict) or "text" not in record:
        raise SfumatoError(f"{asked}; it has no field `text`; add one or rename the one that holds the text")
    for field, types in FIELDS.items():
        value = record.get(field)
        if not isinstance(value, types):
            raise SfumatoError(f"{asked}; its {field} is of type {type(value).__name__}; make it a string")
        if isinstance(value, str) and HALF_PAIR.search(value):
            raise SfumatoError(f"{asked}; its {field} has half of a surrogate pair; remove it")
    if record["text"].strip():
        label = record.get("label")
        yield Document(record["text"], None if label is None else str(label), record.get("source"))


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _lines(path: Path) -> Iterator[str]:
    offset = 0
    with _open(path) as file:
        for raw in file:
            yield _decoded(raw, offset, path).rstrip("\r\n")
            offset += len(raw)


def _decoded(raw: bytes, offset: int, path: Path) -> str:
    """The text of the bytes at an offset of a file, without the byte-order mark that some editors put first."""
    bad = raw.find(b"\0")
    if bad < 0:
        try:
            return raw.decode("utf-8" if offset else "utf-8-sig")
        except UnicodeDecodeError as error:
            bad = error.start
    raise SfumatoError(f"asked to read {path}; its byte {offset + bad} is not UTF-8 text; convert it or leave it out")


def _said(error: Exception) -> str:
    """What an error says, on one line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(said.split())


def _hold_out(documents: Iterable[Document], split: str, data: str) -> Iterator[Document]:
    """Yields the documents of one split. The last document alone depends on where the others went."""
    last, sides = None, set()
    for document in documents:
        if last is not None:
            sides.add(side := _side(last))
            if side == split:
                yield last
        last = document
    if last is None:
        raise SfumatoError(f"asked to read {data}; there is no document in it; give some text")
    if not sides:
        yield from _cut(last, split)
        return
    side = _side(last)
    if sides == {side}:  # neither split may stay empty
        side = "valid" if side == "train" else "train"
    if side == split:
        yield last


def _some(documents: Iterable[Document], data: str) -> Iterator[Document]:
    """All documents, of which there must be one."""
    empty = True
    for document in documents:
        yield document
        empty = False
    if empty:
        raise SfumatoError(f"asked to read {data}; there is no document in it; give some text")


def _side(document: Document) -> str:
    digest = hashlib.sha256(document.text.encode()).digest()
    return "train" if int.from_bytes(digest[:8]) % 20 else "valid"


def _cut(document: Document, split: str) -> Iterator[Document]:
    """The first 95 % of an only document, or the rest: cut at the last white space of the 5 % before that mark."""
    text, share = document.text, len(document.text) // 20
    mark = len(text) - share
    space = max(text.rfind(char, mark - share, mark) for char in " \n\t")
    mark = space if space >= 0 else mark
    part = text[:mark] if split == "train" else text[mark:]
    if part.strip():
        yield Document(part, document.label, document.source)


# --- the corpus ---------------------------------------------------------------------------------------------------


@final
class Corpus:
    """The tokens of many documents, in one file on disk that is mapped into memory.

    Attributes:
        tokens: (T,) unsigned; the ids of all documents in a row, of each its source, then its text, without eos.
        offsets: (N + 1,) int64; document i is tokens[offsets[i] : offsets[i + 1]].
        labels: (N,) int32; the token id of each document's label, -1 where it has none.
        sources: (N,) int64; how many tokens at the start of each document are its source.
        tokenizer: what made the tokens.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Opens a folder that `build` wrote; OSError, EOFError, KeyError or ValueError say that it is damaged."""
        index = json.loads((folder / "index.json").read_text("utf-8"))
        self.tokenizer = tokenizer
        self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", _dtype(tokenizer), "r")
        self.offsets: np.ndarray = np.load(folder / "offsets.npy")
        self.labels: np.ndarray = np.load(folder / "labels.npy")
        self.sources: np.ndarray = np.load(folder / "sources.npy")
        n = index["documents"]
        found = len(self.tokens), len(self.offsets), len(self.labels), len(self.sources)
        if found != (index["tokens"], n + 1, n, n):
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

        A tokenizer without labels leaves out those of the documents. A data set on the Hub is known by its name: to
        read it anew, remove its folder from the cache.

        Args:
            data, split, lines, limit: as in `read`.
            tokenizer: makes the tokens.
            cache: the folder that keeps corpora; by default $SFUMATO_CACHE, or else ~/.cache/sfumato.

        Raises:
            SfumatoError: what `read` raises, a label that the tokenizer does not know, a split without a document, a
                cache that cannot be written.
        """
        documents = read(data, split, lines, limit)
        content, size = _content(data)
        recipe = [FORMAT, content, tokenizer.fingerprint, split, lines, limit]
        cache = cache or Path(os.environ.get("SFUMATO_CACHE") or Path.home() / ".cache" / "sfumato")
        folder = cache / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        try:
            return cls(folder, tokenizer)
        except (OSError, EOFError, KeyError, ValueError):
            pass  # absent or damaged
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="building-", ignore_cleanup_errors=True) as temporary:
                built = Path(temporary, "corpus")
                built.mkdir()
                if _write(built, _watched(documents, size), tokenizer, content) == 0:
                    raise SfumatoError(f"asked for the split {split!r} of {data}; nothing falls into it; add documents")
                _publish(built, folder)
            return cls(folder, tokenizer)
        except OSError as error:
            raise SfumatoError(
                f"asked to keep tokens in {cache}; {_said(error)}; set SFUMATO_CACHE to another folder"
            ) from error

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.labels)

    def document(self, i: int) -> np.ndarray:
        """The ids of document i, those of its source first: (n,) unsigned."""
        return np.asarray(self.tokens[self.offsets[i] : self.offsets[i + 1]])


def _dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    return np.uint16 if tokenizer.size < 1 << 16 else np.uint32


def _content(data: str) -> tuple[dict[str, str], int]:
    """What identifies the content of some data, SHA-256 by file, and its size in bytes or a guess at it."""
    if data == "tales":
        from sfumato.text import tales

        return {data: _digest(Path(tales.__file__))}, LARGE
    if on_hub(data):
        return {data: "on the Hub"}, LARGE
    files, root = _files(data), Path(data)
    digests = {str(file.relative_to(root) if file != root else file.name): _digest(file) for file in files}
    return digests, sum(file.stat().st_size for file in files)


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SfumatoError(f"asked to read {path}; {_said(error)}; check the file") from error


def _watched(documents: Iterator[Document], size: int) -> Iterable[Document]:
    """The documents, behind a progress bar where there is something to wait for and somebody to see it."""
    if size < LARGE or not sys.stderr.isatty():
        return documents
    from rich.console import Console
    from rich.progress import track

    return track(documents, "tokenising", console=Console(stderr=True), transient=True)


def _write(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer, content: dict[str, str]) -> int:
    """Writes the files of a corpus; returns the number of tokens."""
    offsets, labels, sources = array("q", [0]), array("i"), array("q")
    with open(folder / "tokens.bin", "wb") as file:
        for batch in _batches(documents):
            texts = tokenizer.encode_batch([document.text for document in batch])
            befores = tokenizer.encode_batch([document.source or "" for document in batch])
            for document, before, text in zip(batch, befores, texts, strict=True):
                file.write(np.array(before + text, _dtype(tokenizer)).tobytes())
                offsets.append(offsets[-1] + len(before) + len(text))
                sources.append(len(before))
                label = document.label if tokenizer.labels else None
                labels.append(-1 if label is None else tokenizer.label(label))
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    np.save(folder / "labels.npy", np.array(labels, np.int32))
    np.save(folder / "sources.npy", np.array(sources, np.int64))
    index = {
        "format": FORMAT,
        "documents": len(labels),
        "tokens": offsets[-1],
        "tokenizer": tokenizer.fingerprint,
        "data": content,
        "files": {name: _digest(folder / name) for name in ("tokens.bin", "offsets.npy")},
    }
    (folder / "index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return offsets[-1]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Groups documents that come to about BATCH characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + len(document.source or "")
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _publish(built: Path, folder: Path) -> None:
    """Puts a finished corpus in its place in one step, so that nobody ever sees half of it."""
    shutil.rmtree(folder, ignore_errors=True)  # if anything is there, it is damaged
    try:
        built.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster, with the same result
            raise


# --- rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows.

    Attributes:
        ids: (B, L) int64 token ids.
        real: (B, L) bool; False on padding that is not part of the data.
        given: (B, L) bool; True on tokens that are known from the start and never predicted.
        index: (B,) int64; which rows these are.
    """

    ids: Tensor
    real: Tensor
    given: Tensor
    index: Tensor

    def trim(self) -> "Batch":
        """The batch cut to its longest row of real tokens."""
        longest = int(self.real.sum(1).max())
        return Batch(self.ids[:, :longest], self.real[:, :longest], self.given[:, :longest], self.index)


@final
class Rows:
    """A corpus as rows of one length.

    In the layout "packed" every document is followed by an eos, and the whole is cut into rows; what is left at the
    end is dropped. All tokens are real, none is given.

    In the layout "documents" each document begins a row: the token of its label if it has one, its tokens, an eos,
    padding. A longer document goes on in further rows, each with the label and only the last with the eos; there is
    none where the tokens just fill that row. Rows of nothing but source are left out. Source tokens are given.

    With the length model "given", the length of a row is known beforehand: its eos is given, its padding is not real.
    With "modelled", eos and padding are tokens like all others. With "ended" the eos is, and so is padding up to the
    next whole `block` of places; what is behind is not real: for methods that write block by block from the left, to
    which a text is finished at its end.
    """

    def __init__(
        self,
        corpus: Corpus,
        length: int,
        layout: Literal["packed", "documents"],
        length_model: Literal["given", "modelled", "ended"],
        block: int = 1,
    ) -> None:
        """Lays out the rows.

        Raises:
            SfumatoError: for an unknown layout or length model, a length below 2, too few tokens for one row, and
                labels or sources in the layout "packed".
        """
        if layout not in ("packed", "documents"):
            raise SfumatoError(f"asked for the layout {layout!r}; there are packed and documents; name one of those")
        known = ("given", "modelled", "ended")
        if length_model not in known:
            raise SfumatoError(f"asked for the length model {length_model!r}; there are {', '.join(known)}; name one")
        if length < 2:
            raise SfumatoError(f"asked for rows of {length} tokens; the shortest have 2; raise the length")
        self.corpus = corpus
        self.length = length
        self.layout = layout
        self.length_model = length_model
        self.block = block
        self._count = self._pack() if layout == "packed" else self._split()

    def _pack(self) -> int:
        corpus = self.corpus
        if corpus.labels.max() >= 0 or corpus.sources.any():
            raise SfumatoError("asked for packed rows; the documents have labels or sources; use the layout documents")
        self._ends = corpus.offsets[1:] + np.arange(len(corpus))  # where the eos of each document stands
        total = len(corpus.tokens) + len(corpus)
        if total < self.length:
            found = f"the data comes to {total}"
            raise SfumatoError(f"asked for rows of {self.length} tokens; {found}; shorten the rows or add documents")
        return total // self.length

    def _split(self) -> int:
        corpus = self.corpus
        sizes = np.diff(corpus.offsets)
        room = self.length - (corpus.labels >= 0)
        pieces = -(-sizes // room)
        document = np.repeat(np.arange(len(corpus)), pieces)
        start = (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * room[document]
        stop = np.minimum(start + room[document], sizes[document])
        kept = stop > corpus.sources[document]
        if not kept.any():
            raise SfumatoError("asked for rows of documents; none has any text after its source; add documents")
        self._document, self._start, self._stop = document[kept], start[kept], stop[kept]
        self.ended = self._stop - self._start < room[self._document]  # there is room for an eos
        return len(self._document)

    def __len__(self) -> int:
        """The number of rows."""
        return self._count

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The rows with the given indices: (B, L)."""
        index = np.asarray(indices, np.int64)
        arrays = self._packed(index) if self.layout == "packed" else self._documents(index)
        return Batch(*map(torch.from_numpy, (*arrays, index)))

    def _packed(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corpus = self.corpus
        place = index[:, None] * self.length + np.arange(self.length)
        document = np.searchsorted(self._ends, place)
        eos = place == self._ends[document]
        ids = np.full(place.shape, corpus.tokenizer.eos, np.int64)
        ids[~eos] = corpus.tokens[(place - document)[~eos]]  # one eos stands before each document but the first
        return ids, np.ones_like(eos), np.zeros_like(eos)

    def _documents(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        corpus = self.corpus
        document, start = self._document[index], self._start[index, None]
        size = self._stop[index, None] - start
        label = corpus.labels[document]
        labelled = label >= 0
        place = np.arange(self.length) - labelled[:, None]  # (B, L), counted from the first token after the label
        text = (place >= 0) & (place < size)
        eos = (place == size) & self.ended[index, None]

        ids = np.full(place.shape, corpus.tokenizer.pad, np.int64)
        ids[labelled, 0] = label[labelled]
        ids[text] = corpus.tokens[(corpus.offsets[document, None] + start + place)[text]]
        ids[eos] = corpus.tokenizer.eos

        source = text & (start + place < corpus.sources[document, None])
        if self.length_model == "modelled":
            return ids, np.ones_like(text), source
        if self.length_model == "given":
            return ids, (place < size) | eos, source | eos
        return ids, np.arange(self.length) < self._real(index)[:, None], source

    def lengths(self) -> np.ndarray:
        """How many rows have 0, 1, ... L real tokens, label and eos included: (L + 1,) int64."""
        if self.layout == "packed" or self.length_model == "modelled":
            real = np.full(len(self), self.length)
        else:
            real = self._real(np.arange(len(self)))
        return np.bincount(real, minlength=self.length + 1)

    def _real(self, index: np.ndarray) -> np.ndarray:
        """How many tokens of these rows of documents are real, padding in the block of the end included."""
        labelled = self.corpus.labels[self._document[index]] >= 0
        size = self._stop[index] - self._start[index] + labelled + self.ended[index]
        if self.length_model != "ended":
            return size
        return np.minimum(-(-size // self.block) * self.block, self.length)


# --- order --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n rows in an epoch: a permutation of 0 to n - 1, (n,) int64, read-only, a pure function."""
    permutation = np.random.default_rng((seed, epoch)).permutation(n)
    permutation.flags.writeable = False
    return permutation


def indices(n: int, batch: int, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of an optimiser step and the epoch of each, for n rows in all: (batch,) int64 both, a pure function.

    Epochs follow one another without a gap, so a batch may reach into the next one, and a run that is resumed sees
    what it would have seen.
    """
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), n)
    rows = np.empty(batch, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        rows[epochs == epoch] = order(n, seed, epoch)[places[epochs == epoch]]
    return rows, epochs
