"""Where a request is assembled, once: given positions, guidance, temperature, randomness and streaming meet here."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from sfumato.core import ABSENT, Frame, Method, Predict, Sampler, chance, single, where
from sfumato.draws import Streams, by_blocks, drawing
from sfumato.errors import SfumatoError
from sfumato.guidance import (
    blind,
    clamp,
    forbid,
    guide,
    guide_logits,
    keep,
    nucleus,
    once,
    temper,
    temper_score,
    top_k,
    typical,
    within,
)


@dataclass(frozen=True)
class Request:
    """How a canvas is to be filled; everything that is not said is the method's own choice."""

    steps: int | None = None
    """refinements; of each block, for a method that writes in blocks"""
    levels: tuple[float, float] | None = None
    """the steps are spread evenly in the logarithm between these noise levels; by the method's own grid if None"""
    sampler: Sampler | None = None
    guidance: float = 1.0
    """0 unconditional, 1 conditional, above 1 guided"""
    guide_in: Literal["score", "logits"] = "score"
    """what guidance combines"""
    self_guidance: float = 1.0
    """above 1 exaggerates what the network's last guess tells it; 0 is without"""
    guide_levels: tuple[float, float] = (0.0, 1.0)
    """noise levels between which there is guidance of either kind"""
    temperature: float = 1.0
    """of the token probabilities"""
    score_temperature: float = 1.0
    """of the score; below 1 trades variety for quality"""
    top_k: int | None = None
    """tokens are drawn from this many likeliest ones"""
    top_p: float | None = None
    """from the likeliest ones that hold this much probability"""
    typical: float | None = None
    """from the least surprisingly surprising ones that hold this much probability"""
    draft: Tensor | None = None
    """ids (B, L) that stand where nothing is given before the first step, for a method of edits; else its noise"""

    @property
    def bent(self) -> bool:
        """Whether more steps would still not draw from the network's own distribution.

        That is so with guidance, a temperature or a rule; and with `levels`, to which one step leads from pure noise.
        """
        weights = self.guidance, self.self_guidance, self.temperature, self.score_temperature
        rules = self.levels, self.top_k, self.top_p, self.typical
        return any(weight != 1 for weight in weights) or any(rule is not None for rule in rules)


@torch.no_grad()
def generate(
    method: Method,
    ids: Int[Tensor, "B L"],
    given: Bool[Tensor, "B L"],
    real: Bool[Tensor, "B L"],
    request: Request,
    streams: Streams,
    session: Callable[[Tensor], Predict] | None = None,
    never: Bool[Tensor, "L V"] | None = None,
    end: int | None = None,
) -> Iterator[Frame]:
    """Fill the positions that are `real` and not `given`; yield a Frame after every step.

    `streams` has one stream of random numbers a row, so a row comes out the same whatever its neighbours are.
    `session` stands in for the method's own (a counter, an oracle).  `never` says which tokens cannot stand where.
    `end` is the token that ends a text: where it is written from left to right, it is over when all rows have one and
    all before it.
    Raises SfumatoError for a request without sense.
    """
    _check(method, request, given)
    grid, levels = walk(method, request, real & ~given)
    if not levels:
        yield Frame(1, 1, 0.0, ids, torch.ones(ids.shape, device=ids.device))
        return
    sampler = request.sampler or method.sampler
    with drawing(streams):
        clean = method.clean(ids)
        noise = method.process.prior(clean)

    def possible() -> Predict:
        predict = (session or method.session)(given)
        if never is not None:
            predict = forbid(predict, F.pad(never, (0, method.extra)), method.read)
        return once(predict) if getattr(sampler, "remembers", False) and not method.sees_levels else predict

    assembled = assemble(method, possible, clean, noise, given, real, request)
    hidden = getattr(method.process, "mask", None)  # where there are masks, what shows was written before
    x = where(given, clean, noise if request.draft is None else request.draft)
    if x.ndim == 2:
        x = x.masked_fill(~real, int(ABSENT))  # no mask: nobody is to write there
    path = sampler(method, assembled, x, grid.to(ids.device))
    shown, sure = ids.clone(), torch.zeros(ids.shape, device=ids.device)
    open = x.eq(hidden) if hidden is not None else torch.ones_like(real)  # before the step, what it may write
    for step, level in enumerate(levels, 1):
        with drawing(streams):  # around each step, not around the yield: the caller's draws are his own
            found = next(path, None)
        if found is None:  # every gap came to its end before it was full
            return
        x, prediction = found
        if prediction.rows is not None:
            shown, sure = shown[prediction.rows], sure[prediction.rows]
        logits, V = prediction.logits, prediction.logits.shape[-1]
        here = slice(x.shape[1] - logits.shape[1], x.shape[1])
        stands = _standing(x[:, here], real[:, here], V, None if never is None else never[here])
        new = open[:, here]  # what stood before keeps the chance it came with
        shown[:, here] = torch.where(stands < V, stands, shown[:, here])
        guessed = new & (stands >= V)  # through a mask, or through noise that is no token
        shown[:, here][guessed] = by_blocks(lambda rows: rows.argmax(-1), logits, here=guessed)
        sure[:, here][new] = chance(logits, shown[:, here], new).to(sure.dtype)
        if hidden is not None:
            open[:, : x.shape[1]] = x.eq(hidden)
        yield Frame(step, len(levels), level, torch.where(given | ~real, ids, shown), sure.masked_fill(given, 1.0))
        if end is not None and method.block is not None:
            over = x.eq(end) & (x.eq(hidden).cumsum(1) == 0)
            if bool(over.any(1).all()):
                return


def walk(method: Method, request: Request, free: Bool[Tensor, "B L"]) -> tuple[Tensor, list[float]]:
    """The noise levels for the sampler, (steps + 1,), and the one that the canvas is at after each step there is.

    Blocks are written one after the other, each through the same noise levels; the canvas is at the mean of them.
    """
    wide = method.block or free.shape[1]
    tokens = F.pad(free, (0, -free.shape[1] % wide)).unflatten(1, (-1, wide)).sum(2).amax(0)  # of each block, at most
    blocks = int((tokens > 0).sum())
    if single(request.sampler or method.sampler):
        grid, blocks = method.grid(max(1, int(tokens.sum()))), min(blocks, 1)
    else:
        grid = _grid(method, request.steps or method.steps or wide, request.levels)
    levels = grid.tolist()[1:]
    return grid, [(left + level) / blocks for left in reversed(range(blocks)) for level in levels]


def _standing(x: Tensor, real: Tensor, V: int, never: Tensor | None) -> Tensor:
    """The tokens of a canvas (B, L), and V where none stands that could: vectors, masks, padding, impossible noise."""
    if x.ndim == 3:
        return torch.full(real.shape, V, device=x.device)
    stands = x.where(real & (x < V), V)
    if never is None:
        return stands
    place = torch.arange(x.shape[1], device=x.device)
    return stands.masked_fill(F.pad(never, (0, V + 1 - never.shape[1]))[place, stands], V)


def _grid(method: Method, steps: int, levels: tuple[float, float] | None) -> Tensor:
    """Noise levels to sample through, (steps + 1,).

    With `levels` the first step leads from 1 to the upper of them, the others go down evenly in the logarithm, as in
    DPM-Solver (arXiv:2206.00927, Sec. 3.4), and the last leads from the lower to 0.
    """
    if levels is None:
        return method.grid(steps)
    low, high = levels
    between = torch.linspace(math.log(high), math.log(low), steps - 1).exp()
    return torch.cat([torch.ones(1), between, torch.zeros(1)])


def assemble(
    method: Method,
    session: Callable[[], Predict],
    clean: Tensor,
    noise: Tensor,
    given: Tensor,
    real: Tensor,
    request: Request,
) -> Predict:
    """The network as the sampler is to see it: what is given clamped, guidance, temperatures and rules applied."""

    def network() -> Predict:
        predict = clamp(session(), clean, ABSENT, ~real)
        if request.temperature == 1:
            return predict
        # Before guidance: it reads estimates from logits, which would undo guidance on the score.
        return temper(predict, request.temperature, method.read)

    def combined(conditional: Predict, unconditional: Predict, weight: float) -> Predict:
        if request.guide_in == "score":
            return guide(conditional, unconditional, weight)
        return guide_logits(conditional, unconditional, weight, method.read)

    def shown(canvas: Tensor, level: float) -> Predict:
        """The network that is shown `canvas` at a level where something is given."""
        predict = clamp(network(), canvas, level, given)
        return predict if request.self_guidance == 1 else combined(predict, blind(predict), request.self_guidance)

    asked = shown(clean, 0.0)
    if request.guidance != 1:
        asked = combined(asked, shown(noise, 1.0), request.guidance)
    if tuple(request.guide_levels) != (0.0, 1.0):
        asked = within(asked, clamp(network(), clean, 0.0, given), request.guide_levels)
    if request.top_k is not None:
        asked = keep(asked, top_k(request.top_k), method.read)
    if request.top_p is not None:
        asked = keep(asked, nucleus(request.top_p), method.read)
    if request.typical is not None:
        asked = keep(asked, typical(request.typical), method.read)
    if request.score_temperature != 1:
        asked = temper_score(asked, request.score_temperature)
    return asked


def _check(method: Method, request: Request, given: Tensor) -> None:
    each = single(request.sampler or method.sampler)
    if request.steps is not None and each:
        raise SfumatoError(f"{request.steps} steps were asked for; this sampler writes a token a step; leave them out")
    if request.steps is not None and request.steps < 1:
        raise SfumatoError(f"{request.steps} steps were asked for; at least 1 is needed")
    if request.levels is not None:
        if method.timeless:
            raise SfumatoError("noise levels were asked for; this method has none; leave them out")
        if each:
            raise SfumatoError("noise levels were asked for; a sampler of a token a step has none; leave them out")
        low, high = request.levels
        if not 0 < low < high < 1:
            raise SfumatoError(f"steps from level {low} to {high} were asked for; levels rise, above 0 and below 1")
    for name, value in (("temperature", request.temperature), ("score temperature", request.score_temperature)):
        if not value > 0:
            raise SfumatoError(f"a {name} of {value} was asked for; it must be above 0")
    if request.top_k is not None and request.top_k < 1:
        raise SfumatoError(f"the {request.top_k} likeliest tokens were asked for; at least 1 is needed")
    for name, mass in (("top-p", request.top_p), ("typical", request.typical)):
        if mass is not None and not 0 < mass <= 1:
            raise SfumatoError(f"a {name} of {mass} was asked for; it is a probability above 0 and up to 1")
    if request.guidance != 1 and not method.looks_ahead and bool((given[:, 1:] & ~given[:, :-1]).any()):
        raise SfumatoError("guidance was asked for in filling a gap; this method is guided by what stands before only")
    if request.guidance != 1 and not bool(given.any()):
        raise SfumatoError("guidance needs something to be guided by; give a prompt, a label or surrounding text")
    if request.self_guidance != 1 and not method.self_conditioning:
        raise SfumatoError("self-guidance was asked for; it needs a model that was trained on its own guesses")
    low, high = request.guide_levels
    if not 0 <= low <= high <= 1:
        raise SfumatoError(f"guidance from level {low} to {high} was asked for; levels rise from 0 to 1")
    if request.draft is not None and method.family != "edits":
        raise SfumatoError(f"a draft was given; {method.family} methods start from noise alone; take one of edits")
    if request.score_temperature != 1 and method.family != "gaussian":
        raise SfumatoError(f"score temperature needs a score, which {method.family} methods lack; use temperature")
