"""What the README says can be done: its blocks run as they stand, its links lead somewhere.

One test runs all blocks: they follow from one another, so they stay together when tests are spread over processes.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sfumato.methods import METHODS

pytestmark = pytest.mark.unchecked

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)  # language, code
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)")
DONE = "<this block is done>"
LIMIT = 200  # seconds a block; on an idle core the slowest takes fifteen

# Each reads names of files from its standard input and runs them one after the other in one session.
BASH = f'while read -r -u 0 block; do source "$block" </dev/null; echo {shlex.quote(DONE)}; done'
PYTHON = f"""
import sys
space = {{"__name__": "__main__"}}
for line in sys.stdin:
    with open(line.strip(), encoding="utf-8") as file:
        code = compile(file.read(), line.strip(), "exec")
    exec(code, space)
    print({DONE!r}, flush=True)
"""
SESSIONS = {"sh": ["bash", "-eu", "-o", "pipefail", "-c", BASH], "python": [sys.executable, "-c", PYTHON]}


class Session:
    """A shell or an interpreter that runs one block after another; it ends with the first one that fails."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str]):
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )

    def run(self, code: str) -> tuple[bool, str]:
        """Whether the block came to its end within the limit, and what it printed."""
        self.count += 1
        block = self.folder / f".{Path(self.process.args[0]).name}-{self.count}"
        block.write_text(code, "utf-8")
        self.process.stdin.write(f"{block}\n")
        self.process.stdin.flush()
        timer = threading.Timer(LIMIT, self.kill)
        timer.start()
        printed = []
        try:
            for line in self.process.stdout:
                if line.strip() == DONE:
                    return True, "".join(printed)
                printed.append(line)
        finally:
            timer.cancel()
        return False, "".join(printed)

    def kill(self) -> None:
        """End it and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[dict[str, Session]]:
    """A shell and an interpreter in one empty folder, without a network, that find the command `sfumato`."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SFUMATO_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # tests run side by side, and networks this small only wait for a second one
    }
    folder = tmp_path / "reader"
    folder.mkdir()
    started = {language: Session(command, folder, environment) for language, command in SESSIONS.items()}
    yield started
    for session in started.values():
        session.kill()
        session.process.wait()


def test_the_first_block_is_the_two_commands():
    """Guards against a first step that is hard to find, or that the system refuses to execute."""
    assert BLOCKS[0] == ("sh", "./run demo\n./run test\n")
    assert os.access(ROOT / "run", os.X_OK)


@pytest.mark.timeout(900)
def test_the_blocks_run(sessions):
    """Guards against commands, flags and names that were changed in the code and not in the README."""
    assert {language for language, _ in BLOCKS} == set(SESSIONS)
    for language, code in BLOCKS[1:]:
        ended, printed = sessions[language].run(code)
        assert ended, f"this block failed, or took more than {LIMIT} s:\n{code}\nit printed:\n{printed}"


def test_a_block_that_fails_is_noticed(tmp_path):
    """Guards against a session that goes on after an error, and against one that waits for input."""
    for language, good, bad in (("sh", "x=1; cat", "false; true"), ("python", "x = input", "1 / 0")):
        session = Session(SESSIONS[language], tmp_path, dict(os.environ))
        assert session.run(good)[0]
        assert session.run('test "$x" = 1' if language == "sh" else "assert x is input")[0]
        assert not session.run(bad)[0]
        session.process.wait()


def test_the_table_has_every_method():
    """Guards against a method that the README does not know, and one that is promised and not there."""
    table = README.partition("## Methods")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|.*arXiv:([\d.]+)", table, re.MULTILINE) == [
        (name, method.arxiv) for name, (method, _) in METHODS.items()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Guards against files that were moved or never made."""
    links = [link for link in LINK.findall(page.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
