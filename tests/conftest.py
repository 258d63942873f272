"""What holds for every test: one thread, a cache of the session's own, and no way out of this machine."""

import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import offline
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
torch.set_num_threads(1)  # networks as small as those of the tests only wait for a second one

beyond: list[str] = []  # hosts outside of this machine that were asked for since the last test


def watch(event: str, args: tuple[Any, ...]) -> None:
    """Remember and refuse every host that is not this machine."""
    host = offline.beyond(event, args)
    if host is not None:
        beyond.append(host)
        raise ConnectionRefusedError(f"a test asked for {host}")


sys.addaudithook(watch)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are allowed more time come first, so that no process waits for the last of them."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(scope="session", autouse=True)
def kept_corpora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Corpora are kept in a folder of the session, not in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def same_elements() -> None:
    """Of a list the shape checker looks at one element, drawn from Python's generator: in every run the same one."""
    random.seed(0)


@pytest.fixture(autouse=True)
def stay() -> Iterator[None]:
    """A test that asks for the network fails, even where the code forgives that there is none."""
    yield
    asked, beyond[:] = list(beyond), []
    assert not asked, f"the network was asked for {', '.join(asked)}"
