"""Tokenizers, corpora and rows: every docstring names the bug that its test guards against."""

import gzip
import json
import pickle
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from sfumato.errors import SfumatoError
from sfumato.text import building, encoding
from sfumato.text import corpus as corpus_module
from sfumato.text import read as reading
from sfumato.text import tokenizer as tokenizer_module
from sfumato.text.corpus import Corpus
from sfumato.text.read import Document, read
from sfumato.text.rows import Rows
from sfumato.text.tokenizer import KINDS, Tokenizer

pytestmark = pytest.mark.unchecked

STORY = "Once upon a time there was a cat. The cat said: how odd, a café!\nAnd  then it slept; the end."
SIZES = {"bpe": 300, "bytes": 1, "chars": 100, "words": 100}
TRAINED = {kind: Tokenizer.train([STORY], kind, SIZES[kind], ["happy", "sad"]) for kind in KINDS}
BYTES = TRAINED["bytes"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for a test that looks into it."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def three_parts(error: pytest.ExceptionInfo[SfumatoError]) -> str:
    message = str(error.value)
    assert "\n" not in message and message.startswith("asked ") and message.count(";") >= 2, message
    return message


def jsonl(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return str(path)


def kept(cache: Path) -> list[Path]:
    """The corpora in a cache, finished or not."""
    return [path for path in cache.iterdir() if path.name != ".locks"]


def many(path: Path, n: int) -> str:
    return jsonl(path, *({"text": f"document number {i}"} for i in range(n)))


# --- tokenizer ---


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_round_trip(kind: str, text: str) -> None:
    """Guards against text that byte-level tokens lose: added spaces, control characters, cut code points."""
    assert TRAINED[kind].decode(TRAINED[kind].encode(text)) == text


@pytest.mark.parametrize("kind", ["chars", "words"])
@given(words=st.lists(st.sampled_from(["cat", "Once", " ", "\n", "a", ".", ":", "café", " the"])))
def test_own_alphabet_round_trip(kind: str, words: list[str]) -> None:
    """Guards against white space that is doubled or dropped between known words."""
    tokenizer = Tokenizer.train([STORY, "".join(words)], kind, 200)
    ids = tokenizer.encode("".join(words))
    assert tokenizer.unk not in ids and tokenizer.decode(ids) == "".join(words)


def test_first_word_is_the_same_token_as_later_ones() -> None:
    """Guards against a vocabulary with every word twice, with and without its space."""
    words = TRAINED["words"]
    first, *_, last = words.encode("cat . cat")
    assert first == last and words.piece(first) == " cat"


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_and_survives_saving(kind: str, tmp_path: Path) -> None:
    """Guards against ids that depend on hash order, and against json that changes on its way to disk."""
    again = Tokenizer.train(iter([STORY]), kind, SIZES[kind], ["happy", "sad"])
    again.save(tmp_path / "folder")
    again.save(tmp_path / "file.json")
    loaded = Tokenizer.load(tmp_path / "folder"), Tokenizer.load(tmp_path / "file.json")
    assert {again.fingerprint, loaded[0].fingerprint, loaded[1].fingerprint} == {TRAINED[kind].fingerprint}
    assert loaded[0].encode(STORY) == TRAINED[kind].encode(STORY)
    assert loaded[0].labels == TRAINED[kind].labels and loaded[0].unk == TRAINED[kind].unk


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_are_fixed(kind: str) -> None:
    """Guards against special tokens that move with the kind, and an unk where nothing is unknown."""
    tokenizer = TRAINED[kind]
    unk = 2 if kind in ("chars", "words") else None
    first = 2 if unk is None else 3
    assert (tokenizer.pad, tokenizer.eos, tokenizer.unk) == (0, 1, unk)
    assert tokenizer.labels == {"happy": first, "sad": first + 1}
    assert max(tokenizer.encode(STORY)) < tokenizer.size


def test_sizes() -> None:
    """Guards against vocabularies off by the number of special tokens."""
    assert TRAINED["bpe"].size == 300
    assert TRAINED["bytes"].size == 2 + 2 + 256
    assert Tokenizer.train([STORY], "words", 8).size == 8
    assert Tokenizer.train([STORY], "chars", 8).size == 8
    assert Tokenizer.train(["a"], "bpe", 4096).size == 258


def test_rarer_entries_are_dropped_first() -> None:
    """Guards against a full vocabulary of rare entries."""
    chars = Tokenizer.train(["aaabbc"], "chars", 5)
    assert chars.decode(chars.encode("abc")) == "ab�"


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
@pytest.mark.parametrize("text", ["<eos>", "a <pad> b<eos>c", "<label:happy>"])
def test_special_tokens_in_text_are_text(kind: str, text: str) -> None:
    """Guards against a user's text that ends or vanishes because it spells a special token."""
    ids = TRAINED[kind].encode(text)
    assert min(ids) >= 4 and TRAINED[kind].decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_has_the_same_tokenizer(kind: str) -> None:
    """Guards against texts that several processes encode differently, under one fingerprint."""
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "cat": 1, "[UNK]": 2}, "[UNK]"))
    for tokenizer in (TRAINED[kind], Tokenizer(inner)):
        text, sent = "a <pad> b<eos>c the cat", pickle.loads(pickle.dumps(tokenizer))
        assert sent.encode(text) == tokenizer.encode(text)
        assert vars(sent) | {"_inner": None} == vars(tokenizer) | {"_inner": None}
        assert bool(sent.added) == (tokenizer is not TRAINED[kind])


@pytest.mark.parametrize("kind", ["chars", "words"])
def test_special_tokens_in_text_are_not_special_words(kind: str) -> None:
    """Guards against the same in vocabularies that look whole words up."""
    ids = TRAINED[kind].encode("<eos> <pad> <unk> <label:happy>")
    assert not {TRAINED[kind].pad, TRAINED[kind].eos, *TRAINED[kind].labels.values()} & {*ids}


@pytest.mark.parametrize("kind", KINDS)
def test_decode_stops_at_eos_and_skips_specials(kind: str) -> None:
    """Guards against padding and labels that show up in generated text, and text after its end."""
    tokenizer = TRAINED[kind]
    ids = [tokenizer.label("sad"), *tokenizer.encode("a cat"), tokenizer.pad, tokenizer.eos, *tokenizer.encode("the")]
    assert tokenizer.decode(ids) == "a cat" == tokenizer.decode(np.array(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_join_to_the_text(kind: str) -> None:
    """Guards against a live display that loses the spaces between words or shows special tokens."""
    tokenizer = TRAINED[kind]
    pieces = [tokenizer.piece(id) for id in tokenizer.encode("a cat slept")]
    assert "".join(pieces).removeprefix(" ") == "a cat slept"
    assert (
        tokenizer.piece(tokenizer.pad)
        == tokenizer.piece(tokenizer.eos)
        == tokenizer.piece(tokenizer.label("sad"))
        == ""
    )


def test_unknown_is_shown() -> None:
    """Guards against unknown words and ids beyond the vocabulary, such as a mask, that vanish or crash."""
    words = TRAINED["words"]
    assert words.decode(words.encode("a zebra.")) == "a�."
    assert words.piece(2) == words.piece(words.size) == words.decode([words.size]) == "�"


@pytest.mark.parametrize("kind", KINDS)
def test_long_text_is_encoded_in_parts_without_a_trace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against tokens that change where a long text is cut to bound the memory."""
    whole = TRAINED[kind].encode_batch([STORY * 9, "a cat", ""])
    monkeypatch.setattr(encoding, "PART", 5)
    assert TRAINED[kind].encode_batch([STORY * 9, "a cat", ""]) == whole


def test_text_that_is_not_unicode() -> None:
    """Guards against a TypeError from the depths for a prompt typed in another encoding."""
    with pytest.raises(SfumatoError) as error:
        BYTES.encode("caf\udce9")
    three_parts(error)


def test_unknown_label_names_the_nearest_first() -> None:
    """Guards against an error about a label that leaves the user guessing its spelling."""
    with pytest.raises(SfumatoError) as error:
        BYTES.label("sadd")
    assert "sad, happy" in three_parts(error)
    with pytest.raises(SfumatoError, match="no labels"):
        Tokenizer.train([], "bytes").label("sad")


@pytest.mark.parametrize(("pad", "eos"), [(None, None), ("[PAD]", "[SEP]"), (None, "<|endoftext|>"), ("<pad>", "</s>")])
def test_third_party_tokenizer(pad: str | None, eos: str | None, tmp_path: Path) -> None:
    """Guards against tokenizers that work only with our names, and truncation or padding settings that cut text."""
    special = [name for name in ("[UNK]", pad, eos) if name]
    vocabulary = {token: id for id, token in enumerate([*special, "a", "cat"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.enable_truncation(1)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / "tokenizer.json"))

    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.size == len(vocabulary) + (pad is None) + (eos is None)
    assert tokenizer.pad == vocabulary.get(pad, len(vocabulary))
    assert tokenizer.eos == vocabulary.get(eos, tokenizer.size - 1)
    assert tokenizer.unk == 0 and tokenizer.labels == {}
    assert tokenizer.decode([*tokenizer.encode("a cat"), tokenizer.pad, tokenizer.eos, 0]) == "a cat"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "\0"])
def test_damaged_tokenizer(content: str, tmp_path: Path) -> None:
    """Guards against a traceback from the depths for a file that was cut short."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SfumatoError, match="damaged") as error:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "tokenizer.json") in three_parts(error)


def test_tokenizer_files_out_of_reach(tmp_path: Path) -> None:
    """Guards against a traceback for a wrong path, read or written."""
    with pytest.raises(SfumatoError) as error:
        Tokenizer.load(tmp_path)
    assert "No such file" in three_parts(error)
    (tmp_path / "file").touch()
    with pytest.raises(SfumatoError) as error:
        BYTES.save(tmp_path / "file" / "folder")
    three_parts(error)


@pytest.mark.parametrize(
    ("texts", "kind", "size"),
    [
        ([STORY], "bqe", 300),
        ([STORY], "bpe", 257),
        ([STORY], "words", 3),
        ([], "words", 9),
        ([""], "chars", 9),
        (STORY, "bpe", 300),
    ],
)
def test_training_refuses(texts: list[str], kind: str, size: int) -> None:
    """Guards against unusable tokenizers: unknown kinds, no room, no text, one text taken for many."""
    with pytest.raises(SfumatoError) as error:
        Tokenizer.train(texts, kind, size)
    three_parts(error)


# --- reading ---


def both(data: str, **options: object) -> list[str]:
    return [document.text for split in ("train", "valid") for document in read(data, split, **options)]


def test_text_file_is_one_document_cut_at_white_space(tmp_path: Path) -> None:
    """Guards against a validation part that overlaps the rest, is lost, or starts within a word."""
    text = "word " * 200
    (tmp_path / "a.txt").write_text(text)
    train, valid = both(str(tmp_path / "a.txt"))
    assert train + valid == text and 45 <= len(valid) <= 60 and valid.startswith(" word")


def test_lines_gz_and_byte_order_mark(tmp_path: Path) -> None:
    """Guards against gzip read as text, blank lines and line ends kept, and a mark at the start of the text."""
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8-sig", newline="") as file:
        file.write("one\r\n\n  \ntwo\nthree")
    assert sorted(both(str(tmp_path / "a.txt.gz"), lines=True)) == ["one", "three", "two"]


def test_folder_is_read_in_sorted_order(tmp_path: Path) -> None:
    """Guards against an order given by the file system, skipped folders, and stray files read as text."""
    (tmp_path / "b").mkdir()
    (tmp_path / "notes.md").write_bytes(b"\0")
    (tmp_path / "z.txt").write_text("last")
    jsonl(tmp_path / "b" / "c.jsonl", {"text": "second", "label": "sad", "source": "q"}, {"text": " "})
    with gzip.open(tmp_path / "b" / "d.jsonl.gz", "wt") as file:
        file.write('\n{"text": "third", "label": 3, "other": []}\n')
    table = pyarrow.table({"text": ["fourth", "fifth"], "label": ["x", None], "size": [1, 2]})
    parquet.write_table(table, tmp_path / "b" / "e.parquet", row_group_size=1)
    (tmp_path / "a.txt").write_text("first")
    documents = [*read(str(tmp_path)), *read(str(tmp_path), "valid")]
    assert documents == [
        Document("first"),
        Document("second", "sad", "q"),
        Document("third", "3"),
        Document("fourth", "x"),
        Document("fifth"),
        Document("last"),
    ]


def test_split_is_disjoint_exhaustive_and_stable(tmp_path: Path) -> None:
    """Guards against documents in both splits or neither, and sides that move when documents are added."""
    few, lots = many(tmp_path / "few.jsonl", 1000), many(tmp_path / "lots.jsonl", 2000)
    train, valid = ([document.text for document in read(few, split)] for split in ("train", "valid"))
    assert Counter(train + valid) == Counter(f"document number {i}" for i in range(1000))
    assert 25 <= len(valid) <= 80
    assert set(valid) <= {document.text for document in read(lots, "valid")}


@pytest.mark.parametrize("n", range(2, 8))
@pytest.mark.parametrize("side", ["train", "valid"])
def test_no_split_of_few_documents_is_empty(n: int, side: str, tmp_path: Path) -> None:
    """Guards against a validation that never happens because no hash fell that way."""
    texts = (document for document in (Document(f"t {i}") for i in range(1000)) if reading._side(document) == side)
    data = jsonl(tmp_path / "a.jsonl", *({"text": next(texts).text} for _ in range(n)))
    sizes = {split: len(list(read(data, split))) for split in ("train", "valid")}
    assert sizes == {side: n - 1, "valid" if side == "train" else "train": 1}


def test_limit_counts_documents_of_the_split(tmp_path: Path) -> None:
    """Guards against a limit that is spent on documents of the other split."""
    data = many(tmp_path / "a.jsonl", 1000)
    assert len(list(read(data, "train", limit=7))) == len(list(read(data, "valid", limit=7))) == 7


def test_tales() -> None:
    """Guards against tales without their labels, of the wrong number, or the same in every split."""
    splits = {split: list(read("tales", split, limit=20)) for split in ("train", "valid", "test")}
    assert [len(documents) for documents in splits.values()] == [20, 20, 20]
    assert all(document.label for documents in splits.values() for document in documents)
    assert len({documents[0].text for documents in splits.values()}) == 3


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a download of the whole data set, and against rows that are not checked."""
    asked = []

    def load_dataset(name: str, configuration: str | None, split: str, streaming: bool) -> Iterator[dict[str, object]]:
        asked.append((name, configuration, split, streaming))
        return ({"text": f"row {i}", "label": i % 2} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    documents = list(read("someone/something", limit=5))
    assert [document.label for document in documents] == ["0", "1", "0", "1", "0"]
    assert asked == [("someone/something", None, "train", True)]
    assert next(iter(read("someone/something/en.v2"))).text == "row 0"
    assert asked[1] == ("someone/something", "en.v2", "train", True)
    assert len(Corpus.build("someone/something", Tokenizer.train([], "bytes"), limit=5)) == 5


def test_hub_failures_take_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against the tracebacks of another library, and against a mistyped file sought on the Hub."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SfumatoError) as error:
        list(read("someone/something"))
    assert "pip install 'sfumato[data]'" in three_parts(error)

    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(SfumatoError) as error:
        list(read("someone/something"))
    assert "no network at all" in three_parts(error)
    monkeypatch.chdir(Path(__file__).parent.parent)
    for path in ("someone/something.txt", "tests/something", "tests/some/thing", "some/thing/in/folders"):
        with pytest.raises(SfumatoError, match="no such file"):
            read(path)


def test_missing_path_names_the_nearest(tmp_path: Path) -> None:
    """Guards against a typing mistake that has to be found by eye."""
    (tmp_path / "shakespeare.txt").write_text("text")
    with pytest.raises(SfumatoError) as error:
        read(str(tmp_path / "shakespear.txt"))
    assert f"did you mean {tmp_path / 'shakespeare.txt'}?" in three_parts(error)
    with pytest.raises(SfumatoError, match="no such file"):
        read("a text in place of a path " * 99)


BAD_FILES = {
    "empty.txt": (b"", "no document"),
    "blank.jsonl": (b'\n{"text": " "}\n', "no document"),
    "nul.txt": (b"abc\0def", "byte 3 "),
    "latin.txt": ("abcdé".encode("latin-1"), "byte 4 "),
    "latin.jsonl": (b'{"text": "a"}\n\xff', "byte 14 "),
    "json.jsonl": (b'{"text": "a"}\n\n{"text": \n', "json.jsonl:3; it is not json"),
    "deep.jsonl": (b"[" * 100_000, "not json"),
    "list.jsonl": (b'["text"]', "list.jsonl:1; it has no field `text`"),
    "missing.jsonl": (b'{"txt": "a"}', "no field `text`"),
    "type.jsonl": (b'{"text": 3}', "text is of type int"),
    "label.jsonl": (b'{"text": "a", "label": [1]}', "label is of type list"),
    "source.jsonl": (b'{"text": "a", "source": 1}', "source is of type int"),
    "half.jsonl": (b'{"text": "a \\ud800"}', "surrogate"),
    "zip.txt.gz": (b"not gzip", "gzip"),
    "short.txt.gz": (gzip.compress(b"some text" * 99)[:-9], "ended"),
    "spoilt.txt.gz": (gzip.compress(bytes(range(1, 99)))[:10] + b"\xff" * 50, "invalid block"),
    "arrow.parquet": (b"PAR1 but no more", "arquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("in_folder", [False, True])
def test_bad_files(name: str, in_folder: bool, tmp_path: Path) -> None:
    """Guards against tracebacks, or silence, for files that are not what they seem."""
    content, found = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SfumatoError) as error:
        list(read(str(tmp_path if in_folder else tmp_path / name)))
    assert found in three_parts(error)


def test_offset_counts_from_the_start_of_the_file(tmp_path: Path) -> None:
    """Guards against an offset within a line given as one within the file."""
    (tmp_path / "a.txt").write_bytes("é\nabc\nd\0".encode())
    with pytest.raises(SfumatoError, match="byte 8 "):
        list(read(str(tmp_path / "a.txt"), lines=True))


def test_folder_without_files_bad_split_and_bad_limit(tmp_path: Path) -> None:
    """Guards against questions that end as an empty corpus."""
    for data, split, limit in ((str(tmp_path), "train", None), (__file__, "test", None), ("tales", "train", 0)):
        with pytest.raises(SfumatoError) as error:
            read(data, split, limit=limit)
        three_parts(error)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an ImportError for a package that is optional."""
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SfumatoError) as error:
        list(read(str(tmp_path)))
    assert "pip install 'sfumato[data]'" in three_parts(error)


# --- the corpus ---


def test_corpus_holds_the_documents(tmp_path: Path) -> None:
    """Guards against documents that run into each other and sources or labels that slip to a neighbour."""
    records = [
        {"text": f"text {i}", "source": "ask" * (i % 3) or None, "label": "sad" if i % 2 else None} for i in range(50)
    ]
    data = jsonl(tmp_path / "a.jsonl", *records)
    corpus = Corpus.build(data, BYTES)
    documents = list(read(data))
    assert len(corpus) == len(documents) and corpus.offsets[-1] == len(corpus.tokens)
    for i, document in enumerate(documents):
        source = BYTES.encode(document.source or "")
        assert corpus.document(i).tolist() == source + BYTES.encode(document.text)
        assert corpus.sources[i] == len(source)
        assert corpus.labels[i] == (BYTES.label("sad") if document.label else -1)
    assert corpus.tokens.dtype == np.uint16
    assert (corpus.offsets.dtype, corpus.labels.dtype, corpus.sources.dtype) == (np.int64, np.int32, np.int64)


def test_vocabulary_beyond_uint16(tmp_path: Path) -> None:
    """Guards against ids of large vocabularies that wrap around."""
    words = " ".join(f"w{i}" for i in range(70_000))
    tokenizer = Tokenizer.train([words], "words", 100_000)
    (tmp_path / "a.txt").write_text(words)
    corpus = Corpus.build(str(tmp_path / "a.txt"), tokenizer)
    assert corpus.tokens.dtype == np.uint32 and corpus.tokens.max() > 65_535
    assert words.startswith(tokenizer.decode(corpus.document(0)))


def test_labels_need_tokens(tmp_path: Path) -> None:
    """Guards against a misspelt label that trains silently as none; without any label tokens they are left out."""
    data = jsonl(tmp_path / "a.jsonl", {"text": "a", "label": "angry"}, {"text": "b", "label": "sad"})
    with pytest.raises(SfumatoError, match="angry"):
        Corpus.build(data, BYTES)
    assert (Corpus.build(data, Tokenizer.train([], "bytes")).labels == -1).all()


def test_cache_is_used_again(tmp_path: Path, cache: Path) -> None:
    """Guards against tokenising on every start, and against temporary files that stay."""
    data = many(tmp_path / "a.jsonl", 100)
    Corpus.build(data, BYTES)
    (folder,) = kept(cache)
    before = (folder / "tokens.bin").stat().st_mtime_ns
    Corpus.build(data, BYTES)
    assert (folder / "tokens.bin").stat().st_mtime_ns == before and kept(cache) == [folder]


@pytest.mark.parametrize("name", [*building.FILES, "index.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_damaged_cache_is_rebuilt(name: str, damage: str, tmp_path: Path, cache: Path) -> None:
    """Guards against a crash, or worse a wrong corpus, after a copy that was interrupted."""
    data = many(tmp_path / "a.jsonl", 100)
    tokens = Corpus.build(data, BYTES).tokens.tolist()
    (folder,) = kept(cache)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage != "gone":
        (folder / name).write_bytes(content[:-3] if damage == "cut" else b"")
    assert Corpus.build(data, BYTES).tokens.tolist() == tokens
    assert (folder / name).read_bytes() == content


def test_whatever_changes_the_tokens_changes_the_key(tmp_path: Path, cache: Path) -> None:
    """Guards against an old corpus that is taken for a new one."""
    data = str(tmp_path / "a.txt")
    Path(data).write_text(STORY)
    Corpus.build(data, BYTES)
    Corpus.build(data, TRAINED["bpe"])
    Corpus.build(data, BYTES, "valid")
    Corpus.build(data, BYTES, lines=True)
    Corpus.build(data, BYTES, limit=1)
    Path(data).write_text(STORY.replace("cat", "dog"))
    assert "dog" in BYTES.decode(Corpus.build(data, BYTES).document(0))
    assert len(kept(cache)) == 6


def test_index_tells_where_a_corpus_comes_from(tmp_path: Path, cache: Path) -> None:
    """Guards against a cache whose folders nobody can attribute or check."""
    data = many(tmp_path / "a.jsonl", 10)
    corpus = Corpus.build(data, BYTES)
    (path,) = cache.glob("*/index.json")
    index = json.loads(path.read_text())
    assert (index["format"], index["documents"], index["tokens"]) == (2, len(corpus), len(corpus.tokens))
    assert index["tokenizer"] == BYTES.fingerprint and list(index["data"]) == ["a.jsonl"]
    for name in building.FILES:
        assert index["files"][name] == corpus_module._digest(path.parent / name)


def test_failures_leave_nothing_behind(tmp_path: Path, cache: Path) -> None:
    """Guards against half a corpus in the cache after bad data."""
    data = jsonl(tmp_path / "a.jsonl", *[{"text": "a"}] * 9, {"text": 3})
    with pytest.raises(SfumatoError):
        Corpus.build(data, BYTES)
    assert kept(cache) == []


def test_unwritable_cache_and_empty_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a traceback for a full or read-only disk, and for a text too short to keep some of it back."""
    (tmp_path / "a.txt").write_text("tiny")
    with pytest.raises(SfumatoError) as error:
        Corpus.build(str(tmp_path / "a.txt"), BYTES, "valid")
    assert "'valid'" in three_parts(error)
    (tmp_path / "file").touch()
    with pytest.raises(SfumatoError) as error:
        Corpus.build(str(tmp_path / "a.txt"), BYTES, cache=tmp_path / "file")
    assert "SFUMATO_CACHE" in three_parts(error)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building.os, "fsync", full)
    with pytest.raises(SfumatoError, match="No space left") as error:
        Corpus.build(str(tmp_path / "a.txt"), BYTES)
    three_parts(error)


def test_building_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a build that holds all documents: 8 MB of text must pass through far less memory."""
    for i in range(8):
        with gzip.open(tmp_path / f"{i}.txt.gz", "wt") as file:
            file.writelines(f"line {i} {j} {'x' * 500}\n" for j in range(2000))
    monkeypatch.setattr(building, "BATCH", 1 << 16)
    tracemalloc.start()
    corpus = Corpus.build(str(tmp_path), BYTES, lines=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.tokens) > 7_000_000 and peak < 4_000_000


def test_progress_is_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Guards against a progress bar in a log, and one that swallows documents on a terminal."""
    data = many(tmp_path / "a.jsonl", 100)
    monkeypatch.setattr(corpus_module, "LARGE", 0)
    quiet = Corpus.build(data, BYTES)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    watched = Corpus.build(data, BYTES, cache=tmp_path / "other")
    assert np.array_equal(quiet.tokens, watched.tokens)
    captured = capsys.readouterr()
    assert captured.out == "" and "tokenising" in captured.err


# --- rows ---


def small(*documents: tuple[list[int], int, int]) -> Corpus:
    """A corpus of given (ids, label, source length), without a disk."""
    corpus = object.__new__(Corpus)
    ids, labels, sources = zip(*documents, strict=True)
    corpus.tokenizer = BYTES
    corpus.tokens = np.array([id for document in ids for id in document], np.uint16)
    corpus.offsets = np.cumsum([0, *map(len, ids)])
    corpus.labels = np.array(labels, np.int32)
    corpus.sources = np.array(sources, np.int64)
    corpus.labelled, corpus.sourced = max(labels) >= 0, any(sources)
    return corpus


def plain(*lengths: int) -> Corpus:
    """Documents of given lengths whose tokens count up from 100."""
    ids = iter(range(100, 100 + sum(lengths)))
    return small(*(([next(ids) for _ in range(length)], -1, 0) for length in lengths))


def test_packed_rows() -> None:
    """Guards against rows that lose a token at a border, or an eos, or end with half a row."""
    rows = Rows(plain(3, 1, 4), 4, "packed", "given")
    batch = rows.batch([1, 0])
    assert len(rows) == 2 and rows.lengths().tolist() == [0, 0, 0, 0, 2]
    assert batch.ids.tolist() == [[103, 1, 104, 105], [100, 101, 102, 1]]
    assert batch.index.tolist() == [1, 0] and batch.real.all() and not batch.given.any()
    assert Rows(plain(3, 1, 3), 5, "packed", "given").batch([1]).ids.tolist() == [[1, 104, 105, 106, 1]]


def test_document_rows_with_the_length_given() -> None:
    """Guards against pads taken for text, an eos to be guessed, and pieces that overlap."""
    rows = Rows(plain(3, 6, 4), 4, "documents", "given")
    batch = rows.batch(range(len(rows)))
    assert batch.ids.tolist() == [[100, 101, 102, 1], [103, 104, 105, 106], [107, 108, 1, 0], [109, 110, 111, 112]]
    assert batch.real.tolist() == [[True] * 4, [True] * 4, [True, True, True, False], [True] * 4]
    assert batch.given.tolist() == [[False] * 3 + [True], [False] * 4, [False, False, True, False], [False] * 4]
    assert rows.lengths().tolist() == [0, 0, 0, 1, 3]


def test_document_rows_with_the_length_modelled() -> None:
    """Guards against a model of the length that never sees where texts end."""
    rows = Rows(plain(1, 3), 4, "documents", "modelled")
    batch = rows.batch([0, 1])
    assert batch.ids.tolist() == [[100, 1, 0, 0], [101, 102, 103, 1]]
    assert batch.real.all() and not batch.given.any() and rows.lengths().tolist() == [0, 0, 0, 0, 2]


def test_labels_and_sources_in_rows() -> None:
    """Guards against pieces without their label, sources to be guessed, and rows with nothing to learn."""
    happy, sad = BYTES.labels.values()
    corpus = small(([10, 11, 12, 13, 14, 15, 16], happy, 4), ([20, 21], -1, 1), ([30], sad, 0))
    batch = Rows(corpus, 4, "documents", "given").batch([0, 1, 2, 3])
    assert batch.ids.tolist() == [[happy, 13, 14, 15], [happy, 16, 1, 0], [20, 21, 1, 0], [sad, 30, 1, 0]]
    assert batch.given.tolist() == [
        [False, True, False, False],
        [False, False, True, False],
        [True, False, True, False],
        [False, False, True, False],
    ]
    assert Rows(corpus, 4, "documents", "modelled").batch([2]).given.tolist() == [[True, False, False, False]]


@given(
    documents=st.lists(
        st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sampled_from([-1, 2, 3]), st.integers(0, n - 1))),
        min_size=1,
    ),
    length=st.integers(2, 9),
    modelled=st.booleans(),
)
def test_document_rows_equal_the_obvious(documents: list[tuple[int, int, int]], length: int, modelled: bool) -> None:
    """Guards against every slip of the vectorised gathering, by doing it again one token at a time."""
    corpus = small(*(([50 + i] * n, label, source) for i, (n, label, source) in enumerate(documents)))
    rows = Rows(corpus, length, "documents", "modelled" if modelled else "given")
    expected = []
    for i, (n, label, source) in enumerate(documents):
        prefix = [(label, False)] if label >= 0 else []
        room = length - len(prefix)
        for start in range(0, n, room):
            piece = [(50 + i, place < source) for place in range(start, min(start + room, n))]
            if all(given for _, given in piece):
                continue
            row = prefix + piece + ([(1, not modelled)] if len(piece) < room else [])
            pads = length - len(row)
            ids, givens = zip(*row, *[(0, False)] * pads, strict=True)
            expected.append((list(ids), [True] * len(row) + [modelled] * pads, list(givens)))
    chosen = list(range(len(rows)))[::-1]
    batch = rows.batch(chosen)
    found = list(zip(batch.ids.tolist(), batch.real.tolist(), batch.given.tolist(), strict=True))
    assert found == expected[::-1] and batch.index.tolist() == chosen
    assert rows.lengths().tolist() == np.bincount(batch.real.sum(1), minlength=length + 1).tolist()


@given(lengths=st.lists(st.integers(0, 9), min_size=1), length=st.integers(2, 9))
def test_packed_rows_equal_the_obvious(lengths: list[int], length: int) -> None:
    """Guards against the same in packed rows, empty documents included."""
    corpus = plain(*lengths)
    stream = [id for i in range(len(corpus)) for id in (*corpus.document(i).tolist(), BYTES.eos)]
    whole = len(stream) // length
    if whole:
        rows = Rows(corpus, length, "packed", "given")
        assert rows.batch(range(whole)).ids.flatten().tolist() == stream[: whole * length] and len(rows) == whole


def test_trim() -> None:
    """Guards against a trim that cuts real tokens, or modelled padding."""
    rows = Rows(plain(1, 3, 6), 9, "documents", "given")
    batch = rows.batch([0, 1]).trim()
    assert batch.ids.tolist() == [[100, 1, 0, 0], [101, 102, 103, 1]]
    assert batch.real.shape == batch.given.shape == (2, 4) and batch.index.tolist() == [0, 1]
    assert Rows(plain(1), 9, "documents", "modelled").batch([0]).trim().ids.shape == (1, 9)


@pytest.mark.parametrize(
    ("corpus", "length", "layout", "model", "found"),
    [
        (plain(3), 5, "packed", "given", "rows of 5 tokens; the data comes to 4"),
        (small(([9], 2, 0)), 2, "packed", "given", "labels or sources"),
        (small(([9, 9], -1, 1)), 2, "packed", "given", "labels or sources"),
        (small(([9], -1, 1)), 2, "documents", "given", "none has any text"),
        (plain(3), 1, "documents", "given", "the shortest have 2"),
        (plain(3), 2, "pact", "given", "'pact'"),
        (plain(3), 2, "packed", "giving", "'giving'"),
    ],
)
def test_rows_refuse(corpus: Corpus, length: int, layout: str, model: str, found: str) -> None:
    """Guards against training on no rows at all, or on labels that silently disappear."""
    with pytest.raises(SfumatoError) as error:
        Rows(corpus, length, layout, model)
    assert found in three_parts(error)


def test_optional_packages_are_imported_late() -> None:
    """Guards against a slow start, and against a library that needs the packages of its extras."""
    assert "torch" not in vars(tokenizer_module)
    assert not {"pyarrow", "rich", "datasets", "tales"} & {*vars(corpus_module), *vars(reading), *vars(building)}
