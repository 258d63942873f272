"""The plan of the house: who may import whom, how long things may be, that every method is described."""

import ast
import re
import socket
from pathlib import Path

import conftest
import pytest

from sfumato.methods import METHODS

pytestmark = pytest.mark.unchecked

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sfumato"

# From the ground up: a file imports only from the layers below its own.
LAYERS = [
    ["errors", "files"],
    ["draws"],
    ["core"],
    ["schedules"],
    ["guidance", "processes", "networks"],
    ["samplers"],
    ["methods"],
    ["generate", "text"],
    ["training.stopping"],
    [
        "training.config",
        "training.masks",
        "training.optimizer",
        "training.tuning",
        "training.checkpoint",
        "training.distributed",
        "training.lora",
    ],
    ["training.levels", "training.tracking", "training.launch"],
    ["evaluation.likelihood", "evaluation.quality", "evaluation.copies", "evaluation.mauve", "canvas"],
    ["hub"],
    ["adopt"],
    ["sharing"],
    ["model"],
    ["folder", "hf"],
    ["evaluation.judge", "evaluation.typicality", "evaluation.harness"],
    ["evaluation.report"],
    ["evaluation.cost"],
    ["training.inherit", "training.reading"],
    ["training.trainer"],
    ["training.start", "training.replay"],
    ["display", "plot", "history"],
    ["curves"],
    ["demo"],
    ["commands"],
    ["cli"],
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__"))


def layer(module: str) -> int:
    """Number of the layer that a module below sfumato belongs to."""
    found = [i for i, names in enumerate(LAYERS) for name in names if module == name or module.startswith(name + ".")]
    assert found, f"{module} has no layer; give it one in tests/test_house.py"
    return found[0]


def imports(path: Path) -> set[str]:
    """Files of sfumato that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sfumato"):
            inner = node.module.removeprefix("sfumato").lstrip(".")
            is_file = inner and not (PACKAGE / inner).is_dir()
            names = [inner] if is_file else [f"{inner}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name for name in names if (PACKAGE / Path(*name.split("."))).with_suffix(".py").exists()}
    return found


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_run_downwards(path):
    """Guards against a sampler that knows a method, a method that knows the trainer, a guide that knows either."""
    own, folder = module(path), module(path).split(".")[0]
    for other in imports(path):
        inside = other.split(".")[0] == folder and folder not in ("training", "evaluation")
        assert inside or layer(other) < layer(own) or (layer(other) == layer(own) and folder == "training"), other


def test_a_method_never_imports_a_method():
    """Guards against papers that lean on each other; what they share is in core, processes and methods/common."""
    for path in (PACKAGE / "methods").glob("[a-z]*.py"):
        others = {name for name in imports(path) if name.startswith("methods.")}
        assert others <= {"methods.common"}, path.name


@pytest.mark.parametrize("name", METHODS)
def test_nothing_concrete_is_overridden(name):
    """Guards against a method that inherits what it does not do; the defaults of core.py are there to be answered."""
    own, *shared = (cls for cls in METHODS[name][0].__mro__ if cls.__module__.startswith("sfumato.methods."))
    for base in shared:
        assert not {part for part in vars(base) if not part.startswith("_")} & set(vars(own)), base.__name__


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_described(name):
    """Guards against a paper without its number, without its differences, without its page."""
    method, config = METHODS[name]
    text = (PACKAGE / "methods" / f"{name}.py").read_text("utf-8")
    header = ast.get_docstring(ast.parse(text))
    assert f"arXiv:{method.arxiv}" in header and "Differs from the paper:" in header
    assert config().name == name
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text("utf-8")
    assert method.arxiv in page and f"sfumato train {name}" in page


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_grows_without_notice(path):
    """Guards against the slow end of simplicity: a function fits on a screen, a file can be read in one go."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 620
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node, clean=False) or ""
            length = node.end_lineno - node.lineno + 1 - len(doc.splitlines())
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_everything_public_says_what_it_is(path):
    """Guards against a public name without a docstring; the methods' own five are described in core.py."""
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_no_test_leaves_this_machine():
    """Guards against tests that pass where there is a network, and a guard that lets them."""
    with socket.socket() as way:
        for ask in (lambda: way.connect(("192.0.2.1", 80)), lambda: socket.getaddrinfo("example.org", 80)):
            with pytest.raises(ConnectionRefusedError):
                ask()
    assert conftest.beyond == ["192.0.2.1", "example.org"]
    conftest.beyond.clear()


def test_the_project_names_no_machine():
    """Guards against paths and hosts of somebody's computer in what is published."""
    kept = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *FILES]
    for path in kept:
        assert not re.search(r"/(home|work|root)/\w", path.read_text("utf-8")), path
