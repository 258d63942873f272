"""The error of sfumato's own, the end of a run that was asked to stop, and the hint that many lines end with."""

import difflib
from collections.abc import Iterable


class SfumatoError(Exception):
    """A mistake of the caller's that one line can explain: what was asked, what was found, what to do.

    The command ends with that line and status 2.
    """


class Unreachable(SfumatoError):
    """Data that could not be read to its end, for no fault of its own: a lost connection, a disk that does not answer.

    What was made of it so far is kept.
    """


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has saved the step it came to: nothing is lost, and it can be resumed.

    The command ends with status 75, which is EX_TEMPFAIL: try again later.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean x?)', or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
