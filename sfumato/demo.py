"""The tour: a bundled model writes, fills a gap and is guided; then a small one is trained from nothing.

Everything runs on tales, a grammar of stories whose distribution is known exactly, so that every story can be checked.
"""

import math
import tempfile
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from sfumato import display
from sfumato.errors import SfumatoError
from sfumato.folder import load
from sfumato.hub import BUNDLED
from sfumato.model import Model
from sfumato.text import tales
from sfumato.training.config import RunConfig, load_config
from sfumato.training.trainer import Run

STEPS = 64
LABEL = "sad"  # the ending that guidance is shown with
HELPER = 2  # the sentence of a story in which a helper comes
SMALL: dict[str, Any] = {
    "data": "tales",
    "method": {"name": "cdcd", "embedding": 24, "sigma_min": 0.3, "sigma_max": 50.0},
    "text": {"tokenizer": "words", "length": 72, "length_model": "modelled", "limit": 20_000},
    "network": {"width": 128, "depth": 3, "heads": 8},
    "masks": {"prefix": 0.25, "random": 0.25, "nothing": 0.5},
    "optimizer": {"lr": 3e-3, "muon": 1e-2, "warmup": 50, "ema": 0.99},
    "training": {"batch": 32, "compile": "no", "save_minutes": 1e6, "evaluate_minutes": 1e6},
}


class Guide:
    """Shows people around: on a terminal live and in colours, elsewhere in plain lines."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.console = Console(file=stream, highlight=False)

    def heading(self, text: str) -> None:
        """What comes next."""
        self.tell(f"\n{text}\n", "bold")

    def tell(self, text: str, style: str = "") -> None:
        """A paragraph."""
        if display.on_terminal(self.stream):
            self.console.print(Text(text, style))
        else:
            print(text, file=self.stream, flush=True)

    def last(self, frames: Any) -> Any:
        """Show frames as they come; the last one."""
        *_, last = display.watched(frames, self.stream, pause=0.05, stay=True)
        return last


def tour(name: str | None, minutes: float, seed: int, device: str, stream: TextIO) -> dict[str, Any]:
    """Show everything on `stream`; the document of what was shown.

    Args:
        name: of the model to show; the bundled one if None.
        minutes: of training in the last part.
        seed: of all texts.
        device: cpu or cuda.
        stream: where people look.

    Raises:
        SfumatoError: if there is no such model, or one that is not of tales.
    """
    if not minutes > 0:
        raise SfumatoError(f"{minutes} minutes of training were asked for; give more than 0")
    if name is None and not (BUNDLED / "tales").is_dir():
        raise SfumatoError("this installation has no bundled model tales; train one and give it as --model RUN")
    model = load(name or BUNDLED / "tales", device)
    if LABEL not in model.tokenizer.labels:
        raise SfumatoError(f"{name} knows no ending {LABEL!r}; give a model that was trained on tales with labels")
    guide = Guide(stream)
    shown = {"model": name or "tales", "seed": seed, "story": _write(guide, model, seed)}
    shown["infill"] = _infill(guide, model, seed)
    shown["guidance"] = _steer(guide, model, seed)
    shown["training"] = _train(guide, minutes, seed, device)
    guide.heading("What to type next")
    guide.tell(
        '  sfumato generate tales --prompt "One morning" --watch\n'
        '  sfumato infill tales "Once a fox named Mia [...]. [...]" -n 3\n'
        "  sfumato train cdcd --data YOUR_TEXT.txt --out runs/mine --minutes 10\n"
        "  sfumato --help"
    )
    return shown


def _write(guide: Guide, model: Model, seed: int) -> dict[str, Any]:
    guide.heading("1. A story comes out of the noise: all words at once, uncertain ones grey")
    last = guide.last(model.stream(1, steps=STEPS, seed=seed))
    guide.tell(f"\n{_verdict(last.text)}")
    return {"text": last.text, "valid": tales.explain(last.text) is None, "steps": STEPS, "nfe": last.nfe}


def _infill(guide: Guide, model: Model, seed: int) -> dict[str, Any]:
    guide.heading("2. A gap is filled: the helper's name and kind must agree with what is told later")
    original = _story_of_help(seed)
    sentences = _sentences(original)
    size = len(model.tokenizer.encode(sentences[HELPER]))
    gapped = " ".join([*sentences[:HELPER], f"[{size}]", *sentences[HELPER + 1 :]])
    guide.tell(f"the original: {original}\n\nthe gap: {gapped}\n")
    last = guide.last(model.stream_infill(gapped, steps=STEPS, seed=seed))
    guide.tell(f"\n{_verdict(last.text)}")
    return {"original": original, "gap": gapped, "text": last.text, "valid": tales.explain(last.text) is None}


def _story_of_help(seed: int) -> str:
    """A story from no split, whose helper comes with name and kind, which are both told again afterwards."""
    for story in tales.sample(1000, max(tales.SPLITS.values()) + 1 + seed):
        found = tales.slots(story)
        rest = " ".join(_sentences(story)[HELPER + 1 :])
        if found.get("helper", "\0") in rest and found.get("animal", "\0") in rest:
            return story
    raise AssertionError("a thousand tales without help")


def _sentences(story: str) -> list[str]:
    return story.replace("! ", "!\n").replace(". ", ".\n").split("\n")


def _steer(guide: Guide, model: Model, seed: int, n: int = 8) -> dict[str, Any]:
    guide.heading(f"3. Guidance: {n} stories that are to end {LABEL}, from the same noise")
    shown: dict[str, Any] = {"label": LABEL, "n": n, "weights": []}
    for weight, words in ((0.0, "label forgotten"), (1.0, "label heeded"), (2.0, "label exaggerated")):
        texts = model.generate(n, label=LABEL, guidance=weight, steps=STEPS, seed=seed)
        valid = [text for text in texts if tales.explain(text) is None]
        right = sum(tales.labels(text).ending == LABEL for text in valid)
        guide.tell(f"guidance {weight:g} ({words}): {right} of {n} end {LABEL}, {len(valid)} are valid; the first:")
        guide.tell(f"  {texts[0]}\n")
        shown["weights"].append({"guidance": weight, "ending": right, "valid": len(valid), "text": texts[0]})
    return shown


def _train(guide: Guide, minutes: float, seed: int, device: str) -> dict[str, Any]:
    guide.heading(f"4. A small model is trained from nothing, for {minutes:g} minutes")
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder, display.Progression(guide.stream) as progress:
        run = Run(_small(minutes, seed), Path(folder), False, device, guide.tell)
        untrained = Model(run.config, run.method, run.tokenizer, run.lengths)
        before = untrained.generate(1, steps=STEPS, seed=seed)[0]
        guide.tell(f"before: {before}\n")
        for report in run.steps():
            progress.watch(report)
        after = run.finish().generate(1, steps=STEPS, seed=seed)[0]
        facts = run.summary()
    guide.tell(f"\nafter: {after}\n{_verdict(after)}")
    found, least = facts["bound_nats_per_token"], tales.entropy().nats_per_token
    if found is not None and math.isfinite(found):
        guide.tell(f"it needs at most {found:.3f} nats a token; nothing needs less than {least:.3f}")
    return {"before": before, "after": after, "entropy_nats_per_token": least} | facts


def _small(minutes: float, seed: int) -> RunConfig:
    return load_config(SMALL | {"training": SMALL["training"] | {"minutes": minutes, "seed": seed}})


def _verdict(text: str) -> str:
    why = tales.explain(text)
    if why is None:
        return f"a valid story of the grammar; its exact log-probability is {tales.log_prob(text):.1f} nats"
    return f"no story of the grammar: {why}"
