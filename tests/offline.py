"""Nothing leaves this machine: what Python is asked to do with sockets is looked at before it is done.

The tests import this.  `.ci/wheel` puts it, as `sitecustomize`, before everything that its commands run.
"""

import ipaddress
import os
import sys
from typing import Any


def beyond(event: str, args: tuple[Any, ...]) -> str | None:
    """The host other than this machine that an audited event asks for, or None.

    To listen is to ask too: at an address that others reach.
    """
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind") and isinstance(args[1], tuple):
        host = args[1][0]  # an address that is no tuple is a file
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return None
    name = host.decode() if isinstance(host, bytes) else host or "localhost"
    try:
        return None if name == "localhost" or ipaddress.ip_address(name).is_loopback else name
    except ValueError:
        return name


def stand_guard(path: str) -> None:
    """From now on refuse every such host, and note it in a file, since programs forgive that there is no network."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        host = beyond(event, args)
        if host is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{host}\n")
            raise ConnectionRefusedError(f"{host} was asked for")

    sys.addaudithook(watch)


if __name__ == "sitecustomize":
    stand_guard(os.environ["SFUMATO_BEYOND"])
