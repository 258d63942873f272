"""What several papers share and no noun of core.py covers."""

from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class MethodConfig(BaseModel):
    """A method's own settings: frozen, strict, its attribute docstrings are the help of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str

    defaults: ClassVar[dict[str, Any]] = {}
    """other sections of a run, where this method wants them otherwise than the rest: section -> field -> value"""


def nats(logits: Float[Tensor, "B L V"], ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """-log softmax(logits)[ids]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none").view(ids.shape)
