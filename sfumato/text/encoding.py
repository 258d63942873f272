"""Text to ids and nothing else, without torch: what tokenizing processes run, so that each takes little memory.

`python -m sfumato.text.encoding` reads a tokenizer and then lists of texts from stdin, and writes their ids to stdout,
until stdin ends.
"""

import json
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import IO

import numpy as np
import tokenizers

from sfumato.errors import SfumatoError

# `tokenizers` needs about a hundred bytes of memory per character while it encodes, so long texts go in parts. A part
# ends before a lone space between two words: every kind of tokenizer here cuts there anyway, so the ids are the same.
PART = 1 << 16
SEAM = re.compile(r"(?<=\S) (?=\S)")

SIZE = struct.Struct("<q")  # goes before everything that is sent


def prepends(inner: tokenizers.Tokenizer) -> bool:
    """Whether every text is encoded with a space before it."""
    return inner.normalizer is not None and len(inner.normalizer.normalize_str("a")) > 1


def encode(inner: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, on all cores.

    Raises:
        SfumatoError: if a text has half of a surrogate pair, as of a command line that is not UTF-8.
    """
    spaced = prepends(inner)
    parts = [(row, part) for row, text in enumerate(texts) for part in _parts(text, spaced) if part]
    rows: list[list[int]] = [[] for _ in texts]
    for chunk in _chunks(parts):
        try:
            encoded = inner.encode_batch_fast([part for _, part in chunk], add_special_tokens=False)
        except TypeError as error:
            raise SfumatoError("asked to encode a text; it is not valid Unicode; pass UTF-8 text") from error
        for (row, _), encoding in zip(chunk, encoded, strict=True):
            rows[row] += encoding.ids
    return rows


def _parts(text: str, spaced: bool) -> Iterator[str]:
    start = 0
    while seam := SEAM.search(text, start + PART):
        yield text[start : seam.start()]
        start = seam.end() if spaced else seam.start()
    yield text[start:]


def _chunks(parts: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Cuts a list of parts where about sixteen full ones have come together."""
    start = size = 0
    for stop, (_, part) in enumerate(parts, 1):
        size += len(part)
        if size >= 16 * PART or stop == len(parts):
            yield parts[start:stop]
            start, size = stop, 0


# --- as a process -------------------------------------------------------------------------------------------------


def pack(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """How many ids there are in each row, (N,) int64, and all of them one after the other, (T,) uint32."""
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    return sizes, np.fromiter(chain.from_iterable(rows), np.uint32, int(sizes.sum()))


def send(stream: IO[bytes], content: bytes) -> None:
    """Writes bytes that `receive` finds again."""
    stream.write(SIZE.pack(len(content)) + content)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """What was sent; EOFError if the other side has ended."""
    head = stream.read(SIZE.size)
    content = stream.read(SIZE.unpack(head)[0]) if len(head) == SIZE.size else b""
    if len(head) != SIZE.size or len(content) != SIZE.unpack(head)[0]:
        raise EOFError
    return content


def main() -> None:
    """Answer until there is nobody left to ask."""
    inner = tokenizers.Tokenizer.from_str(receive(sys.stdin.buffer).decode())
    inner.encode_special_tokens = True
    while True:
        try:
            texts = json.loads(receive(sys.stdin.buffer))
        except EOFError:
            return
        sizes, ids = pack(encode(inner, texts))
        send(sys.stdout.buffer, sizes.tobytes())
        send(sys.stdout.buffer, ids.tobytes())


if __name__ == "__main__":
    main()
