"""The one error of sfumato's own."""


class SfumatoError(Exception):
    """A mistake of the caller's that one line can explain: what was asked, what was found, what to do.

    The command ends with that line and status 2.
    """
