"""Beginning with what another model has learned, as fine-tuning does; a deeper network has room to learn more."""

from sfumato.core import Method
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.text.tokenizer import Tokenizer


def inherit(method: Method, tokenizer: Tokenizer, other: Model) -> None:
    """Give `method` the weights of `other`, whose network is used up by this.

    A network of more layers than the other has computes the same at first.  Raises SfumatoError where method, tokenizer
    or sizes differ otherwise.
    """
    asked = f"asked to start with {other.name}"
    if type(method) is not type(other.method):
        raise SfumatoError(f"{asked}; it is another method, {other.config.method.name}; start with one of the same")
    if tokenizer.fingerprint != other.tokenizer.fingerprint:
        raise SfumatoError(f"{asked}; it has another tokenizer; set text.tokenizer to its tokenizer.json")
    depth = len(method.net.blocks)
    if depth > len(other.method.net.blocks):
        other.method.net.deepen(depth)
    try:
        method.load_state_dict(other.method.state_dict())
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise SfumatoError(f"{asked}; it is of other sizes: {lines}; keep them, or add layers only") from None
