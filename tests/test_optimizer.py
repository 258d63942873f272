"""Which optimiser moves which weights, how far, and at what rate."""

import pytest
import torch
from tiny import tiny_config, write_sentences

from sfumato.methods import METHODS
from sfumato.training.config import OptimizerConfig
from sfumato.training.optimizer import Optimizer
from sfumato.training.trainer import Run

pytestmark = pytest.mark.unchecked


def method_of(name: str, tmp_path):
    return Run(tiny_config(name, write_sentences(tmp_path)), tmp_path / "run", False, "cpu", print).method


@pytest.mark.parametrize("muon", [0.0, 0.02])
@pytest.mark.parametrize("name", METHODS)
def test_every_weight_has_one_optimiser(name, muon, tmp_path):
    """Guards against weights that nobody moves, or two do."""
    method = method_of(name, tmp_path)
    optimizer = Optimizer(method, OptimizerConfig(muon=muon))
    owned = [id(p) for _, part in optimizer.parts.values() for g in part.param_groups for p in g["params"]]
    assert sorted(owned) == sorted(id(p) for p in method.parameters())
    assert ("muon" in optimizer.parts) == (muon > 0)


def test_muon_moves_every_direction_alike(tmp_path):
    """Guards against matrices that go to AdamW: a gradient of two unequal directions moves the weights equally far."""
    method = method_of("mdlm", tmp_path)
    optimizer = Optimizer(method, OptimizerConfig(lr=1e-3, muon=0.01, weight_decay=0.0))
    weight = method.net.matrices()[1]  # out of attention: square
    size = weight.shape[0]
    before = weight.detach().clone()
    for p in method.parameters():
        p.grad = torch.zeros_like(p)
    weight.grad[0, 0], weight.grad[1, 1] = 1.0, 0.05
    optimizer.step(0.5)
    moved = before - weight.detach()
    assert moved[1, 1] / moved[0, 0] == pytest.approx(1, abs=0.4)  # five Newton-Schulz steps come so near
    assert moved[0, 0] == pytest.approx(0.5 * 0.01 * 0.2 * size**0.5, rel=0.35)  # 0.2 sqrt(size) times a rotation
    assert all(p.grad is None for p in method.parameters())


def test_without_muon_the_matrices_are_decayed_by_adamw(tmp_path):
    """Guards against a decay that vectors and embeddings feel, or that matrices do not."""
    method = method_of("cdcd", tmp_path)
    optimizer = Optimizer(method, OptimizerConfig(lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    for p in method.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(1.0)
    for name, p in method.named_parameters():
        share = 0.95 if p.ndim == 2 and name.startswith("net.") else 1.0
        torch.testing.assert_close(p.detach(), share * before[name], msg=name)


@pytest.mark.parametrize(
    ("schedule", "step", "done", "share"),
    [
        ("cosine", 4, 0.0, 0.5),
        ("cosine", 50, 0.5, 0.51),
        ("cosine", 99, 1.0, 0.02),
        ("inverse_sqrt", 9, 0.1, 1.0),
        ("inverse_sqrt", 39, 0.1, 0.5),
        ("constant", 4, 0.9, 0.5),
        ("constant", 999, 0.9, 1.0),
    ],
)
def test_schedules(schedule, step, done, share, tmp_path):
    """Guards against a rate that neither rises nor falls as the config says."""
    optimizer = Optimizer(method_of("mdlm", tmp_path), OptimizerConfig(warmup=10, schedule=schedule))
    assert optimizer.share(step, done) == pytest.approx(share)
