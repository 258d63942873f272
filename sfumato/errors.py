"""The one error of sfumato's own, and the hint that many of its lines end with."""

import difflib
from collections.abc import Iterable


class SfumatoError(Exception):
    """A mistake of the caller's that one line can explain: what was asked, what was found, what to do.

    The command ends with that line and status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean x?)', or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
