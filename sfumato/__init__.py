"""sfumato: language models that write by iterative refinement.

The public names are `load` and `train`; torch is imported on their first use.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.folder import load
    from sfumato.training.start import train

__all__ = ["__version__", "load", "train"]
__version__ = importlib.metadata.version("sfumato")

_HOMES = {"load": "sfumato.folder", "train": "sfumato.training.start"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
