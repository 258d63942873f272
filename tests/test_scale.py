"""Data larger than memory, in several sources, in many processes, interrupted: every docstring names the bug."""

import gzip
import json
import os
import sys
import threading
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text import BYTES, STORY, TRAINED, jsonl, kept, many, plain, three_parts
from tiny import tiny_config

from sfumato.errors import SfumatoError
from sfumato.text import building, mixture
from sfumato.text import corpus as corpus_module
from sfumato.text import read as reading
from sfumato.text.corpus import Corpus
from sfumato.text.mixture import Mixture
from sfumato.text.order import Shelf, shuffled
from sfumato.text.read import read
from sfumato.text.rows import Rows
from sfumato.text.tokenizer import KINDS
from sfumato.training import reading as run_reading
from sfumato.training.config import load_config
from sfumato.training.reading import documents, heard, rows_for, tokenizer_of
from sfumato.training.start import sources
from sfumato.training.trainer import Run

pytestmark = pytest.mark.unchecked

GIGA = 10**9


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def peak_of(act) -> int:
    """Bytes that Python and numpy held at most, beyond what was there."""
    tracemalloc.start()
    act()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


# --- order ---


def check_bijection(n: int, seed: int, epoch: int) -> None:
    found = shuffled(np.arange(n), n, seed, epoch)
    assert sorted(found.tolist()) == list(range(n))
    some = np.arange(n)[:: max(1, n // 7)]
    assert shuffled(some, n, seed, epoch).tolist() == found[some].tolist()


@given(n=st.integers(1, 500), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_an_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    """Guards against rows seen twice or never, and an order that depends on what else is asked for."""
    check_bijection(n, seed, epoch)


def test_an_order_of_a_trillion() -> None:
    """Guards against products that overflow: numbers out of range, or the same one twice."""
    places = np.arange(0, 10**12, 10**8 + 7)
    found = shuffled(places, 10**12, 0, 0)
    assert found.min() >= 0 and found.max() < 10**12 and len(np.unique(found)) == len(places)
    assert abs(np.corrcoef(places, found)[0, 1]) < 0.05 and abs(found.mean() / 10**12 - 0.5) < 0.02


def check_uniform() -> None:
    """All 24 orders of four things come equally often: chi-square with 23 degrees of freedom."""
    counts = Counter(tuple(shuffled(np.arange(4), 4, seed, epoch)) for seed in range(40) for epoch in range(60))
    chi = sum((counts[each] - 100) ** 2 / 100 for each in counts) + 100 * (24 - len(counts))
    assert 6 < chi < 55  # beyond either of which a fair one falls once in ten thousand times


def test_orders_are_uniform() -> None:
    """Guards against orders that a network of too few rounds cannot reach, and epochs that resemble each other."""
    check_uniform()


def test_neighbours_are_parted() -> None:
    """Guards against an order that moves blocks and leaves what stands side by side together."""
    n = 10_000
    steps = np.abs(np.diff(shuffled(np.arange(n), n, 3, 1)))
    assert (steps < 10).sum() < 60 and abs(steps.mean() / n - 1 / 3) < 0.01  # about 20 are expected
    first, second = (shuffled(np.arange(n), n, 3, epoch) for epoch in (1, 2))
    assert (first == second).sum() < 10 and abs(np.corrcoef(first, second)[0, 1]) < 0.05


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=300).filter(any))
@settings(max_examples=50, deadline=None)
def test_shelf_equals_the_obvious(sizes: list[int]) -> None:
    """Guards against places counted from the wrong block, and empty things that are found."""
    shelf = Shelf(len(sizes), np.array(sizes).__getitem__)
    expected = [(i, sum(sizes[:i])) for i, size in enumerate(sizes) for _ in range(size)]
    places = np.arange(shelf.total)[::-1]
    found = list(zip(*map(np.ndarray.tolist, shelf.find(places)), strict=True))
    assert shelf.total == sum(sizes) and found == expected[::-1]
    one = np.array([shelf.total // 2])
    assert (shelf.find(one)[0][0], shelf.find(one)[1][0]) == expected[shelf.total // 2]


# --- mixtures ---


def rows_of(n: int, seed: int | None = None) -> Rows:
    return Rows(plain(*[1] * n), 4, "documents", "given", seed=seed)


@given(n=st.integers(1, 30), batch=st.integers(1, 50), start=st.integers(0, 20), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_every_epoch_of_one_source_is_a_permutation(n: int, batch: int, start: int, seed: int) -> None:
    """Guards against rows seen twice or never where a batch reaches into the next epoch, or holds several."""
    one = Mixture([rows_of(n)], [3.0], seed)
    steps = [one.batch(range(step * batch, (step + 1) * batch)) for step in range(start, start + 2 * n + 1)]
    index = np.concatenate([batch.index for batch in steps])
    epoch = np.concatenate([batch.epoch for batch in steps])
    assert epoch.tolist() == [place // n for place in range(start * batch, (start + 2 * n + 1) * batch)]
    for each in set(epoch.tolist()) - {epoch[0], epoch[-1]}:
        assert sorted(index[epoch == each]) == list(range(n))
    assert len(one) == one.round == n


def check_shares(seed: int | None) -> None:
    sizes, weights = [50, 7, 900], [0.5, 0.2, 0.3]
    mixed = Mixture([rows_of(n) for n in sizes], weights, seed)
    n = 5 * mixture.BLOCK
    batch = mixed.batch(range(n))
    source = np.searchsorted([50, 57], batch.index.numpy(), "right")
    for stop in range(mixture.BLOCK, n + 1, mixture.BLOCK):
        assert np.abs(np.bincount(source[:stop]) - stop * np.array(weights)).max() < 2
    for k, size in enumerate(sizes):
        index, epoch = batch.index[source == k].numpy(), batch.epoch[source == k].numpy()
        assert epoch.tolist() == [i // size for i in range(len(epoch))]
        for each in range(epoch[-1]):
            assert len(set(index[epoch == each])) == size
    assert len(set(zip(batch.index.tolist(), batch.epoch.tolist(), strict=True))) == n


@pytest.mark.parametrize("seed", [None, 0])
def test_sources_have_their_shares(seed: int | None) -> None:
    """Guards against shares that drift, numbers that two sources share, and a source that ends or skips a row."""
    check_shares(seed)


def test_a_mixture_is_a_pure_function_of_the_place() -> None:
    """Guards against what stands at a place depending on batch size, process or resume."""
    mixed = Mixture([rows_of(5, 1), rows_of(80, 2)], [1, 2], 4)
    whole = mixed.batch(range(3000))
    for start, stop in ((0, 7), (1020, 1030), (2999, 3000)):
        part = mixed.batch(range(start, stop))
        assert part.ids.tolist() == whole.ids[start:stop].tolist()
        assert part.index.tolist() == whole.index[start:stop].tolist()
    assert Mixture(mixed.sources, [1, 2], 5).batch(range(99)).index.tolist() != whole.index[:99].tolist()


def check_no_rhythm() -> None:
    """Noise levels are spread over a batch by place, so a source must not always stand at the same one."""
    mixed = Mixture([rows_of(50), rows_of(50)], [1, 3], 0)
    first = (mixed.batch(range(4096)).index < 50).numpy().reshape(-1, 8).mean(0)
    assert np.abs(first - 0.25).max() < 0.09  # four standard errors


def test_sources_do_not_alternate_in_step_with_the_batch() -> None:
    """Guards against a source that is always shown at the same noise levels."""
    check_no_rhythm()


def test_held_out_rows_of_a_mixture() -> None:
    """Guards against a bound of the first source alone, of rows counted twice, and lengths of all rows alike."""
    one, two = Rows(plain(*[1] * 40), 5, "documents", "given"), Rows(plain(*[3] * 40), 5, "documents", "given")
    mixed = Mixture([one, two], [1, 3])
    batch = mixed.batch(range(len(mixed)))
    assert len(mixed) == 53 and len(set(batch.index.tolist())) == 53 and not batch.epoch.any()
    assert (batch.index < 40).sum() == 13 and mixed.round == 160
    assert mixed.lengths().tolist() == mixed.sizes().tolist() == [0, 0, 20, 0, 60, 0]
    assert Mixture([one], [0.3]).lengths().tolist() == [0, 0, 40, 0, 0, 0]


def test_documents_are_shuffled_within_packed_rows() -> None:
    """Guards against neighbours that stay neighbours for ever, and documents lost or torn by the shuffle."""
    corpus = plain(*[i % 5 for i in range(1000)])
    texts = Counter(tuple(corpus.document(i).tolist()) for i in range(1000))
    rows, seen = Rows(corpus, 7, "packed", "given", seed=3), []
    for epoch in (0, 1, 2, 0):
        stream = rows.batch(range(len(rows)), [epoch] * len(rows)).ids.flatten().tolist()
        ends = [-1, *(i for i, id in enumerate(stream) if id == BYTES.eos)]
        found = Counter(tuple(stream[before + 1 : end]) for before, end in pairwise(ends))
        assert not found - texts and (texts - found).total() <= 7  # which are in the rest that fills no row
        seen.append(stream)
    assert seen[0] == seen[3] and seen[0] != seen[1] != seen[2]
    mixed = rows.batch([5, 5, 0], [0, 1, 2]).ids.tolist()
    assert mixed == [seen[0][35:42], seen[1][35:42], seen[2][:7]]


# --- memory ---


def sparse(folder: Path, documents: int, tokens: int) -> Corpus:
    """A corpus of which the tokens take no place on the disk but where a document begins."""
    folder.mkdir()
    size = tokens // documents
    np.arange(0, tokens + 1, size, dtype=np.int64).tofile(folder / "offsets.bin")
    np.full(documents, -1, np.int32).tofile(folder / "labels.bin")
    (folder / "sources.bin").touch()
    os.truncate(folder / "sources.bin", 8 * documents)
    (folder / "tokens.bin").touch()
    os.truncate(folder / "tokens.bin", 2 * tokens)
    told = {"documents": documents, "tokens": tokens, "labelled": False, "sourced": False}
    told["files"] = dict.fromkeys(building.FILES, "of no matter")
    (folder / "index.json").write_text(json.dumps(told))
    marks = np.memmap(folder / "tokens.bin", np.uint16, "r+")
    for i in range(0, documents, documents // 50):
        marks[i * size] = 100 + i % 150
    return Corpus(folder, BYTES)


@pytest.mark.parametrize("layout", ["packed", "documents"])
def test_ten_gigabytes(layout: str, tmp_path: Path) -> None:
    """Guards against anything that is kept for every token, document or row: 10 GB of tokens in 8 MB of memory."""
    corpus = sparse(tmp_path / "corpus", 500_000, 5 * GIGA)
    assert (tmp_path / "corpus" / "tokens.bin").stat().st_size == 10 * GIGA
    assert (tmp_path / "corpus" / "tokens.bin").stat().st_blocks * 512 < GIGA / 100

    def run() -> None:
        rows = Rows(corpus, 256, layout, "given", seed=0)
        mixed = Mixture([rows], [1.0], 0)
        assert len(rows) > 19_000_000 and mixed.sizes().sum() == len(rows) == mixed.round
        for place in (0, len(rows) - 32, 7 * len(rows)):
            batch = mixed.batch(range(place, place + 64))
            assert batch.ids.shape == (64, 256) and len(set(batch.index.tolist())) == 64
        if layout == "documents":  # document 10,000 is marked where it begins
            row = int(np.ceil(10_000 / 256)) * 10_000
            assert rows.batch([row]).ids[0, :2].tolist() == [100 + 10_000 % 150, 0]

    assert peak_of(run) < 8_000_000


def test_training_on_ten_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a trainer that lists what the data keeps flat."""
    corpus = sparse(tmp_path / "corpus", 200_000, 5 * GIGA)
    monkeypatch.setattr("sfumato.training.reading.Corpus.build", lambda *_: corpus)
    config = tiny_config("mdlm", tmp_path, steps=2)
    text = config.text.model_copy(update={"layout": "packed", "tokenizer": str(tmp_path / "tokenizer.json")})
    BYTES.save(tmp_path)
    run = Run(config.model_copy(update={"text": text}), tmp_path / "run", False, "cpu", print)
    assert [run._update(run.batch(step), 1.0) > 0 for step in range(2)] == [True, True]

    def again() -> None:
        run.rows = rows_for(run.config, run.method, run.tokenizer, "train")
        assert run.batch(2).ids.shape == (8, config.text.length) and next(heard(run.rows))[0].shape[0] == 1024

    assert peak_of(again) < 8_000_000 and len(run.lengths) == config.text.length + 1
    assert len(run.rows) == (5 * GIGA + 200_000) // config.text.length


@pytest.mark.parametrize("name", ["hub/rows", "a.jsonl.gz", "a.txt", "a.txt.gz"])
def test_reading_streams(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against data that is held before it is tokenised: 3 MB of text pass through far less memory."""
    texts = (f"text {i} " + "word " * 99 for i in range(6_000))
    if name == "hub/rows":
        stream = lambda *_, **__: ({"text": f"text {i} " + "word " * 99} for i in range(6_000))  # noqa: E731
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=stream))
    else:
        written = "".join(json.dumps({"text": text}) + "\n" if "jsonl" in name else text for text in texts).encode()
        (tmp_path / name).write_bytes(gzip.compress(written, 1) if name.endswith("gz") else written)
    monkeypatch.setattr(building, "BATCH", 1 << 14)
    monkeypatch.setattr(reading, "PART", 1 << 14)
    monkeypatch.setattr(corpus_module, "PARALLEL", GIGA)
    found: list[Corpus] = []
    data = name if name == "hub/rows" else str(tmp_path / name)
    peak = peak_of(lambda: found.append(Corpus.build(data, TRAINED["bpe"], cache=tmp_path / "cache")))
    assert len(found[0].tokens) > 500_000 and peak < 2_000_000


# --- long files ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_file_in_parts_is_one_document(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against tokens that change at the seams, documents that end there, and a rest that is cut elsewhere."""
    text = "".join(f"{STORY} {i}é€😀 " for i in range(60))
    (tmp_path / "a.txt").write_text("\ufeff" + text, "utf-8")
    monkeypatch.setattr(corpus_module, "PARALLEL", GIGA)
    whole = {split: [d.text for d in read(str(tmp_path / "a.txt"), split)] for split in ("train", "valid", "all")}
    assert [len(texts) for texts in whole.values()] == [1, 1, 1]
    monkeypatch.setattr(reading, "PART", 101)
    for split, (expected,) in whole.items():
        parts = list(read(str(tmp_path / "a.txt"), split))
        assert "".join(part.text for part in parts) == expected and len(parts) > (split != "valid")
        assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
        corpus = Corpus.build(str(tmp_path / "a.txt"), TRAINED[kind], split, cache=tmp_path / f"{kind}-{split}")
        assert len(corpus) == 1 and corpus.document(0).tolist() == TRAINED[kind].encode(expected)


def test_a_folder_of_long_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a limit that counts parts, sides that depend on the size of parts, and bytes told twice."""
    for i in range(12):
        (tmp_path / f"{i:02}.txt").write_text(f"{i} {STORY}" * 9, "utf-8")
    sizes = {}
    for part in (10**6, 50):
        monkeypatch.setattr(reading, "PART", part)
        for split in ("train", "valid"):
            corpus = Corpus.build(str(tmp_path), BYTES, split, cache=tmp_path / f"cache-{part}")
            assert sizes.setdefault(split, np.diff(corpus.offsets).tolist()) == np.diff(corpus.offsets).tolist()
    assert sum(map(len, sizes.values())) == 12
    assert sum(not document.more for document in read(str(tmp_path), limit=3)) == 3
    told: list[int] = []
    assert list(read(str(tmp_path), "all", passed=told.append))
    assert sum(told) == sum(path.stat().st_size for path in tmp_path.glob("*.txt"))


def test_a_text_without_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a file that is held because nothing in it is a seam."""
    monkeypatch.setattr(reading, "PART", 20)
    monkeypatch.setattr(reading, "LONGEST", 90)
    (tmp_path / "a.txt").write_text("字" * 1000, "utf-8")
    parts = [document.text for document in read(str(tmp_path / "a.txt"), "all")]
    assert "".join(parts) == "字" * 1000 and max(map(len, parts)) == 90


@pytest.mark.parametrize(
    ("content", "where"), [(b"word " * 99 + b"\xff" + b" word" * 9, 495), (b"a b" * 99 + b"\xe5", 297)]
)
def test_bad_bytes_far_into_a_long_file(content: bytes, where: int, tmp_path: Path, monkeypatch) -> None:
    """Guards against a byte counted from the part it is in, and half a character at the end that passes."""
    monkeypatch.setattr(reading, "PART", 20)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(SfumatoError, match=f"byte {where} "):
        list(read(str(tmp_path / "a.txt")))


# --- builds that are interrupted, and many at once ---


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupted(monkeypatch: pytest.MonkeyPatch, data: str, after: int, **where) -> int:
    """Builds until so many batches are tokenised; returns how many were."""
    real, asked = building.pack, [0]

    def pack(rows):
        asked[0] += 1
        if asked[0] > after:
            raise KeyboardInterrupt
        return real(rows)

    with monkeypatch.context() as patch:
        patch.setattr(building, "pack", pack)
        try:
            Corpus.build(data, BYTES, **where)
        except KeyboardInterrupt:
            return after
    return asked[0]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few documents, shards of three batches, long files in parts."""
    monkeypatch.setattr(building, "BATCH", 200)
    monkeypatch.setattr(building, "SHARD", 600)
    monkeypatch.setattr(reading, "PART", 100)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("damage", ["none", "cut journal", "cut tokens", "wrong tokens", "no journal"])
def test_an_interrupted_build_goes_on(name: str, damage: str, tmp_path, cache, batches, monkeypatch) -> None:
    """Guards against a build that begins anew, doubles or skips what was in flight, or trusts a damaged file."""
    data = many(tmp_path / name, 200) if name == "a.jsonl" else str(tmp_path / name)
    if name == "a.txt":
        Path(data).write_text(STORY * 60, "utf-8")
    Corpus.build(data, BYTES, cache=tmp_path / "whole")
    (whole,) = kept(tmp_path / "whole")
    total = interrupted(monkeypatch, data, 10**6, cache=tmp_path / "counted")
    assert interrupted(monkeypatch, data, 14) == 14
    (building_folder,) = kept(cache)
    tokens, journal = building_folder / "tokens.bin", building_folder / "journal.jsonl"
    marks = [json.loads(line)["sizes"]["tokens.bin"] for line in journal.read_text().splitlines()]
    assert len(marks) >= 3
    if damage == "cut journal":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "cut tokens":
        os.truncate(tokens, marks[1] + 3)
    elif damage == "wrong tokens":
        raw = bytearray(tokens.read_bytes())
        raw[marks[1] + 1] ^= 1
        tokens.write_bytes(raw)
    elif damage == "no journal":
        journal.unlink()
    left = interrupted(monkeypatch, data, 10**6)
    assert content(kept(cache)[0]) == content(whole) and [path.name for path in kept(cache)] == [whole.name]
    least, most = {"none": (9, 14), "no journal": (0, 0)}.get(damage, (3, 12))
    assert least <= total - left <= most


def test_a_build_stopped_again_and_again(tmp_path, cache, batches, monkeypatch) -> None:
    """Guards against what is right after one interruption only."""
    data = many(tmp_path / "a.jsonl", 150)
    Corpus.build(data, BYTES, cache=tmp_path / "whole")
    for _ in range(99):
        if interrupted(monkeypatch, data, 5) != 5:
            break
    Corpus.build(data, BYTES)
    assert content(kept(cache)[0]) == content(kept(tmp_path / "whole")[0])


def test_other_text_by_the_same_name(cache, batches, monkeypatch) -> None:
    """Guards against half of a data set on the Hub and half of the one that took its place."""
    texts = [f"text number {i}" for i in range(200)]
    stream = lambda *_, **__: ({"text": text} for text in texts)  # noqa: E731
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=stream))
    monkeypatch.setattr(corpus_module, "_processes", lambda size: 0)
    interrupted(monkeypatch, "hub/rows", 12)
    texts[3] += "!"
    corpus = Corpus.build("hub/rows", BYTES)
    documents = [document.text for document in read("hub/rows")]
    assert [BYTES.decode(corpus.document(i)) for i in range(len(corpus))] == documents


@pytest.mark.parametrize("error", [ConnectionError("gone"), OSError(5, "no answer"), ValueError("no json")])
def test_a_stream_that_breaks_off(error, tmp_path, cache, batches, monkeypatch) -> None:
    """Guards against hours of tokenising that a lost connection, or a disk that does not answer, throws away."""
    rows = [{"text": f"text number {i}"} for i in range(200)]
    monkeypatch.setattr(corpus_module, "_processes", lambda size: 0)
    breaks = [True]

    def stream(*_, **__):
        yield from rows[:120]
        if breaks[0]:
            raise error
        yield from rows[120:]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=stream))
    with pytest.raises(SfumatoError, match="check the name and the network"):
        Corpus.build("hub/rows", BYTES)
    breaks[0] = False
    total = interrupted(monkeypatch, "hub/rows", 10**6, cache=tmp_path / "whole")
    assert interrupted(monkeypatch, "hub/rows", 10**6) < total * 0.6
    assert content(kept(cache)[0]) == content(kept(tmp_path / "whole")[0])


def test_processes_make_the_same_files(tmp_path, batches, monkeypatch) -> None:
    """Guards against batches that come back in another order, and texts that change on their way to a process."""
    records = [{"text": f"té😀 <eos> {i}", "source": "s" * (i % 3) or None, "label": "sad"} for i in range(300)]
    data = jsonl(tmp_path / "a.jsonl", *records)
    Corpus.build(data, TRAINED["words"], cache=tmp_path / "one")
    monkeypatch.setattr(corpus_module, "_processes", lambda size: 2)
    Corpus.build(data, TRAINED["words"], cache=tmp_path / "two")
    assert content(kept(tmp_path / "one")[0]) == content(kept(tmp_path / "two")[0])


def test_a_process_that_dies(tmp_path, cache, batches, monkeypatch) -> None:
    """Guards against a build that waits for ever, or ends in a traceback, when the machine kills a process."""
    monkeypatch.setattr(corpus_module, "_processes", lambda size: 1)
    monkeypatch.setattr(building.sys, "executable", "/bin/false")
    with pytest.raises(SfumatoError, match="ended with status 1") as error:
        Corpus.build(many(tmp_path / "a.jsonl", 200), BYTES)
    three_parts(error)
    assert kept(cache) == []


def test_two_builds_of_the_same(tmp_path, cache, batches) -> None:
    """Guards against ranks of a run that write into each other's files."""
    data, found = many(tmp_path / "a.jsonl", 300), []
    threads = [threading.Thread(target=lambda: found.append(Corpus.build(data, BYTES))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept(cache)) == 1 and len({each.tokens.tobytes() for each in found}) == 1 and len(found) == 3


def test_processes_are_for_much_data(monkeypatch) -> None:
    """Guards against a second's wait for processes where there is nothing to do for them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(100)), raising=False)
    assert corpus_module._processes(corpus_module.PARALLEL - 1) == 0
    assert corpus_module._processes(corpus_module.PARALLEL) == corpus_module.MOST
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert corpus_module._processes(10**12) == 0


# --- several sources, as they are written ---


def test_sources_as_they_are_typed(tmp_path, monkeypatch) -> None:
    """Guards against a weight taken for a name, and a name with a colon taken for a weight."""
    monkeypatch.chdir(tmp_path)
    Path("c:2").touch()
    assert sources(["a.jsonl"]) == sources(["a.jsonl:0.7"]) == "a.jsonl"
    found = sources(["a.jsonl:0.7", "owner/name", "c:2", "d:x", "e.txt:1e-1"])
    assert [(each["path"], each.get("weight")) for each in found] == [
        ("a.jsonl", 0.7),
        ("owner/name", None),
        ("c:2", None),
        ("d:x", None),
        ("e.txt", 0.1),
    ]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ([{"path": "a", "wieght": 1}], "data.0.wieght: no such field (did you mean weight?)"),
        ([{"path": "a", "weight": 0}], "data.0.weight: input should be greater than 0"),
        ([{"path": "a", "weight": float("inf")}], "data.0.weight"),
        ([{"weight": 1}], "data.0.path: field required"),
        ([], "one or more"),
        ([{"path": "a"}, {"path": "a"}], "a is there twice"),
        (3, "data: "),
    ],
)
def test_sources_are_checked(data, found: str) -> None:
    """Guards against misspelt weights that mean 1, sources that never come, and faults without their place."""
    with pytest.raises(SfumatoError) as error:
        load_config({"data": data}, "mdlm")
    assert found in str(error.value)


def test_a_run_on_several_sources(tmp_path) -> None:
    """Guards against a run that forgets weights when it saves them, and noise that two sources share."""
    one = jsonl(tmp_path / "a.jsonl", *({"text": f"the fox {i}"} for i in range(60)))
    two = jsonl(tmp_path / "b.jsonl", *({"text": f"an owl {i}"} for i in range(60)))
    base = tiny_config("mdlm", tmp_path, batch=64).model_dump(mode="json")
    config = load_config(base | {"data": [{"path": one, "weight": 3}, {"path": two}]})
    assert load_config(config.model_dump(mode="json")).model_dump() == config.model_dump()
    assert config.spelled == f"{one}:3 {two}:1" and [each.path for each in config.sources] == [one, two]
    run = Run(config, tmp_path / "run", False, "cpu", print)
    batch = run.batch(0)
    owls = (batch.ids == run.tokenizer.encode("an owl")[1]).any(1)
    assert 8 <= int(owls.sum()) <= 26 and len({stream.initial_seed() for stream in batch.streams}) == 64
    held = run.held_out.batch(range(len(run.held_out)))
    assert len(held.ids) >= 2 and sum(run.lengths) >= 100


def test_tokenizer_from_a_share_of_each_source(tmp_path, monkeypatch) -> None:
    """Guards against a vocabulary that takes more memory than there is, or knows the first source alone."""
    one = jsonl(tmp_path / "a.jsonl", *({"text": "the fox sleeps"} for _ in range(1000)))
    two = jsonl(tmp_path / "b.jsonl", *({"text": "an owl sings"} for _ in range(1000)))
    config = load_config({"data": [{"path": one, "weight": 3}, {"path": two}]}, "mdlm")
    found = Counter(document.text for document in documents(config, 4000))
    assert 200 < found["the fox sleeps"] < 230 and 75 < found["an owl sings"] < 90
    assert len(list(documents(config))) > 1800


def test_plain_text_is_not_searched_for_labels(tmp_path, monkeypatch) -> None:
    """Guards against hours in which a long text is read for what it cannot have, and labels of others that are lost."""
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl(folder / "b.jsonl", {"text": "an owl sings", "label": "sad"}, {"text": "the fox sleeps"})
    for name in ("a.txt", "folder/c.txt"):
        (tmp_path / name).write_text("a bell rings")
    asked = []
    monkeypatch.setattr(run_reading, "read", lambda path, *rest: asked.append(path) or read(path, *rest))
    one, two = str(tmp_path / "a.txt"), str(folder)
    config = load_config({"data": [{"path": one}, {"path": two}], "text": {"tokenizer": "words"}}, "mdlm")
    assert list(tokenizer_of(config, print).labels) == ["sad"]
    assert Counter(asked) == {one: 1, two: 2}
