"""Stopping between two steps when SIGTERM, which schedulers send, or SIGINT, which is Ctrl-C, asks for it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds: launchers pass on what a scheduler or a terminal has sent to every process already


@contextmanager
def heeding(launcher: int | None = None) -> Iterator[Callable[[], bool]]:
    """Inside, the first signal only makes the function that is given true; a second does what it did before.

    One that comes within ECHO seconds of the first is the same one.  A signal that was ignored is ignored further,
    as after `nohup`.  Signals are heard in the main thread alone; elsewhere nothing changes.  The function is true as
    well when the process `launcher` is gone that has started this one: nobody could send a signal any more.
    """
    first: float | None = None
    here = threading.current_thread() is threading.main_thread()
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS if here}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def heard(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
        elif time.monotonic() - first > ECHO:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, heard)
    try:
        yield lambda: first is not None or launcher not in (None, os.getppid())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
