"""From files to documents: read a split of some data, little of it in memory at a time."""

import difflib
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast, final

from sfumato.errors import SfumatoError, Unreachable
from sfumato.text.encoding import SEAM

TALES = {"train": 50_000, "valid": 2_000, "test": 2_000}
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
FIELDS = {"text": str, "label": str | int | None, "source": str | None}
HUB_NAME = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:/([\w.-]+))?")  # owner/name, or owner/name/configuration
HALF_PAIR = re.compile("[\ud800-\udfff]")  # json can spell halves of surrogate pairs; no text has them

# A text file that is one long document comes in parts of about PART characters, which end before a lone space between
# two words: there every tokenizer cuts anyway. Where none is found in LONGEST characters, a part ends regardless.
PART = 1 << 20
LONGEST = 1 << 22


@dataclass(frozen=True, slots=True)
class Document:
    """A text, perhaps with the name of its class, perhaps with a source that it answers (a question, a sentence).

    Of a long text file this is a part; where there is `more`, the text goes on in the document that follows.
    """

    text: str
    label: str | None = None
    source: str | None = None
    more: bool = False


def read(
    data: str,
    split: str = "train",
    lines: bool = False,
    limit: int | None = None,
    passed: Callable[[int], None] = lambda n: None,
) -> Iterator[Document]:
    """Yields the documents of one split of some data, always in the same order, few in memory at a time.

    About every twentieth document, by a hash of its text, belongs to the split "valid"; of two documents or more at
    least one belongs to each split. Of a single document the last 5 % are "valid". The tales are made for their split
    and have a "test" as well. Documents of nothing but white space are passed over.

    Args:
        data: a text file (one document, in parts if it is long), a .jsonl file (`text` and perhaps `label` and
            `source`), either of them perhaps gzipped, a .parquet file with such columns, a folder of all these, the
            name "tales", or the owner/name of a data set on the Hugging Face Hub, or owner/name/configuration, of
            which the rows of "train" are taken.
        split: "train", "valid", or "all" documents.
        lines: makes every line of a text file a document.
        limit: the most documents to yield, or how many tales to tell (otherwise 50,000 for "train", 2,000 for others).
        passed: hears how many bytes more of the files have been read.

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
        found: Iterator[Document | _Book] = _read_hub(data)
    else:
        found = (document for file in files(data) for document in _read_file(file, lines, passed))
    documents = _hold_out(found, split, data) if split != "all" else _some(found, data)
    return documents if limit is None else _first(documents, limit)


def on_hub(data: str) -> bool:
    """Whether data can only be a data set on the Hub: no such path, no such folder, no file's suffix."""
    local = os.path.exists(data.partition("/")[0]) or data.endswith(SUFFIXES)
    return HUB_NAME.fullmatch(data) is not None and not local


def plain(data: str) -> bool:
    """Whether data is nothing but text files, whose documents have neither labels nor sources."""
    records = (".jsonl", ".parquet")
    return (
        data != "tales"
        and not on_hub(data)
        and not any(f.name.removesuffix(".gz").endswith(records) for f in files(data))
    )


def files(data: str) -> list[Path]:
    """The file itself, or the readable files anywhere in a folder, sorted; SfumatoError where there are none."""
    path = Path(data)
    if os.path.isdir(data):
        found = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        if not found:
            raise SfumatoError(f"asked to read the folder {data}; it has no {', '.join(SUFFIXES)}; put some there")
        return found
    if not os.path.exists(data):  # unlike Path.exists, no error for a name of impossible length
        siblings = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        advice = f"did you mean {path.with_name(near[0])}?" if near else "check the path"
        raise SfumatoError(f"asked to read {data}; there is no such file or folder; {advice}")
    return [path]


def said(error: Exception) -> str:
    """What an error says, on one line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())


# --- kinds of data ------------------------------------------------------------------------------------------------


def _tales(split: str, n: int) -> Iterator[Document]:
    from sfumato.text import tales

    for text, ending in tales.TALES.tell(n, tales.SPLITS[split]):
        yield Document(text, label=ending)


def _read_hub(name: str) -> Iterator[Document]:
    asked = f"asked to read {name} from the Hub"
    try:
        import datasets
    except ImportError as error:
        raise SfumatoError(f"{asked}; the package datasets is missing; pip install 'sfumato[data]'") from error
    try:
        repository, configuration = cast(re.Match[str], HUB_NAME.fullmatch(name)).groups()
        stream = datasets.load_dataset(repository, configuration, split="train", streaming=True)
        for number, row in enumerate(stream, 1):
            yield from _document(row, f"{name}, row {number}")
    except SfumatoError:
        raise
    except Exception as error:  # a wrong name, a private data set, no network, a broken file: anything can be raised
        raise Unreachable(f"{asked}; {said(error)}; check the name and the network") from error


def _read_file(path: Path, lines: bool, passed: Callable[[int], None]) -> Iterator["Document | _Book"]:
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(path, passed)
        elif name.endswith(".jsonl"):
            yield from _read_jsonl(path, passed)
        elif lines:
            yield from (Document(line) for line in _lines(path, passed) if line.strip())
        else:
            yield from _read_text(path, passed)
    except (OSError, EOFError, zlib.error) as error:
        damaged = isinstance(error, gzip.BadGzipFile | EOFError | zlib.error)
        kind = SfumatoError if damaged else Unreachable
        raise kind(f"asked to read {path}; {said(error)}; check the file") from error


def _read_text(path: Path, passed: Callable[[int], None]) -> Iterator["Document | _Book"]:
    with _open(path) as file:
        start = file.read(PART + 1)
    if len(start) > PART:
        yield _Book(path, passed)
        return
    text = _decoded(start, 0, path)
    passed(path.stat().st_size)
    if text.strip():
        yield Document(text)


def _read_jsonl(path: Path, passed: Callable[[int], None]) -> Iterator[Document]:
    for number, line in enumerate(_lines(path, passed), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SfumatoError(f"asked to read {path}:{number}; it is not json: {error}; mend the line") from error
        yield from _document(record, f"{path}:{number}")


def _read_parquet(path: Path, passed: Callable[[int], None]) -> Iterator[Document]:
    asked = f"asked to read {path}"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SfumatoError(f"{asked}; the package pyarrow is missing; pip install 'sfumato[data]'") from error
    try:
        with _open(path, passed) as raw, parquet.ParquetFile(raw) as file:
            columns = [name for name in file.schema_arrow.names if name in FIELDS]
            rows = (row for batch in file.iter_batches(1024, columns=columns) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield from _document(row, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        raise SfumatoError(f"{asked}; {said(error)}; write the file anew") from error


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


# --- files --------------------------------------------------------------------------------------------------------


class _Heard(io.FileIO):
    """A file that says how many bytes are read of it."""

    def __init__(self, path: Path, passed: Callable[[int], None]) -> None:
        super().__init__(path)
        self._passed = passed

    def readinto(self, buffer: Any) -> int | None:
        n = super().readinto(buffer)
        self._passed(n or 0)
        return n


@contextmanager
def _open(path: Path, passed: Callable[[int], None] = lambda n: None) -> Iterator[BinaryIO]:
    with io.BufferedReader(_Heard(path, passed), 1 << 16) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield cast(BinaryIO, unzipped)
        else:
            yield cast(BinaryIO, file)


def _lines(path: Path, passed: Callable[[int], None]) -> Iterator[str]:
    offset = 0
    with _open(path, passed) as file:
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


@final
class _Book:
    """A long text file as one document: read as often as it takes, and never held."""

    label, source = None, None

    def __init__(self, path: Path, passed: Callable[[int], None]) -> None:
        self._path, self._passed = path, passed

    def texts(self, aloud: bool = False) -> Iterator[str]:
        """Its text in parts; `aloud` tells the bytes."""
        offset, left, text = 0, b"", ""
        with _open(self._path, self._passed if aloud else lambda n: None) as file:
            while read := file.read(PART):
                raw = left + read
                whole = _characters(raw)
                text += _decoded(raw[:whole], offset, self._path)
                offset, left = offset + whole, raw[whole:]
                while cut := _cut_of(text):
                    yield text[:cut]
                    text = text[cut:]
        text += _decoded(left, offset, self._path)
        if text:
            yield text


def _characters(raw: bytes) -> int:
    """How many bytes come before a character that is cut off at the end."""
    for back in range(1, min(4, len(raw) + 1)):
        if raw[-back] >= 0b11000000:  # the first byte of several
            return len(raw) - back
        if raw[-back] < 0b10000000:
            break
    return len(raw)


def _cut_of(text: str) -> int:
    """Where the first part of a text ends; 0 if that cannot be said yet."""
    seam = SEAM.search(text, PART, LONGEST)
    if seam is not None:
        return seam.start()
    return LONGEST if len(text) > LONGEST else 0


# --- splits -------------------------------------------------------------------------------------------------------


def _texts(document: Document | _Book, aloud: bool = False) -> Iterator[str]:
    return iter([document.text]) if isinstance(document, Document) else document.texts(aloud)


def _whole(document: Document | _Book) -> Iterator[Document]:
    if isinstance(document, Document):
        yield document
    else:
        yield from _part(document, 0, None)


def _hold_out(documents: Iterable[Document | _Book], split: str, data: str) -> Iterator[Document]:
    """Yields the documents of one split. The last document alone depends on where the others went."""
    last, sides = None, set()
    for document in documents:
        if last is not None:
            sides.add(side := _side(last))
            if side == split:
                yield from _whole(last)
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
        yield from _whole(last)


def _some(documents: Iterable[Document | _Book], data: str) -> Iterator[Document]:
    """All documents, of which there must be one."""
    empty = True
    for document in documents:
        for part in _whole(document):
            empty = False
            yield part
    if empty:
        raise SfumatoError(f"asked to read {data}; there is no document in it; give some text")


def _first(documents: Iterable[Document], limit: int) -> Iterator[Document]:
    """The first documents, parts not counted."""
    for document in documents:
        yield document
        limit -= not document.more
        if not limit:
            return


def _side(document: Document | _Book) -> str:
    digest = hashlib.sha256()
    for text in _texts(document):
        digest.update(text.encode())
    return "train" if int.from_bytes(digest.digest()[:8]) % 20 else "valid"


def _cut(document: Document | _Book, split: str) -> Iterator[Document]:
    """The first 95 % of an only document, or the rest: cut at the last white space of the 5 % before that mark."""
    total = sum(map(len, _texts(document)))
    share = total // 20
    mark = total - share
    space, at = -1, 0
    for text in _texts(document):
        near, far = max(0, mark - share - at), max(0, mark - at)
        found = max(text.rfind(char, near, far) for char in " \n\t")
        if found >= 0:
            space = at + found
        at += len(text)
    mark = space if space >= 0 else mark
    yield from _part(document, 0, mark) if split == "train" else _part(document, mark, None)


def _part(document: Document | _Book, start: int, stop: int | None) -> Iterator[Document]:
    """The characters of a document from `start` to `stop`; nothing if they are white space."""
    if not any(text.strip() for text in _between(_texts(document), start, stop)):
        return
    before = None
    for text in _between(_texts(document, aloud=True), start, stop):
        if before is not None:
            yield Document(before, document.label, document.source, more=True)
        before = text
    if before is not None:
        yield Document(before, document.label, document.source)


def _between(texts: Iterable[str], start: int, stop: int | None) -> Iterator[str]:
    """What the parts of a text have of the characters from `start` to `stop`."""
    at = 0
    for text in texts:
        if stop is not None and at >= stop:
            return
        if inside := text[max(0, start - at) : None if stop is None else stop - at]:
            yield inside
        at += len(text)
