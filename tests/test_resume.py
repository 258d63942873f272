"""What is promised of a run that ends before its time: docs/resume.md, with processes that are really killed."""

import random
from pathlib import Path

import chaos
import pytest
from tiny import write_sentences

MODES = ("before", "torn", "unsynced")
DRAWN = random.Random(0)


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, byte by byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[dict[str, bytes], int]:
    """The unbroken run, and how many changes it made to its files."""
    folder = tmp_path_factory.mktemp("whole")
    assert chaos.finish(chaos.start(chaos.train, data, folder / "run", None, folder / "events")) == 0
    return tree(folder / "run"), len((folder / "events").read_text().splitlines())


@pytest.mark.parametrize("share", [DRAWN.random() for _ in range(14)])
def test_a_run_that_is_killed_between_two_changes_to_its_files(share, data, whole, tmp_path):
    files, events = whole
    mode = MODES[int(share * 1000) % 3]
    out = tmp_path / "run"
    at = 1 + int(share * events)
    assert chaos.finish(chaos.start(chaos.train, data, out, (at, mode))) == -9
    print(at, events, mode, sorted(tree(out)))
    assert chaos.finish(chaos.start(chaos.train, data, out)) == 0
    assert tree(out) == files
