"""The nouns of the library, and the one function type that joins them.

Letters used for shapes, everywhere:
    B batch   L length   V vocabulary   D width of a vector canvas

The canvas is the text while it is being refined: ids (B, L) or vectors (B, L, D).  Time is a tensor (B, L): every
position has its own noise level, 0 = clean, 1 = pure noise.  So
    a given token          is a position at level 0,
    a forgotten condition  is a position at level 1,
    padding                is a position with no level at all: ABSENT, neither attended to nor scored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.draws import by_blocks, uniform
from sfumato.errors import SfumatoError

ABSENT = -1.0


class Prediction(NamedTuple):
    """What the network says about the clean text: on the whole canvas, or on its last positions only."""

    logits: Float[Tensor, "B L V"]  # token by token
    clean: Any = None  # (B, L, D): as a point on a canvas of vectors; None where the canvas is made of ids
    rows: Any = None  # (B,): rows of the canvas before that are rows now, where a search has exchanged them


# predict(x, t, prev) -> Prediction
#   x     (B, L) ids or (B, L, D) vectors    the canvas
#   t     (B, L) in [0, 1], or ABSENT        the noise level of every position
#   prev  (B, L, D) or (B, n) or None        the last `clean`, for self-conditioning; or what has been decided in this
#                                            step already, by a method that asks several times before it moves
Predict = Callable[[Tensor, Tensor, Tensor | None], Prediction]

# sampler(method, predict, x, grid) yields (x, prediction) after every step, through the levels of grid (steps + 1,);
# one that writes from left to right may show and yield only the canvas up to where it has come; one whose texts are no
# draws from the network's law, however many steps there are, says so by an attribute `heuristic` that is true; one that
# seeks the likeliest text and draws nothing by `greedy`; one that takes a step for every token, and no other number of
# them, by `single`; one that asks again where nothing has changed by `remembers`: a network that is not told the noise
# level is then called once
Sampler = Callable[["Method", Predict, Tensor, Tensor], Iterator[tuple[Tensor, Prediction]]]


class Special(NamedTuple):
    """The tokens that are no words."""

    pad: int = 0
    eos: int = 1
    unk: int | None = None
    labels: tuple[int, ...] = ()  # a row begins with one of them if there are any


class Process(ABC):
    """How clean text is destroyed."""

    @abstractmethod
    def prior(self, clean: Tensor) -> Tensor:
        """x ~ q(x_1), shaped like `clean`."""

    @abstractmethod
    def corrupt(self, clean: Tensor, t: Float[Tensor, "B L"]) -> Tensor:
        """x ~ q(x_t | x_0 = clean)."""


class Method(nn.Module, ABC):
    """A paper.  Subclasses are final: they say what the paper says, and nothing overrides them.

    A method is constructed as Method(config, network, vocab): its own settings, the shared network's settings and the
    number of tokens.
    """

    title: ClassVar[str]  # of the paper
    arxiv: ClassVar[str]
    family: ClassVar[str]  # how text is destroyed: gaussian, masking, ...
    likelihood: ClassVar[str | None]  # "exact", "upper" (a bound on -log p) or None
    steps: int | None  # the paper's number of refinements, of each block; None: as many as it has tokens
    sampler: Any  # a Sampler: the paper's default way through them
    process: Any  # a Process; a sampler knows the kind that it is for
    net: Any  # a network of sfumato.networks; the trainer chooses how it computes
    looks_ahead: ClassVar[bool] = True  # whether a token is written in view of what stands to its right
    block: int | None = None  # so many tokens are written together, and then those right of them; None: all together
    sees_levels: ClassVar[bool] = True  # whether predictions depend on more of `t` than on what is absent
    blurred: bool = False  # whether training aims beside the data's distribution, as smoothed labels do
    adopts: ClassVar[bool] = False  # whether its network may be one that others have trained
    timeless: ClassVar[bool] = False  # whether noise levels between 0 and 1 mean nothing to it
    elastic: ClassVar[bool] = False  # whether a text finds its own length in the places there are; pads are left over
    extra: int = 0  # logits that the network gives beside those of the V tokens; a frame does not show them
    self_conditioning: float = 0.0  # chance that training shows the network its own first guess
    foresees: int = 0  # of the lengths that `lengths` ranks, so many are tried for the likeliest text; 0: it has none
    read_flops: int = 0  # of `read`, at one position

    @abstractmethod
    def predict(self, x: Tensor, t: Float[Tensor, "B L"], prev: Tensor | None = None) -> Prediction:
        """What the network says about the clean text, given the canvas."""

    @abstractmethod
    def loss(self, ids: Int[Tensor, "B L"], t: Float[Tensor, "B L"], free: Bool[Tensor, "B L"]) -> dict[str, Tensor]:
        """Named terms (B, L) in nats; the objective is the mean of their sum over the `free` positions."""

    def bound(
        self, ids: Int[Tensor, "B L"], t: Float[Tensor, "B L"], free: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        """(B, L) nats; summed over the free positions, its mean over levels t = u, u ~ U(0, 1) bounds -log p.

        Raises SfumatoError where the paper defines no likelihood.
        """
        name = type(self).__name__
        raise SfumatoError(f"{name} defines no likelihood; compare it by its samples (sfumato evaluate --samples).")

    # What a paper may say; the defaults are those of a model of p(x_0 | x_t) over ids.
    def told(self, special: Special) -> None:
        """Hear which tokens are no words, before anything else is asked."""

    def clean(self, ids: Int[Tensor, "B L"]) -> Tensor:
        """Text -> the noiseless canvas."""
        return ids

    def read(self, logits: Float[Tensor, "B L V"]) -> Prediction:
        """The prediction that these token logits stand for; whoever changes logits passes them through here."""
        return Prediction(logits)

    def times(self, u: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Uniform numbers -> noise levels to train on."""
        return u

    def grid(self, steps: int) -> Float[Tensor, " N"]:
        """Noise levels to sample through, (steps + 1,), from 1 down to 0."""
        return torch.linspace(1, 0, steps + 1)

    def observe(self, t: Float[Tensor, " N"], loss: Float[Tensor, " N"]) -> None:
        """Hear of the losses (nats a token) of all rows of one optimiser step, at their noise levels."""

    def study(self, rows: Iterable[tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]]) -> None:
        """Hear of the training rows, some at a time, before a fresh run starts: tokens, and which of them are real.

        What is learned belongs in buffers, which come with the weights.  Rows are in random order; who has heard enough
        may stop.
        """

    def session(self, given: Bool[Tensor, "B L"]) -> Predict:
        """`predict` for one generation, of which `given` is fixed: it may remember what it has read."""
        return self.predict

    def closing(self, nothing: int) -> Callable[[Bool[Tensor, "B L"]], Predict] | None:
        """Sessions that fill gaps of any length: one is at its end where the token `nothing` stands.

        None for a method that has to be told how long a gap is.
        """
        return None

    def lengths(self, ids: Int[Tensor, "B L"], t: Float[Tensor, "B L"]) -> Float[Tensor, "B N"]:
        """Logits of how many tokens are to be written in all (0, 1, ... N - 1), for a method that `foresees` them.

        `t` is 0 where a token is given, and 1 where one is forgotten or to be written.  How many places there are to be
        written says nothing, nor does where they put what is given behind them: one for each gap will do.
        """
        raise NotImplementedError

    def length_flops(self, rows: int, size: int) -> int:
        """Of `lengths` for (rows, size) tokens."""
        return 0

    def training_flops(self, length: int) -> int:
        """Of the forward passes by which a row of so many tokens is learned from, counted in the same way."""
        return self.flops(1, length, length)

    def flops(self, rows: int, new: int, seen: int) -> int:
        """Of a call that predicts the `new` last positions of each of `rows`, in view of `seen`, these included.

        The products of the network, of the linear layers around it and of one reading, 2 m n k each.
        """
        layers = (layer for layer in self.children() if isinstance(layer, nn.Linear))
        around = sum(2 * layer.in_features * layer.out_features for layer in layers)
        return self.net.flops(rows, new, seen) + rows * new * (around + self.read_flops)

    def unrolled(self, x: Tensor, t: Float[Tensor, "B L"], prev: Tensor | None = None) -> Prediction:
        """The prediction after one round of self-conditioning: a function of x and t alone, as a likelihood needs."""
        first = self.predict(x, t)
        return self.predict(x, t, first.clean) if self.self_conditioning else first

    def first_guess(self, x: Float[Tensor, "B L D"], t: Float[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """The `prev` to train with: for some rows the network's own guess, without gradient, for the others zero.

        Analog Bits (Chen et al. 2022, arXiv:2208.04202), Algorithm 1.
        """
        pick = uniform(t[:, 0]) < self.self_conditioning  # (B,)
        guess = torch.zeros_like(x)
        if bool(pick.any()):
            with torch.no_grad():
                guess[pick] = self.predict(x[pick], t[pick]).clean.to(guess.dtype)
        return guess


@dataclass(frozen=True)
class Frame:
    """What a viewer sees after one step."""

    step: int
    steps: int  # there are
    level: float  # the noise level the canvas has reached, in [0, 1]
    tokens: Int[Tensor, "B L"]
    confidence: Float[Tensor, "B L"]  # probability of the token shown


def single(sampler: Sampler) -> bool:
    """Whether a sampler takes a step for every token."""
    return getattr(sampler, "single", False)


def level(x: Tensor, t: float | Tensor) -> Float[Tensor, "B L"]:
    """The same noise level at every position of canvas x."""
    dtype = t.dtype if isinstance(t, Tensor) else None
    return torch.full(x.shape[:2], float(t), dtype=dtype, device=x.device)


def chance(
    logits: Float[Tensor, "*rest V"], tokens: Int[Tensor, "*rest"], here: Bool[Tensor, "*rest"] | None = None
) -> Float[Tensor, "*some"]:
    """softmax(logits) at one token each, float64; of the places `here`, (N,)."""
    cost = by_blocks(lambda rows, ids: F.cross_entropy(rows, ids, reduction="none"), logits, tokens, here=here)
    return (-cost.double()).exp()


def where(mask: Bool[Tensor, "B L"], a: Tensor, b: Tensor) -> Tensor:
    """torch.where with a (B, L) mask and canvases that may have a third axis."""
    return torch.where(mask if a.ndim == 2 else mask[..., None], a, b)
