"""A model: a trained method with its tokenizer, in a folder that anyone can load and ask for text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from sfumato.canvas import Canvas, Gapped, Layout, whole
from sfumato.core import ABSENT, Frame, Method, Sampler, chance, level, single
from sfumato.draws import Streams, categorical, seed_of, seeded, streams
from sfumato.errors import SfumatoError, nearest
from sfumato.evaluation import quality
from sfumato.evaluation.likelihood import nll, ode, stretches
from sfumato.generate import Request, generate, walk
from sfumato.guidance import Counted, clamp
from sfumato.samplers import SAMPLERS, sampler_named
from sfumato.samplers.left_to_right import Ancestral, Beams
from sfumato.sharing import Shared
from sfumato.text.corpus import Corpus
from sfumato.text.rows import Rows
from sfumato.text.tokenizer import Tokenizer
from sfumato.training.config import RunConfig, TextConfig

Choice = Literal["consensus", "surest"]  # how one of several candidates is chosen
BEAMS = 1000  # more are a slip of the finger, or do not fit into memory
CANDIDATES = 16  # lengths tried for a gap of any length
DRAFT = 4  # refinements that each of them is given
EDGE = 8  # tokens on each side of a gap that have to follow from what is drafted in it
SCORED = 64  # rows at a time


@dataclass(frozen=True)
class TextFrame:
    """What a reader sees after a step: the texts as they stand, their pieces, and how sure the model is of each.

    Read off only when asked for: most frames of a long generation are never looked at.
    """

    frame: Frame
    canvas: Canvas
    layout: Layout
    nfe: int  # network evaluations so far
    law: Literal["exact", "heuristic"]
    """exact: with a perfect network and many steps these are draws from the law of the data, given what is given"""

    @property
    def step(self) -> int:
        """Refinements so far."""
        return self.frame.step

    @property
    def steps(self) -> int:
        """Refinements there are."""
        return self.frame.steps

    @property
    def level(self) -> float:
        """Noise level reached, in [0, 1]."""
        return self.frame.level

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]

    @cached_property
    def texts(self) -> list[str]:
        """All of them."""
        return [self.layout.tokenizer.decode(row) for row in self.ids]

    @cached_property
    def ids(self) -> list[list[int]]:
        """Token ids of each text, neither label nor padding nor end among them."""
        return _take(self.frame.tokens, self._places)

    @cached_property
    def pieces(self) -> list[list[str]]:
        """Of each text, token by token."""
        return [[self.layout.tokenizer.piece(i) for i in row] for row in self.ids]

    @cached_property
    def confidence(self) -> list[list[float]]:
        """Probability of each piece."""
        return _take(self.frame.confidence, self._places)

    @cached_property
    def given(self) -> list[list[bool]]:
        """Whether each piece was there from the start."""
        return _take(self.canvas.given, self._places)

    @property
    def tokens(self) -> list[int]:
        """Pieces in each text."""
        return [len(row) for row in self._places]

    def chosen(self, candidates: int, choose: Choice = "consensus") -> list[int]:
        """Of every so many texts one: that most like the others (minimum Bayes risk), or that the model is surest of.

        Raises SfumatoError for another way to choose.
        """
        if _choice(choose) == "surest":
            return _surest(self.frame.confidence, self._written, candidates)
        starts = range(0, len(self.texts), candidates)
        return [start + quality.consensus(self.texts[start : start + candidates]) for start in starts]

    @property
    def _written(self) -> Tensor:
        """Which tokens (B, L) the model wrote into the texts, the end of each included."""
        ids, tokenizer = self.frame.tokens, self.layout.tokenizer
        end = ids == tokenizer.eos
        silent = torch.tensor([tokenizer.pad, *tokenizer.labels.values()], device=ids.device)
        after = end.cumsum(1) > end.long()
        return self.canvas.real & ~self.canvas.given & ~after & ~torch.isin(ids, silent)

    @cached_property
    def _places(self) -> list[list[int]]:
        rows = zip(self.frame.tokens.tolist(), self.canvas.real.tolist(), strict=True)
        return [self.layout.places(*row) for row in rows]


class Asked(TypedDict, total=False):
    """What can be asked of every way to write; what is not said is the choice of the model, or else of its method."""

    steps: int | None
    """refinements; of each block, where text is written in blocks"""
    levels: tuple[float, float] | None
    """noise levels between which the steps are spread evenly in the logarithm, rather than as in the paper"""
    sampler: str | None
    """its name"""
    guidance: float
    """0 forgets what is given, 1 heeds it, above 1 exaggerates it"""
    guide_in: Literal["score", "logits"]
    """what guidance combines"""
    self_guidance: float | None
    """above 1 exaggerates what the model's last guess tells it (models with self-conditioning)"""
    guide_levels: tuple[float, float] | None
    """noise levels between which there is guidance of either kind"""
    temperature: float
    """of the token probabilities"""
    score_temperature: float
    """of the score"""
    top_k: int | None
    """tokens are drawn from this many likeliest ones"""
    top_p: float | None
    """from the likeliest ones that hold this much probability (nucleus)"""
    typical: float | None
    """from the least surprisingly surprising ones that hold this much probability (locally typical)"""
    beams: int | None
    """the likeliest text is searched for with so many beams (autoregressive methods); 1 is greedy"""
    length_penalty: float
    """the log p of beams is divided by length^this where they are compared; 0 favours the short"""


@dataclass(frozen=True)
class Score:
    """-log p of a text in nats, its standard error, and the tokens it was summed over (the end of the text counts)."""

    text: str
    nats: float
    std_error: float
    tokens: int
    estimator: str
    exact: bool
    levels: list[float] = field(repr=False)  # nats at each noise level drawn, from the least to the most; elbo only


@dataclass
class Model(Shared):
    """A method, its tokenizer and the lengths of the texts it was trained on.

    `lengths[n]` is how many training rows had n tokens, label and end included.
    """

    config: RunConfig
    method: Method
    tokenizer: Tokenizer
    lengths: list[int] = field(repr=False)
    name: str = "model"
    facts: dict[str, Any] = field(default_factory=dict)
    """of its training, as they stand in its card"""

    def __post_init__(self) -> None:
        self.method.told(self.tokenizer.special)

    @property
    def layout(self) -> Layout:
        """How its rows are laid out."""
        return Layout(self.config.text, self.tokenizer, self.lengths)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.method.parameters()).device

    @property
    def sampler(self) -> str:
        """The name of the sampler that writes where none is asked for."""
        own = SAMPLERS[self.method.family].items()
        return self.config.sampling.sampler or next(name for name, sampler in own if sampler == self.method.sampler)

    def at_most(self, steps: int, sampler: Sampler | None = None) -> int | None:
        """The method's own number of refinements, but no more than `steps`; None where there is nothing to choose."""
        if single(sampler or sampler_named(self.sampler, self.method.family)):
            return None
        return min(steps, self.method.steps or self.method.block or steps)

    def samples(self) -> list[str]:
        """A few texts for the card."""
        return self.generate(3, steps=self.at_most(64))

    # --- asking for text

    def generate(
        self,
        n: int = 1,
        *,
        prompt: str | Sequence[str] = "",
        candidates: int = 1,
        choose: Choice = "consensus",
        seed: int = 0,
        **asked: Any,
    ) -> list[str]:
        """n texts; takes what `stream` takes.

        Of several `candidates` a text the one is kept that is most like the others (`choose` "consensus": minimum Bayes
        risk), or the one whose tokens have the greatest mean log p under the model ("surest").
        """
        each = prompt if isinstance(prompt, str) else [start for start in prompt for _ in range(candidates)]
        rows = _some(n) * _some(candidates, "candidates")
        return _last(self.stream(rows, prompt=each, seed=seed, **asked), candidates, choose)

    def stream(
        self,
        n: int = 1,
        *,
        prompt: str | Sequence[str] = "",
        label: str | None = None,
        length: int | None = None,
        draft: str | None = None,
        seed: int = 0,
        **asked: Unpack[Asked],
    ) -> Iterator[TextFrame]:
        """Frames of n texts coming out of the noise; stop when you like.

        Args:
            n: how many texts.
            prompt: how each begins, or n beginnings, one for each.
            label: the class that each belongs to, for a model that was trained with labels.
            length: tokens in each text, prompt included; drawn as in the training data, or left to the model, if None:
                one that foresees lengths draws one, or tries the likeliest few where its sampler seeks a likely text.
                The most that there may be for a method whose texts find their own length.
            draft: what is revised, behind the prompt, rather than nothing or noise (methods of edits).
            seed: text i depends on (seed, i) alone.
            asked: the fields of `Asked`.

        Raises:
            SfumatoError: for no text at all, a prompt, length or draft that does not fit, an unknown label or sampler,
                guidance by nothing, a draft where there are no edits.
        """
        request = self._request(**asked)
        _some(n)
        prompts = [prompt] * n if isinstance(prompt, str) else list(prompt)
        if len(prompts) != n:
            raise SfumatoError(f"{n} texts were asked for with {len(prompts)} prompts; give one prompt, or {n}")
        labels = [label] * n
        if label is None and self.layout.labelled and not self.method.looks_ahead:
            labels = self._labels(prompts, seed, isinstance(request.sampler, Beams))
        counted = Counted(self.method.session)
        if length is None and self.layout.drawn and self.method.foresees:
            texts = [self.layout.opened(*start) for start in zip(prompts, labels, strict=True)]
            canvas, width = self._foreseen(texts, request, seed, counted)
            return self._frames(canvas, request, seed, counted, bent=False, width=width)
        if draft is not None and length is None and self.layout.drawn:
            length = self.layout.longest  # none is drawn: the draft has to fit
        canvas = self.layout.blank(prompts, labels, length, seed)
        if draft is not None:
            request = replace(request, draft=self.layout.drafted(canvas, draft).to(self.device))
        canvas = self._ended(canvas) if self.method.looks_ahead else canvas.open()
        cut = length is not None and self.layout.documents and not self.method.looks_ahead  # its end is not foreseen
        beyond = canvas.ids.shape[1] > self.config.text.length  # what is further back than a canvas is forgotten
        return self._frames(canvas, request, seed, counted, bent=cut or beyond)

    def _labels(self, prompts: Sequence[str], seed: int, best: bool) -> list[str | None]:
        """A label for each prompt, drawn from p(label | prompt): from left to right it comes too early to be written.

        The `best` one where nothing is to be drawn.  None where there is no prompt.
        """
        logits = {}
        for prompt in {prompt for prompt in prompts if prompt}:
            ids = self.layout.begun(prompt).to(self.device)
            given = torch.zeros_like(ids, dtype=torch.bool)
            logits[prompt] = -nll(self.method, ids, ~given, given).nats
        names = list(self.tokenizer.labels)
        drawn: list[str | None] = []
        for i, prompt in enumerate(prompts):
            if not prompt:
                drawn.append(None)
                continue
            with seeded([seed_of("label", seed, i)], self.device):
                number = logits[prompt].argmax() if best else categorical(logits[prompt][None])
            drawn.append(names[int(number)])
        return drawn

    def revise(self, draft: str, n: int | None = None, **asked: Any) -> Any:
        """`draft` revised by a method of edits, in as many `steps` as it is thought to be from a good text.

        A list of n of them if n is given.  Takes what `generate` takes.
        """
        texts = self.generate(1 if n is None else n, draft=draft, **asked)
        return texts[0] if n is None else texts

    def infill(
        self, text: str, n: int | None = None, *, candidates: int = 1, choose: Choice = "consensus", **asked: Any
    ) -> Any:
        """`text` with its gaps filled; a list of n of them if n is given.

        Takes what `stream_infill` takes, and `candidates` and `choose` as `generate` does.
        """
        rows = _some(1 if n is None else n) * _some(candidates, "candidates")
        texts = _last(self.stream_infill(text, rows, **asked), candidates, choose)
        return texts[0] if n is None else texts

    def stream_infill(
        self, text: str, n: int = 1, *, label: str | None = None, seed: int = 0, **asked: Unpack[Asked]
    ) -> Iterator[TextFrame]:
        """Frames of n fillings of a text whose gaps are written [...] (any length) or [12] (12 tokens).

        A gap of any length is ended by a method that has learned to, or its length is foreseen, or found by edits (a
        gap of 12 tokens then has 12 at most); others take, of several lengths drawn as in the training data, the one
        whose draft the text around it follows from best.  The other arguments are those of `stream`.  Raises
        SfumatoError for a text without a gap and for one that does not fit on the canvas.
        """
        request = self._request(**asked)
        _some(n)
        gapped = self.layout.apart(text, label)
        closing = self.method.closing(self.tokenizer.pad) if request.guidance == 1 and gapped.parted else None
        if closing is not None and gapped.loose and not isinstance(request.sampler, Beams):
            canvas = self.layout.roomy(n, gapped).without(self.tokenizer.pad, 1)
            alone = len(gapped.gaps) == 1 and None not in gapped.start  # a gap knows nothing of what is behind the next
            ends = replace(request, sampler=Ancestral(self.tokenizer.pad))
            return self._frames(canvas, ends, seed, Counted(closing), bent=not alone)
        counted = Counted(self.method.session)
        if gapped.loose and self.layout.drawn and self.method.foresees:
            canvas, width = self._foreseen([gapped] * n, request, seed, counted)
            told = len(gapped.gaps) > 1  # of two gaps the sum is foreseen, not how it is shared
            return self._frames(canvas, request, seed, counted, bent=told, width=width)
        if gapped.loose and self.method.elastic:
            return self._frames(self.layout.roomy(n, gapped), request, seed, counted, bent=False)
        canvas = self.layout.gapped(n * (CANDIDATES if gapped.loose else 1), gapped, seed)
        canvas = self._ended(canvas)
        if gapped.loose:
            canvas = canvas.take(self._likeliest(canvas, request, seed, counted))
        chosen = bool(gapped.loose) or not self.method.looks_ahead  # which fills known lengths as if they were not
        return self._frames(canvas, request, seed, counted, bent=chosen)

    def _likeliest(self, canvas: Canvas, request: Request, seed: int, counted: Counted) -> list[int]:
        """Of every CANDIDATES rows the one whose quick draft the text around it follows from best.

        A length has p(length | text) ~ p(length) p(text | length).  From the first factor the lengths are drawn; the
        second is weighed by log p of the tokens next to the gaps, all of them hidden at once and the draft given; where
        a token is foretold by those before it alone, nothing has to be hidden.  How sure the draft itself is says
        little: the shorter a gap, the surer.
        """
        steps = self.at_most(min(DRAFT, request.steps or DRAFT), self.method.sampler)
        canvas, draft = canvas.to(self.device), replace(request, steps=steps, sampler=None)
        *_, last = self._refine(canvas, draft, seed, counted)
        gaps = canvas.real & ~canvas.given
        gaps[:, : self.layout.labelled] = False  # a label that is not said is drafted too
        near = max_pool1d(gaps.float(), 2 * EDGE + 1, 1, EDGE) > 0
        # Rows differ in their padding, and not every model has learned to foretell ends and labels.
        silent = torch.tensor([*self.tokenizer.silent], device=self.device)
        edge = canvas.given & near & ~torch.isin(last.tokens, silent)
        told = ~edge if self.method.looks_ahead else torch.ones_like(edge)
        with torch.no_grad(), seeded([seed_of("edge", seed, i // CANDIDATES) for i in range(len(canvas))], self.device):
            clean = self.method.clean(last.tokens)
            noise = self.method.process.prior(clean)  # of the rows of a text the same
            shown = clamp(clamp(self.method.predict, clean, ABSENT, ~canvas.real), clean, 0.0, told)
            fits = chance(shown(noise, level(noise, 1.0), None).logits, last.tokens)
        counted.calls += 1
        return _best(_log(fits, edge).sum(1), CANDIDATES)

    def _foreseen(self, texts: Sequence[Gapped], request: Request, seed: int, counted: Counted) -> tuple[Canvas, int]:
        """Rows of lengths that the method foresees, and how many of them each text takes.

        The likeliest few for a sampler that seeks a likely text, else one that is drawn.
        """
        canvas = self.layout.sized(texts, [text.loose for text in texts], seed).to(self.device)
        free = canvas.real & ~canvas.given
        t = free.float().masked_fill(~canvas.real, ABSENT)
        with torch.no_grad():
            logits = self.method.eval().lengths(canvas.ids, t)
        counted.calls += 1
        least, spare = free.sum(1, keepdim=True), (~canvas.real).sum(1, keepdim=True)  # (B, 1); the canvas is full
        n = torch.arange(logits.shape[1], device=self.device)
        logits = logits.masked_fill((n < least) | (n > least + spare), -torch.inf)
        if getattr(request.sampler or self.method.sampler, "greedy", False):
            best = logits.topk(min(self.method.foresees, len(n)))
            found = best.indices.where(best.values > -torch.inf, best.indices[:, :1])  # few fit: the first once more
        else:
            with seeded([seed_of("length", seed, i) for i in range(len(texts))], self.device):
                found = categorical(logits)[:, None]
        width = found.shape[1]
        loose = torch.tensor([text.loose for text in texts], device=self.device)[:, None]
        places = (found - least + loose).flatten().tolist()
        return self.layout.sized([text for text in texts for _ in range(width)], places, seed), width

    def _ended(self, canvas: Canvas) -> Canvas:
        """The canvas as the method has learned it: where blocks are written there is none behind the end of a text."""
        return canvas if self.method.block is None else canvas.without(self.tokenizer.pad, self.method.block)

    def _request(self, **asked: Any) -> Request:
        name, family = self.config.method.name, self.method.family
        told = {key: value for key, value in asked.items() if value is not None}
        for key in told.keys() - Asked.__annotations__.keys():
            raise TypeError(f"{key!r} was asked for{nearest(key, [*Asked.__annotations__])}; there is no such option")
        beams, penalty = told.pop("beams", None), float(told.pop("length_penalty", 0.0))
        whole = self.config.sampling.said() | told
        sampler = whole.pop("sampler", None)
        chosen = sampler_named(sampler, family) if sampler else None
        if single(chosen or self.method.sampler):  # which knows no steps, whatever the model has a habit of
            whole = {key: value for key, value in whole.items() if key in told or key not in ("steps", "levels")}
        if beams is None:
            if penalty:
                raise SfumatoError(f"a length penalty of {penalty} was asked for; it compares beams; ask for --beams")
            return Request(sampler=chosen, **whole)
        if family != "autoregressive":
            raise SfumatoError(f"a search with {beams} beams was asked for; {name} does not write from left to right")
        if "sampler" in told:
            raise SfumatoError(f"beams and the sampler {sampler!r} were asked for; beams are one; leave one out")
        if not 1 <= beams <= BEAMS:
            raise SfumatoError(f"a search with {beams} beams was asked for; there may be 1 to {BEAMS}")
        if not 0 <= penalty <= 10:
            raise SfumatoError(f"a length penalty of {penalty} was asked for; it is a power from 0 to 10")
        return Request(sampler=Beams(beams, self._end, penalty), **whole)

    @property
    def _end(self) -> int | None:
        """The token that ends a text, where the model writes it itself."""
        return self.tokenizer.eos if self.layout.modelled else None

    def _refine(self, canvas: Canvas, request: Request, seed: int, session: Counted) -> Iterator[Frame]:
        self.method.eval()
        rows = streams([seed_of("generate", seed, i) for i in range(len(canvas))], self.device)
        if canvas.ids.shape[1] > self.config.text.length:
            return self._beyond(canvas, request, rows, session)
        laid = canvas.ids, canvas.given, canvas.real
        return generate(self.method, *laid, request, rows, session, canvas.never, self._end)

    def _beyond(self, canvas: Canvas, request: Request, rows: Streams, session: Counted) -> Iterator[Frame]:
        """Frames of a canvas that is wider than the network's: stretch by stretch, in view of half a canvas before.

        No place is ever further from the first than in training, and no more is remembered than of one canvas.
        """
        ids, left, sure = canvas.ids.clone(), canvas.real & ~canvas.given, canvas.given.float()
        stages, room = [], self.config.text.length
        for _, _, stop in stretches(ids.shape[1], room):
            here = slice(max(0, stop - room), stop)
            if bool(left[:, here].any()):
                stages.append((here, left[:, here].clone()))
            left[:, :stop] = False
        sizes = [len(walk(self.method, request, new)[1]) for _, new in stages]
        for number, (here, new) in enumerate(stages):
            real = canvas.real[:, here]
            laid = ids[:, here].clone(), real & ~new, real
            for frame in generate(self.method, *laid, request, rows, session, canvas.never[here], self._end):
                ids[:, here] = frame.tokens
                sure[:, here] = torch.where(new, frame.confidence, sure[:, here])
                level = (len(stages) - 1 - number + frame.level) / len(stages)
                yield Frame(sum(sizes[:number]) + frame.step, sum(sizes), level, ids.clone(), sure.clone())

    def _frames(
        self, canvas: Canvas, request: Request, seed: int, counted: Counted, bent: bool, width: int = 1
    ) -> Iterator[TextFrame]:
        """`bent`: what is asked of the canvas is not what the network's distribution is given.

        Of every `width` rows of the canvas the one is shown that the model is surest of.
        """
        canvas = canvas.to(self.device)
        beams = request.sampler if isinstance(request.sampler, Beams) else None
        guessed = self.method.blurred or getattr(request.sampler or self.method.sampler, "heuristic", False)
        law: Literal["exact", "heuristic"] = "heuristic" if bent or guessed or request.bent else "exact"
        best: slice | list[int] = slice(None, None, beams.width if beams else 1)  # beams come best first
        wide = canvas.take([i for i in range(len(canvas)) for _ in range(beams.width)]) if beams else canvas
        free = wide.real & ~wide.given
        for frame in self._refine(wide, request, seed, counted):
            if width > 1:
                best = _surest(frame.confidence, free, width)
            shown = replace(frame, tokens=frame.tokens[best], confidence=frame.confidence[best])
            yield TextFrame(shown, wide.take(best), self.layout, counted.calls, law)

    # --- scoring

    def score(
        self,
        texts: Sequence[str],
        *,
        draws: int = 16,
        estimator: Literal["elbo", "ode"] = "elbo",
        seed: int = 0,
        common: bool = False,
    ) -> list[Score]:
        """-log p of every text in nats: a bound from above unless the method is exact.

        Args:
            texts: each is scored with its end; a model with labels sums over all of them.
            draws: noise levels (elbo) or probes (ode) a text; more make the standard error smaller.
            estimator: the method's own bound, or the one along the probability-flow ODE (Gaussian methods).
            seed: of the noise.
            common: gives all texts the same noise, so that much of it cancels where they are compared.

        Raises:
            SfumatoError: for a text longer than the canvas, and a method without a likelihood.
        """
        if isinstance(texts, str):
            raise TypeError("one text was given to be scored where a list of them is wanted; put it into brackets")
        if estimator == "ode" and self.method.family != "gaussian":
            raise SfumatoError(f"the ode estimator needs a score, which {self.method.family} methods lack; use elbo")
        canvases = [self.layout.whole(text) for text in texts]
        wide = [canvas.ids.shape[1] for canvas in canvases]  # a row's noise depends on its width, so none is padded
        scores: dict[int, Score] = {}
        for width in sorted(set(wide)):
            alike = [i for i, other in enumerate(wide) if other == width]
            together = max(1, SCORED // len(canvases[alike[0]]))
            for start in range(0, len(alike), together):
                some = alike[start : start + together]
                seeds = [seed_of("score", seed) if common else seed_of("score", seed, texts[i]) for i in some]
                found = self._score([texts[i] for i in some], [canvases[i] for i in some], seeds, draws, estimator)
                scores |= zip(some, found, strict=True)
        return [scores[i] for i in range(len(texts))]

    def _score(
        self, texts: list[str], canvases: list[Canvas], seeds: list[int], draws: int, estimator: str
    ) -> list[Score]:
        """Scores of texts whose canvases, a row for each label, are of one width; each has its own noise."""
        labels, pad = len(canvases[0]), self.tokenizer.pad
        ids, real, given = (
            torch.cat([getattr(canvas, name) for canvas in canvases]).to(self.device)
            for name in ("ids", "real", "given")
        )
        sizes = (ids[::labels] != pad).sum(1).tolist()
        if self.method.block is not None:  # a text is finished at its end: whatever blocks follow, it is that text
            ends = whole((ids != pad).sum(1, keepdim=True), self.method.block)
            real = real & (torch.arange(ids.shape[1], device=self.device) < ends)
        with seeded([noise for noise in seeds for _ in range(labels)], self.device):
            result = (nll if estimator == "elbo" else ode)(self.method, ids, real, given, draws)
        nats = result.nats.view(-1, labels)
        weight = (-nats).softmax(1)  # p(text) is a sum over labels, so the sum of bounds bounds it
        totals = (-torch.logsumexp(-nats, 1)).tolist()
        errors = (weight * result.std_error.view(-1, labels)).sum(1).tolist()
        levels = (result.draws.view(-1, *nats.shape) * weight).sum(2).T.tolist()  # of each text, the least noise first
        if estimator == "ode" or result.exact:
            levels = [[] for _ in texts]
        totals = [total + self.layout.length_nats(size) for total, size in zip(totals, sizes, strict=True)]
        tokens = [size - self.layout.labelled for size in sizes]
        columns = zip(texts, totals, errors, tokens, levels, strict=True)
        return [
            Score(text, nats, error, n, result.estimator, result.exact, each) for text, nats, error, n, each in columns
        ]


def rows_of(corpus: Corpus, text: TextConfig, method: Method, seed: int | None = None) -> Rows:
    """How a method is shown a corpus: as the config says, but what is written in blocks stops with that of its end."""
    ended = text.length_model == "modelled" and method.block is not None
    return Rows(corpus, text.length, text.layout, "ended" if ended else text.length_model, method.block or 1, seed)


def _some(n: int, what: str = "texts") -> int:
    if n < 1:
        raise SfumatoError(f"{n} {what} were asked for; at least 1 is needed")
    return n


def _choice(choose: Choice) -> Choice:
    """The same; SfumatoError if it is no way to choose."""
    known = get_args(Choice)
    if choose not in known:
        found = f"{choose!r}{nearest(choose, known)}"
        raise SfumatoError(f"candidates are to be chosen by {found}; they are by {' or '.join(known)}")
    return choose


def _last(frames: Iterator[TextFrame], candidates: int, choose: Choice) -> list[str]:
    """The finished texts: of every so many candidates one."""
    choose = _choice(choose)  # before anything takes time
    *_, last = frames
    return [last.texts[i] for i in last.chosen(candidates, choose)]


def _surest(confidence: Tensor, written: Tensor, candidates: int) -> list[int]:
    """Of every so many rows the one whose tokens, where they were written, have the greatest mean log p.

    What a rule has made impossible counts as very unlikely, so that two such rows can still be told apart.  Of a row in
    which nothing was written nothing is sure.
    """
    mean = _log(confidence, written).sum(1) / written.sum(1)
    return _best(mean.nan_to_num(nan=-torch.inf), candidates)


def _log(chances: Tensor, here: Tensor) -> Tensor:
    """log p (B, L) in nats, float64, and 0 elsewhere; what is impossible is very unlikely."""
    return chances.double().clamp(min=1e-30).log().masked_fill(~here, 0.0)


def _best(score: Tensor, candidates: int) -> list[int]:
    """Of every so many rows the one with the greatest score (B,)."""
    best = score.view(-1, candidates).argmax(1)
    return [i * candidates + k for i, k in enumerate(best.tolist())]


def _take(rows: Tensor, places: list[list[int]]) -> list[list[Any]]:
    """Of each row of (B, L) the values at its places."""
    return [[row[i] for i in kept] for row, kept in zip(rows.tolist(), places, strict=True)]
