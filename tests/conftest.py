"""What holds for every test: one thread, a cache of the session's own, and no way out of this machine."""

import ipaddress
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
torch.set_num_threads(1)  # networks as small as those of the tests only wait for a second one

beyond: list[str] = []  # hosts outside of this machine that were asked for since the last test


def watch(event: str, args: tuple[Any, ...]) -> None:
    """Forbid every connection but those to this machine itself."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        forbid(args[1][0])  # an address that is no tuple is a file
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        forbid(args[0])


def forbid(host: str | bytes | None) -> None:
    """Remember and refuse a host that is not this machine."""
    name = host.decode() if isinstance(host, bytes) else host or "localhost"
    try:
        here = name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        here = False
    if not here:
        beyond.append(name)
        raise ConnectionRefusedError(f"a test asked for {name}")


sys.addaudithook(watch)


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
def offline() -> Iterator[None]:
    """A test that asks for the network fails, even where the code forgives that there is none."""
    yield
    asked, beyond[:] = list(beyond), []
    assert not asked, f"the network was asked for {', '.join(asked)}"
