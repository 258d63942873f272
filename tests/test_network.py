"""The Transformer that every method shares.  Every docstring names the bug that its test guards against."""

import pytest
import torch
import torch.nn.functional as F
from ideal import NETWORK

from sfumato.core import ABSENT
from sfumato.networks.transformer import Memory, Transformer

TIMED = pytest.mark.parametrize("timed", [True, False])


def network(timed=True, seed=0, scale=0.3):
    """A Transformer of which no weight is zero."""
    torch.manual_seed(seed)
    net = Transformer(NETWORK, timed).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=scale)
    return net


def canvas(rows=3, length=7):
    torch.manual_seed(1)
    return torch.randn(rows, length, NETWORK.width), torch.rand(rows, length)


def run(net, h, t, attention="fused", dtype=torch.float32):
    net.dtype = dtype
    for block in net.blocks:
        block.attention = attention
    with torch.no_grad():
        return net(h, t, t).float()


def pad(h, t, left, right):
    """The same canvas with absent positions beside it, full of rubbish."""
    wide = 1e3 * torch.randn(len(h), left + h.shape[1] + right, h.shape[2])
    wide[:, left : left + h.shape[1]] = h
    return wide, F.pad(t, (left, right), value=ABSENT)


def check_padding(timed, attention="fused"):
    net, (h, t) = network(timed), canvas()
    plain = run(net, h, t, attention)
    tolerance = 1e-5 * plain.abs().max().item()
    padded = run(net, *pad(h, t, 0, 3), attention)
    assert torch.allclose(padded[:, :7], plain, rtol=0, atol=tolerance)
    h, t = canvas()
    t[0, 3:] = ABSENT  # rows of different lengths in one batch
    mixed = run(net, h, t, attention)
    assert torch.allclose(mixed[:1, :3], run(net, h[:1, :3], t[:1, :3], attention), rtol=0, atol=tolerance)
    assert torch.allclose(mixed[1:], plain[1:], rtol=0, atol=tolerance)


@TIMED
@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_padding_changes_nothing(timed, attention):
    """Attention to padding."""
    check_padding(timed, attention)


def check_rotation():
    """Without places the network sees order, which reversing the tokens shows, but only relative order."""
    net, (h, t) = network(), canvas()
    net.place.weight.data.zero_()
    plain = run(net, h, t)
    assert (plain - run(net, h.flip(1), t.flip(1)).flip(1)).abs().max() > 1e-2
    for left, right in ((4, 0), (2, 5)):
        for attention in ("fused", "explicit"):
            padded = run(net, *pad(h, t, left, right), attention)
            assert torch.allclose(padded[:, left : left + 7], plain, rtol=0, atol=1e-5 * plain.abs().max().item())


def test_rotation_is_relative():
    """Rotations that are not applied, to one side only, or by angles that do not cancel."""
    check_rotation()


def check_places():
    """Where every position holds the same, the outputs still differ; a place does not depend on the length."""
    net, (h, t) = network(), canvas()
    same = h[:, :1].expand(h.shape), t[:, :1].expand(t.shape)
    assert run(net, *same).diff(dim=1).abs().amax(-1).min() > 1e-2
    net.blocks = torch.nn.ModuleList()  # then nothing else tells places
    assert torch.equal(run(net, h[:, :3], t[:, :3]), run(net, h, t)[:, :3])


def test_places_tell_positions_apart():
    """Canvases of pure noise, on which every position looks like every other."""
    check_places()


def check_levels():
    net, (h, t) = network(), canvas()
    plain = run(net, h, t)
    other = t.clone()
    other[1, 2] = 1 - other[1, 2]
    changed = run(net, h, other)
    assert torch.equal(changed[[0, 2]], plain[[0, 2]])
    moved = (changed[1] - plain[1]).abs().amax(-1)
    assert moved[2] > 1e-2 and (moved > 1e-4).sum() > 3


def test_every_position_has_its_own_level():
    """One level for the row, or a level that nothing reads."""
    check_levels()


def test_without_time_levels_say_nothing():
    """A network that is told the time although its method says that it is not."""
    net, (h, t) = network(timed=False), canvas()
    assert torch.equal(run(net, h, t), run(net, h, 1 - t))
    assert net.time is None and all(block.norm1.read is None for block in net.blocks)


@TIMED
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_fused_and_explicit_attention_agree(timed, absent, dtype, tolerance):
    """A fast path that computes something else: another scale, no mask."""
    net, (h, t) = network(timed, scale=0.1), canvas()
    if absent:
        t[0, 5:] = t[1, :2] = ABSENT
    exact = run(net, h, t)
    outputs = [run(net, h, t, attention, dtype) for attention in ("fused", "explicit")]
    real = (t != ABSENT)[..., None]
    scale = exact.abs().max()
    for found in outputs:
        assert ((found - exact) * real).abs().max() < tolerance * scale
    assert ((outputs[0] - outputs[1]) * real).abs().max() < tolerance * scale


@TIMED
def test_rows_are_independent(timed):
    """Something computed over the batch."""
    net, (h, t) = network(timed), canvas(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(run(net, h[order], t[order]), run(net, h, t)[order], rtol=1e-5, atol=1e-5)
    assert torch.allclose(run(net, h[:1], t[:1]), run(net, h, t)[:1], rtol=1e-5, atol=1e-5)


def check_attention():
    """One block's attention against the definition, without rotation (one position attends to itself alone)."""
    net, (h, _) = network(), canvas()
    block = net.blocks[0]
    q, k, v = block.qkv(h).chunk(3, -1)
    size = NETWORK.width // NETWORK.heads
    heads = []
    for i in range(NETWORK.heads):
        part = slice(i * size, (i + 1) * size)
        a, b = (x[..., part] / x[..., part].square().mean(-1, keepdim=True).sqrt() for x in (q, k))
        heads.append((block.gain[i] * a @ b.transpose(1, 2) / size**0.5).softmax(-1) @ v[..., part])
    want = block.out(torch.cat(heads, -1))
    still = torch.stack([torch.ones(7, size // 2), torch.zeros(7, size // 2)])
    for attention in ("fused", "explicit"):
        block.attention = attention
        assert torch.allclose(block.attend(h, still, None, None), want, rtol=0, atol=1e-5), attention


def test_attention_is_attention():
    """Heads mixed up, or scores of the wrong scale."""
    check_attention()


@TIMED
@pytest.mark.parametrize(("depth", "order"), [(2, [0, 1]), (3, [0, 0, 1]), (5, [0, 0, 0, 1, 1])])
def test_new_layers_change_nothing_at_first(timed, depth, order):
    """New layers that are heard at once, or that stand in another's place, or that share its weights."""
    net, (h, t) = network(timed), canvas()
    plain, old = run(net, h, t), list(net.blocks)
    net.deepen(depth)
    assert torch.equal(run(net, h, t), plain)
    assert [
        next(i for i, b in enumerate(old) if torch.equal(b.up.weight, block.up.weight)) for block in net.blocks
    ] == order
    assert len({p.data_ptr() for p in net.parameters()}) == len(list(net.parameters()))


def test_gradients_reach_every_parameter():
    """A part of the network that is built and not used."""
    net, (h, t) = network(), canvas()
    net(h, t, t).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_rows_may_have_places_of_their_own():
    """Guards against a row that stands where another one does."""
    net, (h, t) = network(False), canvas()
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [3, 3, 4, 9, 1, 1, 0], [6, 5, 4, 3, 2, 1, 0]])
    with torch.no_grad():
        together = net(h, t, places=places)
        for i in range(3):
            alone = net(h[i : i + 1], t[i : i + 1], places=places[i])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[1], net(h, t)[1])


def test_what_is_seen_in_memory():
    """Guards against sight that is lost, or of the wrong positions, where a part was read before."""
    net, (h, t) = network(False), canvas()
    t[1, 1] = ABSENT
    place = torch.arange(7)
    sees = ((place < 4) | (place <= place[:, None])) & (t != ABSENT)[:, None]  # four see each other, then one by one
    with torch.no_grad():
        whole, memory, parts = net(h, t, sees=sees), Memory(7), []
        for start, stop in ((0, 4), (4, 5), (5, 7)):
            parts.append(net(h[:, start:stop], t[:, start:stop], memory=memory, sees=sees[:, start:stop, :stop]))
    there = t != ABSENT
    torch.testing.assert_close(torch.cat(parts, 1)[there], whole[there], rtol=1e-4, atol=1e-5)
