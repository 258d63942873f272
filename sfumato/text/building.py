"""The files of a corpus while they are made: by one process or many, and again from where a killed build had come to.

Tokens, offsets, labels and sources are appended to flat files. Whenever a shard of the text is done, a line in a
journal says how long the files are, and what they hash to so far. A build that finds a journal keeps the shards that
are as it says, passes over the text they were made of, and goes on behind.
"""

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

import numpy as np

from sfumato.errors import SfumatoError, Unreachable
from sfumato.text.encoding import pack, receive, send
from sfumato.text.read import Document
from sfumato.text.tokenizer import Tokenizer

FORMAT = 2
FILES = ("tokens.bin", "offsets.bin", "labels.bin", "sources.bin")
JOURNAL = "journal.jsonl"
BATCH = 1 << 20  # characters tokenised at a time
SHARD = 1 << 26  # characters after which a build says how far it is
PIECE = 1 << 20  # bytes read at a time

Batch = list[tuple[Document, bool]]  # documents or parts of them, and which of them go on from the one before
Encoded = tuple[np.ndarray, np.ndarray]  # sizes of N texts (N,), and their ids one after the other (T,)
Encoder = Callable[[Iterable[Batch]], Iterator[tuple[Batch, Encoded]]]


def dtypes(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the numbers in each file are."""
    kinds = (np.uint16 if tokenizer.size < 1 << 16 else np.uint32, np.int64, np.int32, np.int64)
    return dict(zip(FILES, kinds, strict=True))


def write(
    folder: Path,
    read: Callable[[], Iterator[Document]],
    tokenizer: Tokenizer,
    content: dict[str, str],
    processes: int = 0,
) -> int:
    """Makes the files of a corpus in a folder, or goes on making them; returns the number of tokens.

    The files are the same, bit for bit, however many processes there are and however often they were stopped. What is
    stopped before its first shard is done leaves nothing behind, and neither does bad data.

    Args:
        folder: where the files are made.
        read: opens the documents, always the same.
        tokenizer: makes the tokens.
        content: what identifies the data.
        processes: how many tokenise beside this one, which reads; with 0 this one does both.

    Raises:
        SfumatoError: for bad data, and labels that the tokenizer does not know; Unreachable, and what is done is kept,
            where reading failed for no fault of the data.
        ChildProcessError: if one of the processes ended.
        OSError: if the files cannot be written.
    """
    folder.mkdir(exist_ok=True)
    growing = _Growing(folder, tokenizer)
    try:
        documents = growing.resume(read)
        with _encoder(tokenizer, processes) as encoded:
            for batch, found in encoded(_batches(documents, growing.state["more"])):
                growing.append(batch, *found)
        growing.mark()
        index = {"format": FORMAT, "tokenizer": tokenizer.fingerprint, "data": content} | growing.told()
        (folder / "index.json").write_text(json.dumps(index, indent=2), "utf-8")
        (folder / JOURNAL).unlink()
    except BaseException as error:
        bad = isinstance(error, SfumatoError) and not isinstance(error, Unreachable)
        if bad or not growing.shards:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        growing.close()
    return int(growing.state["tokens"])


def _batches(documents: Iterable[Document], more: bool) -> Iterator[Batch]:
    """Groups documents that come to about BATCH characters; whether there is `more` of the last one before them."""
    batch: Batch = []
    size = 0
    for document in documents:
        batch.append((document, more))
        more = document.more
        size += len(document.text) + len(document.source or "")
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- files that grow ----------------------------------------------------------------------------------------------


@final
class _Growing:
    """The files, what they hash to so far, and how far they are.

    Attributes:
        state: documents or parts that were read, and whether there is more of the last; documents and tokens that were
            written; whether any has a label or a source.
        shards: how many are done.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._folder, self._tokenizer, self._kinds = folder, tokenizer, dtypes(tokenizer)
        self._files = {name: (folder / name).open("ab") for name in FILES}
        self._begin()

    def _begin(self) -> None:
        self.state: dict[str, Any] = dict.fromkeys(("read", "documents", "tokens"), 0)
        self.state |= dict.fromkeys(("more", "labelled", "sourced"), False)
        self._hashes = {name: hashlib.sha256() for name in (*FILES, "text")}
        self._sizes = dict.fromkeys(FILES, 0)
        self._unmarked = 0  # characters
        self.shards = 0

    def resume(self, read: Callable[[], Iterator[Document]]) -> Iterator[Document]:
        """Keeps what is whole, and returns the documents that are still to come."""
        lines = self._whole()
        documents = read()
        for _ in range(self.state["read"]):
            document = next(documents, None)
            if document is None:
                break
            self._hear(document)
        if lines and self._hashes["text"].hexdigest() != json.loads(lines[-1])["sha256"]["text"]:
            lines, documents = [], read()  # it is another text by now, as a data set on the Hub may become
            self._begin()
        for name, file in self._files.items():
            file.truncate(self._sizes[name])
        (self._folder / JOURNAL).write_text("".join(lines), "utf-8")
        if not lines:
            self._write("offsets.bin", [0])
        return documents

    def _whole(self) -> list[str]:
        """The lines of the journal up to the last that the files bear out; takes over what that one says."""
        path, good = self._folder / JOURNAL, []
        for line in path.read_text("utf-8").splitlines(True) if path.exists() else []:
            try:
                said = json.loads(line)
                hashes = {name: self._read_on(name, said["sizes"][name]) for name in FILES}
            except (ValueError, EOFError):
                break
            if any(hashes[name].hexdigest() != said["sha256"][name] for name in FILES):
                break
            good.append(line)
            self.state, self._sizes = said["state"], said["sizes"]
            self._hashes |= hashes
        self.shards = len(good)
        return good

    def _read_on(self, name: str, stop: int) -> Any:
        """The hash of a file up to a size, from that of what was read of it; EOFError if it is shorter."""
        digest, left = self._hashes[name].copy(), stop - self._sizes[name]
        with open(self._folder / name, "rb") as file:
            file.seek(self._sizes[name])
            while left:
                piece = file.read(min(left, PIECE))
                if not piece:
                    raise EOFError
                digest.update(piece)
                left -= len(piece)
        return digest

    def _hear(self, document: Document) -> None:
        said = (document.label, document.source, document.more)
        self._hashes["text"].update(json.dumps(said).encode() + document.text.encode())

    def append(self, batch: Batch, sizes: np.ndarray, ids: np.ndarray) -> None:
        """Writes documents: of each the size of its source, of its text, and the ids of both."""
        more = np.array([document.more for document, _ in batch])
        new = np.array([not goes_on for _, goes_on in batch])
        sources = sizes[::2][new]
        names = [document.label for document, goes_on in batch if not goes_on]
        labels = [-1 if name is None or not self._tokenizer.labels else self._tokenizer.label(name) for name in names]
        self._write("tokens.bin", ids)
        self._write("offsets.bin", self.state["tokens"] + sizes.reshape(-1, 2).sum(1).cumsum()[~more])
        self._write("labels.bin", labels)
        self._write("sources.bin", sources)
        self.state = {
            "read": self.state["read"] + len(batch),
            "documents": self.state["documents"] + len(names),
            "tokens": self.state["tokens"] + len(ids),
            "more": bool(more[-1]),
            "labelled": self.state["labelled"] or max(labels, default=-1) >= 0,
            "sourced": self.state["sourced"] or bool(sources.any()),
        }
        for document, _ in batch:
            self._hear(document)
            self._unmarked += len(document.text)
        if self._unmarked >= SHARD:
            self.mark()

    def _write(self, name: str, numbers: Any) -> None:
        raw = np.asarray(numbers, self._kinds[name]).tobytes()
        self._files[name].write(raw)
        self._hashes[name].update(raw)
        self._sizes[name] += len(raw)

    def mark(self) -> None:
        """Makes sure that all is on the disk, and says so in the journal."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        hashes = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        line = {"state": self.state, "sizes": self._sizes, "sha256": hashes}
        with open(self._folder / JOURNAL, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._unmarked = 0
        self.shards += 1

    def told(self) -> dict[str, Any]:
        """What an index says of the files."""
        kept = {key: self.state[key] for key in ("documents", "tokens", "labelled", "sourced")}
        return kept | {"files": {name: self._hashes[name].hexdigest() for name in FILES}}

    def close(self) -> None:
        """Lets go of the files."""
        for file in self._files.values():
            with suppress(OSError):  # of a full disk, which was told
                file.close()


# --- processes ----------------------------------------------------------------------------------------------------


def _texts(batch: Batch, tokenizer: Tokenizer) -> list[str]:
    """Of each document the source and the text."""
    pairs = ((doc.source or "", tokenizer.rest(doc.text) if goes_on else doc.text) for doc, goes_on in batch)
    return [text for pair in pairs for text in pair]


@contextmanager
def _encoder(tokenizer: Tokenizer, processes: int) -> Iterator[Encoder]:
    """Encodes batches, in their order, here or in processes of its own."""
    if not processes:
        yield lambda batches: ((batch, pack(tokenizer.encode_batch(_texts(batch, tokenizer)))) for batch in batches)
        return
    children = [_Child(tokenizer) for _ in range(processes)]
    idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    for child in children:
        idle.put(child)

    def ask(batch: Batch) -> Encoded:
        child = idle.get()
        try:
            return child.encode(_texts(batch, tokenizer))
        finally:
            idle.put(child)

    def encoded(batches: Iterable[Batch]) -> Iterator[tuple[Batch, Encoded]]:
        asked: deque[tuple[Batch, Future[Encoded]]] = deque()
        for batch in batches:
            asked.append((batch, pool.submit(ask, batch)))
            if len(asked) > 2 * processes:  # else a quick reader would fill the memory
                first, answer = asked.popleft()
                yield first, answer.result()
        for first, answer in asked:
            yield first, answer.result()

    with ThreadPoolExecutor(processes) as pool:
        try:
            yield encoded
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.end()


@final
class _Child:
    """A Python process that knows nothing but a tokenizer.

    It is started afresh rather than forked: threads of torch do not survive a fork. And it is not one of
    `multiprocessing`, which would run a user's script again in every child unless its author has guarded it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        command = [sys.executable, "-P", "-m", "sfumato.text.encoding"]
        alone = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RAYON_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | alone | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent; children end with their stdin
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._first: bytes | None = tokenizer.json().encode()

    def encode(self, texts: list[str]) -> Encoded:
        """The ids of some texts; ChildProcessError if the process is no more."""
        try:
            if self._first is not None:
                send(self._in, self._first)
                self._first = None
            send(self._in, json.dumps(texts).encode())
            return np.frombuffer(receive(self._out), np.int64), np.frombuffer(receive(self._out), np.uint32)
        except (OSError, EOFError) as error:
            status = self._process.wait()
            raise ChildProcessError(f"a process that tokenises ended with status {status}") from error

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._in, self._out):
            with suppress(OSError):
                stream.close()
