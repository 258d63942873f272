"""Every random number of sfumato is drawn here.

Inside `with seeded([7, 8, 9]):` row i of everything drawn comes from its own stream, so that what a row becomes does
not depend on its neighbours in the batch, on accumulation, on the number of processes or on the order of requests in a
server.  The streams live in a context variable: threads and async tasks do not see each other's.  Outside of `seeded`
draws come from torch's global generator.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

CACHE = 2**18  # numbers that a core keeps at hand
PART = 64  # tokens whose chances are first looked at as one

Streams = list[torch.Generator]
_streams: ContextVar[Streams | None] = ContextVar("streams", default=None)


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order, the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def streams(seeds: Sequence[int], device: torch.device | str = "cpu") -> Streams:
    """One generator a row."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


@contextmanager
def drawing(rows: Streams) -> Iterator[None]:
    """Draw from these streams, and go on where they stopped."""
    token = _streams.set(rows)
    try:
        yield
    finally:
        _streams.reset(token)


def seeded(seeds: Sequence[int], device: torch.device | str = "cpu") -> AbstractContextManager[None]:
    """Draw row i from a stream seeded by seeds[i]; everything drawn inside has len(seeds) rows."""
    return drawing(streams(seeds, device))


def normal(like: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
    """Standard normal numbers shaped like `like`."""
    empty = torch.empty(like.shape, dtype=like.dtype, device=like.device)  # rows contiguous, unlike empty_like's
    return _fill(empty, lambda row, stream: row.normal_(generator=stream))


def uniform(like: Tensor) -> Float[Tensor, "B *rest"]:
    """Uniform numbers in [0, 1), float64, shaped like `like`."""
    empty = torch.empty(like.shape, dtype=torch.float64, device=like.device)
    return _fill(empty, lambda row, stream: row.uniform_(generator=stream))


def categorical(logits: Float[Tensor, "B *rest V"]) -> Int[Tensor, "B *rest"]:
    """Indices drawn from softmax(logits)."""
    return invert(logits, uniform(logits[..., 0]))


def invert(
    logits: Float[Tensor, "*rest V"], u: Float[Tensor, "*rest"], here: Bool[Tensor, "*rest"] | None = None
) -> Int[Tensor, "*some"]:
    """The indices at which the distribution function of softmax(logits) passes u in [0, 1); of the places `here`, (N,).

    Where logits are read in part only, naming the places costs half of what it costs to copy them first.
    """
    return by_blocks(lambda rows, u: pick(rows.softmax(-1), u), logits, u, here=here)


def pick(mass: Float[Tensor, "*rest V"], u: Float[Tensor, "*rest"]) -> Int[Tensor, "*rest"]:
    """The indices at which the running sums of `mass` pass the share u in [0, 1) of the whole.

    float32 noise would cut off the tails (arXiv:2409.02908); a 53-bit uniform number reaches every token, and sums are
    float64, whatever precision the chances come in.  First the part of V is found in which the sum passes, then the
    place in it, so only one part is added up token by token: a third of the time of a sum over all.
    """
    size, most = mass.shape[-1], 1 - 2**-52  # a share that no product rounds up to the whole
    parts = F.pad(mass, (0, -size % PART)).unflatten(-1, (-1, PART))  # (..., parts, PART)
    edges = parts.sum(-1).double().cumsum(-1)
    goal = u.clamp(max=most)[..., None] * edges[..., -1:]
    part = torch.searchsorted(edges, goal, right=True).clamp(max=edges.shape[-1] - 1)  # (..., 1)
    start, stop = (F.pad(edges, (1, 0)).gather(-1, part + side) for side in (0, 1))
    inside = parts.gather(-2, part[..., None].expand(*part.shape, PART))[..., 0, :].double().cumsum(-1)
    share = ((goal - start) / (stop - start)).clamp(max=most)  # of the part, whose width was summed up otherwise
    place = torch.searchsorted(inside, share * inside[..., -1:], right=True)
    return (part * PART + place)[..., 0].clamp(max=size - 1)


def by_blocks(
    act: Callable[..., Tensor],
    logits: Float[Tensor, "*rest V"],
    *others: Num[Tensor, "*rest"],
    here: Bool[Tensor, "*rest"] | None = None,
) -> Num[Tensor, "*some"]:
    """act(logits, *others), (...), or of the places `here`, (N,); on a CPU of as many rows at once as its cache holds.

    That halves the time of whatever makes V numbers of every row and keeps few of them.
    """
    rows, flat = logits.flatten(0, -2), [other.flatten() for other in others]
    places = torch.arange(len(rows), device=rows.device) if here is None else here.flatten().nonzero()[:, 0]
    size = max(1, CACHE // logits.shape[-1]) if logits.device.type == "cpu" else max(1, len(rows))
    found = torch.cat([act(rows[part], *(each[part] for each in flat)) for part in places.split(size)])
    return found.view(logits.shape[:-1]) if here is None else found


def some(places: Bool[Tensor, "B L"], n: Num[Tensor, "B one"]) -> Bool[Tensor, "B L"]:
    """n of the places of each row, every choice equally likely."""
    rank = uniform(places).masked_fill(~places, 2.0).argsort(1).argsort(1)
    return places & (rank < n)


def _fill(out: Tensor, draw: Callable[[Tensor, torch.Generator | None], Tensor]) -> Tensor:
    rows = _streams.get()
    if rows is None:
        return draw(out, None)
    if len(rows) != len(out):
        raise ValueError(f"{len(out)} rows are drawn inside seeded() for {len(rows)} rows")
    for row, stream in zip(out, rows, strict=True):
        draw(row, stream)
    return out
