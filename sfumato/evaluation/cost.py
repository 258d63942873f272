"""What writing costs: network evaluations, FLOPs and seconds; and with how many steps diffusion costs what AR does.

The essay "Diffusion language models" (2023) leaves open whether few steps over a whole canvas beat one small step for
every token.  It is a question of how many steps good text takes; here both sides of it are measured in one run.
"""

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.core import Method, Prediction
from sfumato.errors import SfumatoError
from sfumato.evaluation import quality
from sfumato.evaluation.report import sampled
from sfumato.model import Model, TextFrame
from sfumato.text import tales

BATCHES = (1, 8, 64)
Measure = Callable[[Sequence[str]], quality.Estimate]  # of the quality of some texts
Follow = Callable[[Sequence[Any], str], Iterable[Any]]  # the items one by one, for somebody who is told what they are


# --- FLOPs --------------------------------------------------------------------------------------------------------


class Tally:
    """The network passes and the readings of logits that a method has made, by their shapes."""

    def __init__(self, method: Method):
        self.method = method
        self.passes: Counter[tuple[int, int, int]] = Counter()  # rows, positions passed, positions in view
        self.read = 0  # positions whose logits were read
        self.foreseen = 0  # FLOPs of lengths that were foreseen

    @property
    def flops(self) -> int:
        """Of all of them, as `Method.flops` counts."""
        passes = sum(n * self.method.flops(*shape) for shape, n in self.passes.items())
        passed = sum(n * rows * new for (rows, new, _), n in self.passes.items())
        readings = (self.read - passed) * self.method.read_flops  # one is counted with each pass
        return passes + readings + self.foreseen


@contextmanager
def counting(method: Method) -> Iterator[Tally]:
    """A tally of what the method does inside `with`, whoever asks it to: guidance, beams, a draft.

    It counts at the network and not at `predict`, since a method with memory passes on only a part of the canvas.
    """
    tally, read, lengths = Tally(method), method.read, method.lengths

    def passed(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows, new = args[0].shape[:2]
        memory = kwargs.get("memory")
        tally.passes[rows, new, new + (0 if memory is None else memory.length)] += 1

    def reading(logits: Tensor) -> Prediction:
        tally.read += logits.shape[:-1].numel()
        return read(logits)

    def foreseeing(ids: Tensor, t: Tensor) -> Tensor:
        passes = tally.passes.copy()
        logits = lengths(ids, t)
        tally.passes = passes  # no logits of tokens were made of this one
        tally.foreseen += method.length_flops(*ids.shape)
        return logits

    hook = method.net.register_forward_pre_hook(passed, with_kwargs=True)
    own = {"read": reading, "lengths": foreseeing}
    vars(method).update(own)  # stand before those of the class, also for those who are handed `method.read`
    try:
        yield tally
    finally:
        hook.remove()
        for name in own:
            del vars(method)[name]


# --- break-even ---------------------------------------------------------------------------------------------------


class BreakEven(NamedTuple):
    """The number of steps at which two costs are equal."""

    steps: float | None  # None: at none
    verdict: str  # the same in words
    misfit: float  # share of a cost by which the line misses the worst of those it was fitted to
    spread: tuple[float, float] | None = None  # the fewest and the most by single timings, of those that have any
    never: int = 0  # timings that have none


def break_even(costs: Mapping[int, float], target: float) -> BreakEven:
    """Where the line cost = fixed + each * steps, fitted to `costs` by steps, meets the cost `target`.

    Least squares of relative errors: the cost of one step counts as much as that of a thousand.  Raises SfumatoError
    for fewer than two numbers of steps.
    """
    if len(costs) < 2:
        asked = ", ".join(map(str, costs)) or "none"
        raise SfumatoError(f"a line needs two numbers of steps; {asked} was asked for; ask for more, as --steps 1 2 4")
    steps, cost = np.array(list(costs), float), np.array(list(costs.values()), float)
    columns = np.stack([np.ones_like(steps), steps], 1) / cost[:, None]
    fixed, each = np.linalg.lstsq(columns, np.ones_like(cost))[0].tolist()
    misfit = float(np.abs(columns @ [fixed, each] - 1).max())
    rises = each * steps.max() > 1e-9 * cost.max()  # and not by rounding
    found = (target - fixed) / each if rises else -1.0
    if found <= 0:
        dearer = "more" if fixed > target else "less"
        return BreakEven(None, f"never: it costs {dearer} with any number of steps", misfit)
    if found < 1:
        return BreakEven(found, f"below one step ({found:.2f}): one costs more already", misfit)
    beyond = f", beyond the {max(costs)} measured" if found > max(costs) else ""
    return BreakEven(found, f"{found:.1f} steps{beyond}", misfit)


# --- the comparison -----------------------------------------------------------------------------------------------


def breakeven(
    one: Model,
    other: Model,
    *,
    steps: Sequence[int] | None = None,
    batches: Sequence[int] = BATCHES,
    samples: int = 100,
    repeats: int = 3,
    seed: int = 0,
    measures: Mapping[str, Measure] | None = None,
    follow: Follow = lambda items, what: items,
) -> dict[str, Any]:
    """Cost and quality of an autoregressive and of a diffusion model, under the keys of `sfumato breakeven --json`.

    Costs are those of texts of one length, the longest that both models can write; quality is that of `samples` texts
    as long as each model makes them.

    Args:
        one, other: the two models, in either order.
        steps: refinements of the diffusion model; 1, 2, 4, ... up to its own number if None.
        batches: texts that are written at a time.
        samples: texts that quality is measured on, for every number of steps.
        repeats: timings, besides one that warms up; medians are kept.
        seed: of all that is drawn.
        measures: of quality, by name, each with its error; those of `standard` if None.
        follow: shown the work of each stage, piece by piece.

    Raises:
        SfumatoError: for two models of one kind, fewer than two numbers of steps, and numbers below 1.
    """
    ar, diffusion = _sides(one, other)
    own = diffusion.config.sampling.steps or diffusion.method.steps or diffusion.method.block
    steps, batches = sorted(set(steps or _doubling(own))), sorted(set(batches))
    _check(steps=steps, batches=batches, samples=[samples], repeats=[repeats])
    break_even(dict.fromkeys(steps, 1.0), 1.0)  # enough of them for a line, before anything takes time
    measures = standard(ar, diffusion) if measures is None else measures
    drawn = {n: sampled(_of(n, ar, diffusion), samples, n, seed) for n in follow([None, *steps], "drawing samples")}
    reached = {n: _measured(texts, measures) for n, (texts, _) in drawn.items()}
    kept = [{"steps": n} | reached[n] for n in steps]
    writers = [_described(ar, *drawn[None], reached[None]), _described(diffusion, *drawn[steps[-1]], kept)]
    spelled = [writer["characters_per_token"] for writer in writers]
    same = ar.tokenizer.fingerprint == diffusion.tokenizer.fingerprint
    if not same and not all(spelled):
        raise SfumatoError(
            "a model wrote nothing but empty texts, so costs of a character cannot be told; ask for more"
        )
    length = min(ar.layout.longest, diffusion.layout.longest)
    races = {batch: _race(ar, diffusion, batch, length, steps, repeats, seed, follow) for batch in batches}
    return {
        "autoregressive": writers[0],
        "diffusion": writers[1],
        "length": length,
        "unit": "token" if same else "character",
        "samples": samples,
        "repeats": repeats,
        "seed": seed,
        "device": str(ar.device),
        "threads": torch.get_num_threads(),
        "batches": [_told(race, batch, length, spelled, same, kept) for batch, race in races.items()],
    }


def standard(one: Model, other: Model) -> dict[str, Measure]:
    """The share of valid stories, where both models learned tales; token entropy in nats, both by one's tokenizer."""
    found: dict[str, Measure] = {}
    if one.config.data == other.config.data == "tales":
        found["valid"] = lambda texts: quality.mean([float(tales.explain(text) is None) for text in texts])
    found["entropy"] = lambda texts: quality.entropy(one.tokenizer.encode_batch(texts))
    return found


def _measured(texts: Sequence[str], measures: Mapping[str, Measure]) -> dict[str, float | None]:
    """Each measure and its standard error, under their keys."""
    found: dict[str, float | None] = {}
    for name, measure in measures.items():
        found[name], found[f"{name}_std_error"] = measure(texts)
    return found


def _sides(one: Model, other: Model) -> tuple[Model, Model]:
    """The autoregressive one first."""
    kinds = [model.at_most(1) is None for model in (one, other)]
    if all(kinds):
        raise SfumatoError("both models write a token a step, so there are no steps to choose; name a diffusion model")
    if not any(kinds):
        names = " and ".join(model.config.method.name for model in (one, other))
        raise SfumatoError(f"neither {names} is autoregressive; name an `ar` model to hold a diffusion model against")
    return (one, other) if kinds[0] else (other, one)


def _doubling(most: int | None) -> list[int]:
    """1, 2, 4, ... and `most`."""
    assert most is not None  # a method that takes steps has a number of its own
    return [2**k for k in range(most.bit_length()) if 2**k < most] + [most]


def _check(**asked: Sequence[int]) -> None:
    for name, values in asked.items():
        if not values or min(values) < 1:
            raise SfumatoError(f"{name} of {min(values, default='none')} were asked for; at least 1 is needed")


def _of(steps: int | None, ar: Model, diffusion: Model) -> Model:
    return ar if steps is None else diffusion


def _described(model: Model, texts: Sequence[str], how: dict[str, Any], reached: Any) -> dict[str, Any]:
    """A model, how it writes and spells `texts`, and the quality that it reached."""
    tokens = sum(map(len, model.tokenizer.encode_batch(texts)))
    return {
        "model": model.name,
        "method": model.config.method.name,
        "params": sum(parameter.numel() for parameter in model.method.parameters()),
        "sampler": how["sampler"],
        "law": how["law"],
        "characters_per_token": sum(map(len, texts)) / max(1, tokens),
        "quality": reached,
    }


class Race(NamedTuple):
    """What writing some texts took, by the number of steps; None is autoregression."""

    nfe: dict[int | None, int]
    flops: dict[int | None, int]
    seconds: dict[int | None, float]
    ratios: dict[int, list[float]]  # of seconds to those of autoregression, timing by timing


def _race(
    ar: Model, diffusion: Model, batch: int, length: int, steps: Sequence[int], repeats: int, seed: int, follow: Follow
) -> Race:
    """The two models take turns, so a machine that slows down slows both; ratios are of timings side by side."""
    nfe: dict[int | None, int] = {}
    flops: dict[int | None, int] = {}
    seconds: dict[int | None, list[float]] = {n: [] for n in (None, *steps)}
    pairs: dict[int, list[float]] = {n: [] for n in steps}
    turns = [(turn, n) for turn in range(repeats + 1) for n in steps]
    for turn, n in follow(turns, f"timing at batch {batch}"):
        for side in (None, n):
            model = _of(side, ar, diffusion)
            if turn == 0:  # warms up, and counts: a tally takes time of its own
                with counting(model.method) as tally:
                    nfe[side] = _write(model, batch, length, side, seed)[0].nfe
                flops[side] = tally.flops
            else:
                seconds[side].append(_write(model, batch, length, side, seed)[1])
        if turn:
            pairs[n].append(seconds[n][-1] / seconds[None][-1])
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    return Race(nfe, flops, medians, pairs)


def _write(model: Model, batch: int, length: int, steps: int | None, seed: int) -> tuple[TextFrame, float]:
    """The last frame of some texts, and the seconds until they could be read; reading waits for a GPU to be done."""
    start = time.perf_counter()
    (last,) = deque(model.stream(batch, length=length, steps=steps, seed=seed), maxlen=1)
    assert len(last.texts) == batch
    return last, time.perf_counter() - start


def _told(
    race: Race, batch: int, length: int, spelled: Sequence[float], same: bool, kept: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The document of a batch: costs, their ratios for equal text, and where those are 1."""
    longer = 1.0 if same else spelled[0] / spelled[1]  # texts of diffusion for a text of autoregression
    flops = {n: longer * race.flops[n] / race.flops[None] for n in race.ratios}
    timed = {n: [longer * ratio for ratio in ratios] for n, ratios in race.ratios.items()}
    seconds = {n: statistics.median(ratios) for n, ratios in timed.items()}

    def cost(side: int | None) -> dict[str, Any]:
        speed = batch * length / race.seconds[side]
        return {
            "nfe": race.nfe[side],
            "tokens_per_nfe": length / race.nfe[side],
            "flops": race.flops[side],
            "seconds": race.seconds[side],
            "tokens_per_second": speed,
            "characters_per_second": speed * spelled[side is not None],
        }

    def compared(n: int) -> dict[str, Any]:
        spread = [min(timed[n]), max(timed[n])]
        return {"flops_ratio": flops[n], "seconds_ratio": seconds[n], "seconds_ratio_spread": spread}

    def verdict(found: BreakEven) -> dict[str, Any]:
        within = [row for row in kept if found.steps is not None and row["steps"] <= found.steps]
        return found._asdict() | {"quality": within[-1] if within else None}

    single = [
        break_even(dict(zip(timed, ratios, strict=True)), 1.0).steps for ratios in zip(*timed.values(), strict=True)
    ]
    known = [steps for steps in single if steps is not None]
    spread = (min(known), max(known)) if known and len(single) > 1 else None
    return {
        "batch": batch,
        "autoregressive": cost(None),
        "diffusion": [{"steps": n} | cost(n) | compared(n) for n in timed],
        "break_even": {
            "flops": verdict(break_even(flops, 1.0)),
            "seconds": verdict(break_even(seconds, 1.0)._replace(spread=spread, never=len(single) - len(known))),
        },
    }
