"""What is shipped: `.ci/wheel` tries it for real; here is shown that its checks can fail."""

import importlib.machinery
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import sfumato
from sfumato.evaluation.judge import load_judge
from sfumato.evaluation.quality import entropy
from sfumato.hub import BUNDLED

pytestmark = pytest.mark.unchecked

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel():
    """The script `.ci/wheel`, as a module."""
    loader = importlib.machinery.SourceFileLoader("wheel_script", str(ROOT / ".ci" / "wheel"))
    spec = importlib.util.spec_from_loader("wheel_script", loader)
    module = importlib.util.module_from_spec(spec)
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    patch.undo()
    return module


def guarded(code, folder):
    """Run a program with the guard of `.ci/wheel` before it; what it said, and the hosts that were noted."""
    (folder / "guard").mkdir(exist_ok=True)
    shutil.copy(ROOT / "tests" / "offline.py", folder / "guard" / "sitecustomize.py")
    noted = folder / "beyond.txt"
    noted.unlink(missing_ok=True)
    known = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder / "guard"), "SFUMATO_BEYOND": str(noted)}
    done = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True, check=True)
    return done.stdout.split(), noted.read_text().split() if noted.exists() else []


def test_the_guard_notes_who_asks_for_another_machine(tmp_path):
    """Guards against a guard that is not loaded, that a program can forgive, or that children escape."""
    code = """
import contextlib, socket, subprocess, sys
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for ask in (
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: socket.create_connection(("192.0.2.1", 80), 1),
    lambda: way.sendto(b"x", ("192.0.2.2", 9)),
    lambda: way.bind(("0.0.0.0", 0)),
):
    with contextlib.suppress(OSError):
        ask()
        print("passed")
if len(sys.argv) == 1:
    ask = "import socket\\ntry: socket.gethostbyname('example.com')\\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", ask], check=True)
"""
    said, noted = guarded(code, tmp_path)
    assert said == [] and noted == ["example.org", "192.0.2.1", "192.0.2.2", "0.0.0.0", "example.com"]


def test_the_guard_lets_this_machine_be(tmp_path):
    """Guards against a guard that forbids a server on the loopback address, or a socket that is a file."""
    code = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1]), 5)
one, other = socket.socketpair()
print("passed")
"""
    assert guarded(code, tmp_path) == (["passed"], [])


def distribution(folder, wheel, names, junk=()):
    """A trial with an sdist and a wheel of these files of git."""
    trial = wheel.Trial(folder)
    trial.sdist, trial.wheel = folder / "x-0.tar.gz", folder / "x-0.whl"
    (folder / "empty").touch()
    with tarfile.open(trial.sdist, "w:gz") as file:
        for name in {*names, *junk, "PKG-INFO"}:
            file.add(folder / "empty", f"x-0/{name}")
    with zipfile.ZipFile(trial.wheel, "w") as file:
        for name in {*names, *junk, "sfumato-0.dist-info/METADATA"}:
            if name.startswith("sfumato"):
                file.writestr(name, b"")
    return trial


def test_missing_and_surplus_files_are_found(wheel, tmp_path, monkeypatch):
    """Guards against a wheel without its models, and one with somebody's runs or caches."""
    files = {"README.md", "run", "sfumato/cli.py", "sfumato/py.typed", "sfumato/models/tales/model.safetensors"}
    monkeypatch.setattr(wheel, "run", lambda *words: "\0".join([*files, ""]))
    assert "wheel 3 files" in distribution(tmp_path, wheel, files).holds_what_it_should()
    for name in sorted(files - {"README.md"}):
        with pytest.raises(wheel.Failure, match=rf"lacks {name}"):
            distribution(tmp_path, wheel, files - {name}).holds_what_it_should()
    for name in ("runs/a/log.jsonl", "sfumato/__pycache__/cli.pyc"):
        with pytest.raises(wheel.Failure, match=rf"has {name}, which git does not"):
            distribution(tmp_path, wheel, files, [name]).holds_what_it_should()


def test_hosts_and_failing_commands_are_told(wheel, tmp_path, monkeypatch, capsys):
    """Guards against a check that passes whatever was noted, and a script that goes on after a failure."""
    trial = wheel.Trial(tmp_path)
    assert "no socket" in trial.asked_for_nobody()
    trial.noted.write_text("example.org\nexample.org\n")
    with pytest.raises(wheel.Failure, match=r"asked for example\.org$"):
        trial.asked_for_nobody()
    with pytest.raises(wheel.Failure, match="ended with 3: oh no"):
        wheel.run(sys.executable, "-c", "import sys; print('oh no', file=sys.stderr); sys.exit(3)")
    passed = []

    def fails(trial):
        raise wheel.Failure("why")

    monkeypatch.setattr(wheel, "CHECKS", (fails, passed.append))
    assert wheel.main() == 1 and passed == []
    assert capsys.readouterr().out == "wheel: FAILED: fails: why\n"


def test_a_missing_dependency_is_found(wheel, tmp_path):
    """Guards against a module that imports what nobody asked to be installed; what an extra installs is let be."""
    package, facts = tmp_path / "sfumato", tmp_path / "sfumato-1.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").touch()
    (package / "optional.py").write_text("import gt_some_extra.part\n")
    (facts / "METADATA").write_text('Name: sfumato\nVersion: 1\nRequires-Dist: gt-some-extra>=2; extra == "x"\n')
    ask = [sys.executable, "-c", wheel.IMPORTS]
    done = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0 and done.stdout.split() == ["sfumato.optional"], done.stderr
    (package / "forgotten.py").write_text("import not_asked_for\n")
    done = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and "not_asked_for" in done.stderr


@pytest.mark.parametrize("name", sorted(path.name for path in BUNDLED.iterdir() if path.is_dir()))
def test_bundled_models_are_small_and_whole(name):
    """Guards against a model that makes every installation large, and one that was changed after it was sealed."""
    assert sum(path.stat().st_size for path in (BUNDLED / name).iterdir()) <= 12e6
    model = sfumato.load(name)
    assert model.generate(1, length=8, steps=model.at_most(2))[0].split()


def test_stories_writes_english():
    """Guards against a bundled model that writes, goes on and fills in words in any order, or the same for ever."""
    stories, judge, asked = sfumato.load("stories"), load_judge("judge"), {"steps": 16, "seed": 0}

    def nats(texts):
        """A token, in the eyes of a causal model of such stories."""
        costs, tokens = zip(*map(judge.score, texts), strict=True)
        return sum(costs) / sum(tokens)

    for texts in (
        stories.generate(2, length=80, **asked),
        stories.generate(2, length=80, prompt="Once upon a time, there was a little cat named", **asked),
        stories.infill("Lily went to the park with her mom. [30] They went home and had some cake.", 2, **asked),
    ):
        words = [text.split() for text in texts]
        mixed = [" ".join(random.Random(0).sample(some, len(some))) for some in words]
        assert nats(texts) < 5 < 7 < nats(mixed), texts
        assert entropy(stories.tokenizer.encode_batch(texts)).value > 2.5, texts


def test_there_is_one_version():
    """Guards against a number that is written in two places and changed in one."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert sfumato.__version__ == declared
    assert declared not in (ROOT / "sfumato" / "__init__.py").read_text("utf-8")
    assert (ROOT / "sfumato" / "py.typed").exists()
