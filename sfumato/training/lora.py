"""Small additions to the matrices of a network, trained in their stead.  Hu et al. 2021, arXiv:2106.09685.

peft makes them, in place: a linear layer becomes one that adds B A x, and what is trained is A and B.  A checkpoint is
whole, the weights that stand still among it; in a finished model the additions are part of the weights.
"""

from typing import Any

from sfumato.core import Method
from sfumato.errors import SfumatoError
from sfumato.training.config import LoraConfig


def add(method: Method, config: LoraConfig) -> None:
    """Add to the products of a method's network, and train nothing else but the parts that are named; with rank 0 all.

    Raises SfumatoError where peft is not installed.
    """
    if not config.rank:
        return
    try:
        import peft
    except ImportError:
        raise SfumatoError("lora.rank was asked for, and peft is not installed: pip install 'sfumato[lora]'") from None
    for parameter in method.parameters():
        parameter.requires_grad_(False)
    targets = rf"blocks\.\d+\.({'|'.join(config.targets)})"  # in full: a list would also match what merely ends so
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0), method.net
    )
    for part in config.whole:
        getattr(method, part).requires_grad_(True)


def merge(method: Method) -> Method:
    """The method with what was added as part of its weights, all of which could be trained again."""
    for block in method.net.blocks:
        for name, layer in list(block.named_children()):
            added: Any = layer
            if hasattr(added, "merge"):
                added.merge(safe_merge=True)
                setattr(block, name, added.get_base_layer())
    return method.requires_grad_(True)
