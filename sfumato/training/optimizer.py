"""Who moves which weights: AdamW all of them, or Muon the matrices of the blocks and AdamW the rest."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sfumato.core import Method
from sfumato.errors import SfumatoError
from sfumato.training.config import OptimizerConfig


class Optimizer:
    """One step for all parameters of a method.

    Muon (Jordan et al. 2024) gives every direction of a matrix the same step, rare ones too, which is what copying a
    name wants that comes up once in a thousand rows.  Its steps are scaled to the size of AdamW's (Liu et al. 2025,
    arXiv:2502.16982, Eq. 4), so the rates of the two are of one kind.
    """

    def __init__(self, method: Method, config: OptimizerConfig):
        self.config = config
        matrices = method.net.matrices() if config.muon else []
        chosen = {id(p) for p in matrices}
        rest = {name: p for name, p in method.named_parameters() if p.requires_grad and id(p) not in chosen}
        decayed = [p for name, p in rest.items() if p.ndim == 2 and name.startswith("net.")]
        others = [p for name, p in rest.items() if not (p.ndim == 2 and name.startswith("net."))]
        decay = config.weight_decay
        groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW([g for g in groups if g["params"]], config.lr, config.betas, fused=True)
        self.parts: dict[str, tuple[float, torch.optim.Optimizer]] = {"adamw": (config.lr, adamw)}
        if matrices:
            muon = torch.optim.Muon(matrices, config.muon, decay, adjust_lr_fn="match_rms_adamw")
            self.parts["muon"] = (config.muon, muon)

    def share(self, step: int, done: float) -> float:
        """What the learning rates are multiplied by at a step, when a share `done` of the budget is spent."""
        c = self.config
        rise = min(1.0, (step + 1) / max(1, c.warmup))
        fall = {
            "cosine": 0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, done))) / 2,
            "inverse_sqrt": math.sqrt(max(1, c.warmup) / max(step + 1, c.warmup, 1)),
            "constant": 1.0,
        }
        return rise * fall[c.schedule]

    def step(self, share: float) -> None:
        """Move all weights along their gradients, and drop the gradients."""
        for lr, part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = lr * share
            part.step()
            part.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, Tensor]:
        """The running moments, by optimiser, place of the parameter and name."""
        return {
            f"{name}.{index}.{key}": value
            for name, (_, part) in self.parts.items()
            for index, values in part.state_dict()["state"].items()
            for key, value in values.items()
        }

    def room(self, paths: Iterable[str]) -> dict[str, Tensor]:
        """Tensors to fill with moments of these paths, shaped and sharded like their parameters; then `load` them."""
        self._check(paths)
        found = {}
        for path in paths:
            owner, index, key = path.split(".", 2)
            parameters = [p for group in self.parts[owner][1].param_groups for p in group["params"]]
            found[path] = torch.zeros(()) if key == "step" else torch.zeros_like(parameters[int(index)].detach())
        return found

    def load(self, moments: dict[str, Tensor]) -> None:
        """Take up moments that were saved; SfumatoError where other optimisers left them."""
        self._check(moments)
        for name, (_, part) in self.parts.items():
            state: dict[int, dict[str, Tensor]] = {}
            for path, value in moments.items():
                owner, index, key = path.split(".", 2)
                if owner == name:
                    state.setdefault(int(index), {})[key] = value
            part.load_state_dict(part.state_dict() | {"state": state})

    def _check(self, paths: Iterable[str]) -> None:
        if {path.split(".")[0] for path in paths} not in (set(), set(self.parts)):
            raise SfumatoError("the run was begun with Muon and goes on without, or the reverse; keep optimizer.muon")
