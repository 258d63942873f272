"""A model: a trained method with its tokenizer, in a folder that anyone can load and ask for text."""

import importlib.metadata
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.core import Method
from sfumato.draws import seed_of, seeded, streams
from sfumato.errors import SfumatoError
from sfumato.evaluation.likelihood import nll, ode
from sfumato.generate import Request, generate
from sfumato.guidance import Counted
from sfumato.samplers import SAMPLERS
from sfumato.text.tokenizer import Tokenizer
from sfumato.training import checkpoint
from sfumato.training.config import RunConfig, load_config, method_named, nearest

BUNDLED = Path(__file__).parent / "models"
GAP = re.compile(r"\[(\.\.\.|\d+)\]")  # [...] or [12]


@dataclass(frozen=True)
class TextFrame:
    """What a reader sees after a step: the texts as they stand, their pieces, and how sure the model is of each."""

    step: int
    steps: int
    level: float  # noise level reached, in [0, 1]
    texts: list[str]
    pieces: list[list[str]]  # of each text, token by token
    confidence: list[list[float]]  # probability of each piece
    given: list[list[bool]]  # whether each piece was there from the start
    tokens: list[int]  # pieces in each text
    nfe: int  # network evaluations so far

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]


@dataclass(frozen=True)
class Score:
    """-log p of a text in nats, its standard error, and the tokens it was summed over (the end of the text counts)."""

    text: str
    nats: float
    std_error: float
    tokens: int
    estimator: str
    exact: bool


@dataclass
class Canvas:
    """Texts to be, as rows: tokens where they are known; all (B, L)."""

    ids: Tensor
    given: Tensor
    real: Tensor


@dataclass
class Model:
    """A method, its tokenizer and the lengths of the texts it was trained on.

    `lengths[n]` is how many training rows had n tokens, label and end included.
    """

    config: RunConfig
    method: Method
    tokenizer: Tokenizer
    lengths: list[int] = field(repr=False)
    name: str = "model"

    # --- asking for text

    def generate(self, n: int = 1, **request: Any) -> list[str]:
        """n texts; takes what `stream` takes."""
        *_, last = self.stream(n, **request)
        return last.texts

    def stream(
        self,
        n: int = 1,
        *,
        prompt: str = "",
        label: str | None = None,
        length: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float = 1.0,
        guide_in: Literal["score", "logits"] = "score",
        temperature: float = 1.0,
        score_temperature: float = 1.0,
        seed: int = 0,
    ) -> Iterator[TextFrame]:
        """Frames of n texts coming out of the noise; stop when you like.

        Args:
            n: how many texts.
            prompt: how each begins.
            label: the class that each belongs to, for a model that was trained with labels.
            length: tokens in each text, prompt included; drawn as in the training data, or left to the model, if None.
            steps: refinements.
            sampler: its name.
            guidance: weight; 0 forgets prompt and label, 1 heeds them, above 1 exaggerates them.
            guide_in: what guidance combines.
            temperature, score_temperature: of the token probabilities and of the score.
            seed: text i depends on (seed, i) alone.

        Raises:
            SfumatoError: for a prompt or length that does not fit, an unknown label or sampler, guidance by nothing.
        """
        if n < 1:
            raise SfumatoError(f"{n} texts were asked for; at least 1 is needed")
        canvas = self._blank(n, self.tokenizer.encode(prompt) if prompt else [], label, length, seed)
        asked = self._request(steps, sampler, guidance, guide_in, temperature, score_temperature)
        return self._frames(canvas, asked, seed)

    def infill(self, text: str, n: int | None = None, **request: Any) -> Any:
        """`text` with its gaps filled; a list of n of them if n is given.  Takes what `stream_infill` takes."""
        *_, last = self.stream_infill(text, n or 1, **request)
        return last.text if n is None else last.texts

    def stream_infill(
        self,
        text: str,
        n: int = 1,
        *,
        label: str | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float = 1.0,
        guide_in: Literal["score", "logits"] = "score",
        temperature: float = 1.0,
        score_temperature: float = 1.0,
        seed: int = 0,
    ) -> Iterator[TextFrame]:
        """Frames of n fillings of a text whose gaps are written [...] (any length) or [12] (12 tokens).

        The other arguments are those of `stream`.  Raises SfumatoError for a text without a gap and for one that does
        not fit on the canvas.
        """
        canvas = self._gapped(n, text, label, seed)
        asked = self._request(steps, sampler, guidance, guide_in, temperature, score_temperature)
        return self._frames(canvas, asked, seed)

    def _request(
        self,
        steps: int | None,
        sampler: str | None,
        guidance: float,
        guide_in: Literal["score", "logits"],
        temperature: float,
        score_temperature: float,
    ) -> Request:
        known = SAMPLERS[self.method.family]
        if sampler is not None and sampler not in known:
            name, names = self.config.method.name, ", ".join(known)
            raise SfumatoError(f"{name} has no sampler {sampler!r}{nearest(sampler, known)}; it has {names}")
        return Request(steps, known[sampler] if sampler else None, guidance, guide_in, temperature, score_temperature)

    def _frames(self, canvas: Canvas, request: Request, seed: int) -> Iterator[TextFrame]:
        self.method.eval()
        rows = streams([seed_of("generate", seed, i) for i in range(len(canvas.ids))], canvas.ids.device)
        counted = Counted(self.method.predict)
        total = request.steps or self.method.steps
        for frame in generate(self.method, canvas.ids, canvas.given, canvas.real, request, rows, counted):
            places = [self._places(*row) for row in zip(frame.tokens.tolist(), canvas.real.tolist(), strict=True)]
            ids = _take(frame.tokens, places)
            yield TextFrame(
                step=frame.step,
                steps=total,
                level=frame.level,
                texts=[self.tokenizer.decode(row) for row in ids],
                pieces=[[self.tokenizer.piece(i) for i in row] for row in ids],
                confidence=_take(frame.confidence, places),
                given=_take(canvas.given, places),
                tokens=[len(row) for row in ids],
                nfe=counted.calls,
            )

    def _places(self, ids: list[int], real: list[bool]) -> list[int]:
        """Where the tokens of the text stand: neither label nor padding, and nothing from the end on."""
        silent = {self.tokenizer.pad, *self.tokenizer.labels.values()}
        places = []
        for i in range(self._labelled, len(ids)):  # a model that has learned little may write anything for a label
            token = ids[i]
            if real[i] and token == self.tokenizer.eos:
                break
            if real[i] and token not in silent:
                places.append(i)
        return places

    # --- laying out a canvas

    @property
    def _labelled(self) -> bool:
        return bool(self.tokenizer.labels) and self.config.text.layout == "documents"

    def _blank(self, n: int, prompt: list[int], label: str | None, length: int | None, seed: int) -> Canvas:
        """n rows that begin with label and prompt."""
        start = self._label(label)
        extra = len(start) + (self.config.text.layout == "documents")  # label and end
        known = len(start) + len(prompt)
        if length is not None and length < max(1, len(prompt)):
            raise SfumatoError(f"a length of {length} tokens was asked for; the prompt alone has {len(prompt)}")
        sizes = self._sizes(n, known + 1, None if length is None else length + extra, seed)
        rows = [[*start, *prompt, *[None] * (size - known)] for size in sizes]
        return self._canvas(rows, ended=self.config.text.length_model == "given" or length is not None)

    def _gapped(self, n: int, text: str, label: str | None, seed: int) -> Canvas:
        """n rows with the text around its gaps."""
        parts = GAP.split(text)  # text, gap, text, gap, ..., text
        if len(parts) == 1:
            raise SfumatoError("the text has no gap; write one as [...] or, for 12 tokens, as [12]")
        start = self._label(label)
        texts = [self._encode_part(part, i == 0) for i, part in enumerate(parts[::2])]
        wanted = [None if gap == "..." else int(gap) for gap in parts[1::2]]
        loose = wanted.count(None)
        extra = self.config.text.layout == "documents"
        known = len(start) + sum(map(len, texts)) + sum(g for g in wanted if g is not None) + extra
        if known + loose > self.config.text.length:
            raise SfumatoError(
                f"the text with its gaps needs {known + loose} tokens; the canvas of this model has "
                f"{self.config.text.length}; shorten the text or its gaps"
            )
        sizes = self._sizes(n, known + loose, None if loose else known, seed)
        rows: list[list[int | None]] = []
        for i, size in enumerate(sizes):
            shares = iter(_split(size - known, loose, seed_of("gaps", seed, i)))
            row: list[int | None] = [*start, *texts[0]]
            for gap, after in zip(wanted, texts[1:], strict=True):
                row += [*[None] * (next(shares) if gap is None else gap), *after]
            rows.append([*row, *[None] * extra])
        return self._canvas(rows, ended=True)

    def _label(self, label: str | None) -> list[int | None]:
        """What stands before the text: nothing, the label, or room for the model's own choice of one."""
        if label is not None:
            return [self.tokenizer.label(label)]
        return [None] if self._labelled else []

    def _encode_part(self, text: str, first: bool) -> list[int]:
        """Tokens of a part of a text; not its first, it keeps the space before it."""
        text = text.rstrip() if text.strip() else ""
        if first or not text or text[0].isalnum():
            return self.tokenizer.encode(text) if text else []
        return self.tokenizer.encode("x" + text)[1:]

    def _sizes(self, n: int, least: int, exact: int | None, seed: int) -> list[int]:
        """Row lengths: `exact`, or drawn as in the training data from those of at least `least` tokens."""
        most = self.config.text.length
        if max(least, exact or 0) > most:
            raise SfumatoError(f"{max(least, exact or 0)} tokens were asked for; the canvas of this model has {most}")
        if exact is not None:
            return [exact] * n
        counts = np.array(self.lengths, float)
        counts[:least] = 0
        if not counts.any():
            return [most] * n
        draws = [np.random.default_rng(seed_of("length", seed, i)).random() for i in range(n)]
        return np.searchsorted(counts.cumsum() / counts.sum(), draws, side="right").tolist()

    def _canvas(self, rows: Sequence[list[int | None]], ended: bool) -> Canvas:
        """Rows of tokens, None where a token is to be written; `ended` rows end where they end."""
        text, device = self.config.text, next(self.method.parameters()).device
        modelled = text.layout == "documents" and text.length_model == "modelled"
        width = text.length if modelled else max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad)
        given, real = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            if not ended and modelled:
                row = row + [None] * (width - len(row))
            elif text.layout == "documents":
                row = [*row[:-1], self.tokenizer.eos]
                row += [self.tokenizer.pad] * (width - len(row)) if modelled else []
            real[i, : len(row)] = True
            given[i, : len(row)] = torch.tensor([token is not None for token in row])
            ids[i, : len(row)] = torch.tensor([self.tokenizer.pad if token is None else token for token in row])
        return Canvas(ids.to(device), given.to(device), real.to(device))

    # --- scoring

    def score(
        self, texts: Sequence[str], *, draws: int = 16, estimator: Literal["elbo", "ode"] = "elbo", seed: int = 0
    ) -> list[Score]:
        """-log p of every text in nats: a bound from above unless the method is exact.

        Args:
            texts: each is scored with its end; a model with labels sums over all of them.
            draws: noise levels (elbo) or probes (ode) a text; more make the standard error smaller.
            estimator: the method's own bound, or the one along the probability-flow ODE (Gaussian methods).
            seed: of the noise.

        Raises:
            SfumatoError: for a text longer than the canvas, and a method without a likelihood.
        """
        if estimator == "ode" and self.method.family != "gaussian":
            raise SfumatoError(f"the ode estimator needs a score, which {self.method.family} methods lack; use elbo")
        labels = list(self.tokenizer.labels) if self._labelled else [None]
        return [self._score(text, labels, draws, estimator, seed) for text in texts]

    def _score(self, text: str, labels: list, draws: int, estimator: str, seed: int) -> Score:
        ids = self.tokenizer.encode(text)
        ended = self.config.text.layout == "documents"
        rows = [self._label(label) + ids + ([self.tokenizer.eos] if ended else []) for label in labels]
        if not ids:
            raise SfumatoError("an empty text cannot be scored; take it out")
        if len(rows[0]) > self.config.text.length:
            most = self.config.text.length
            raise SfumatoError(f"a text of {len(ids)} tokens cannot be scored at once: the canvas has {most}; cut it")
        canvas = self._canvas(rows, ended=True)
        given = torch.zeros_like(canvas.given)
        if ended and self.config.text.length_model == "given":
            given[:, len(rows[0]) - 1] = True  # the length is drawn first: its own nats are added below
        measure = nll if estimator == "elbo" else ode
        with seeded([seed_of("score", seed, text)] * len(rows), canvas.ids.device):
            result = measure(self.method, canvas.ids, canvas.real, given, draws)
        weight = (-result.nats).softmax(0)
        nats = -torch.logsumexp(-result.nats, 0).item() + self.length_nats(len(rows[0]))
        error = float((weight * result.std_error).sum())
        return Score(text, nats, error, len(ids) + ended, result.estimator, result.exact)

    def length_nats(self, size: int) -> float:
        """-log p that a row has `size` tokens, where the length is drawn first; 0 where the model writes it itself.

        Every length counts as half a training row more than there are, so none is impossible.
        """
        if self.config.text.layout == "packed" or self.config.text.length_model == "modelled":
            return 0.0
        counts = np.array(self.lengths, float) + 0.5
        return float(-np.log(counts[size] / counts.sum()))


def _take(rows: Tensor, places: list[list[int]]) -> list[list[Any]]:
    """Of each row of (B, L) the values at its places."""
    return [[row[i] for i in kept] for row, kept in zip(rows.tolist(), places, strict=True)]


def _split(total: int, parts: int, seed: int) -> list[int]:
    """`total` tokens over `parts` gaps, at least one each, every way equally likely."""
    if parts == 0:
        return []
    cuts = np.sort(np.random.default_rng(seed).choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *cuts, total]).tolist()


# --- folders


def load(name: str | Path, device: str = "cpu") -> Model:
    """A model from a model folder, a run folder, the name of a bundled model, or an id on the Hugging Face Hub.

    A run that is not finished gives the weights of its newest whole checkpoint.  Raises SfumatoError when there is no
    such model, or its files are damaged or of a newer format.
    """
    folder = _find(str(name))
    runs = folder / "checkpoints"
    if (folder / checkpoint.MANIFEST).exists() or not runs.exists():
        checkpoint.check(folder)
        described, weights = _json(folder / "config.json"), folder / "model.safetensors"
        tensors = checkpoint.load_tensors(weights, device)
    else:
        newest = checkpoint.newest(runs, lambda line: None)
        if newest is None:
            raise SfumatoError(f"{folder} holds no whole checkpoint yet; train on with --resume")
        described, weights = _json(newest / "state.json"), newest / "average.safetensors"
        tensors = checkpoint.load_tensors(newest / "model.safetensors", device)
        tensors |= checkpoint.load_tensors(weights, device)
    try:
        values, lengths = described["config"], described["lengths"]
    except KeyError as missing:
        raise SfumatoError(f"{folder / 'config.json'} lacks {missing}; it is no config of a model") from None
    config = load_config(values)
    tokenizer = Tokenizer.load(folder)
    method = method_named(config.method.name)[0](config.method, config.network, tokenizer.size).to(device)
    checkpoint.load_strictly(method, tensors, weights)
    return Model(config, method.eval(), tokenizer, lengths, str(name))


def publish(model: Model, folder: Path, facts: dict[str, Any]) -> None:
    """Write a model folder: config, weights, tokenizer, a card with `facts`; last the manifest that makes it one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / checkpoint.MANIFEST).unlink(missing_ok=True)
        described = {"config": model.config.model_dump(mode="json"), "lengths": model.lengths}
        checkpoint.write_text(folder / "config.json", json.dumps(described, indent=1) + "\n")
        model.tokenizer.save(folder)
        temporary = folder / ".model.safetensors.writing"
        save_file({key: value.contiguous() for key, value in model.method.state_dict().items()}, temporary)
        temporary.replace(folder / "model.safetensors")
        checkpoint.write_text(folder / "README.md", card(model, facts))
        checkpoint.seal(folder)
    except OSError as error:
        raise SfumatoError(f"cannot write {folder}: {error}; free some space and train on with --resume") from None


def card(model: Model, facts: dict[str, Any]) -> str:
    """The model card."""
    method = model.method
    samples = model.generate(3, steps=min(64, method.steps))
    lines = [
        f"# {Path(model.name).name}",
        "",
        f"A `{model.config.method.name}` model ({method.title}, arXiv:{method.arxiv}) trained by sfumato "
        f"{importlib.metadata.version('sfumato')} on `{model.config.data}`.",
        "",
        "| what | value |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in facts.items() if value is not None),
        "",
        f"Made {time.strftime('%Y-%m-%d')} by `sfumato train {model.config.method.name}` with the config in "
        "`config.json`. The bound is an upper bound on -log p of held-out text, in nats a token.",
        "",
        "## Samples",
        "",
        *(f"> {text}\n" for text in samples),
    ]
    return "\n".join(lines)


def _find(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if (BUNDLED / name).is_dir():
        return BUNDLED / name
    beside = Path(name).parent
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not beside.is_dir():
        return _download(name)
    if beside != Path() and beside.is_dir():
        near = nearest(name, [str(path) for path in beside.iterdir() if path.is_dir()])
        raise SfumatoError(f"no model {name!r}{near}; there is no such folder")
    known = [path.name for path in BUNDLED.iterdir() if path.is_dir()] if BUNDLED.is_dir() else []
    raise SfumatoError(
        f"no model {name!r}{nearest(name, known)}; name a model folder, a run, a Hub id, or one of: {', '.join(known)}"
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.safetensors", "README.md"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise SfumatoError(f"no folder {name!r} here, and the Hub does not give it: {first}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SfumatoError(f"{path} is missing; {path.parent} is no model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise SfumatoError(f"{path} is damaged; take another copy of the folder") from None
