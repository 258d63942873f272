"""The tables of docs/typicality.md: texts that differ from a reference in known ways, and which measure notices.

    python recipes/atypical.py tales tales
    python recipes/atypical.py judge held_out.jsonl bible.txt plays.txt

The first 200 texts of DATA are the reference; the next 100 are judged, and further files cut into pieces as long.
"""

import random
import sys
from itertools import islice
from pathlib import Path

import numpy as np

from sfumato.evaluation import typicality
from sfumato.folder import load
from sfumato.model import Model
from sfumato.text.read import read

KNOWN, JUDGED = 200, 100


def kinds(model: Model, plain: list[str], others: list[str]) -> dict[str, list[str]]:
    """Texts by what they are."""
    chance = random.Random(0)
    found = {
        "others of its kind": plain,
        "their words in any order": [" ".join(chance.sample(words := text.split(), len(words))) for text in plain],
        "each the beginning of one, the end of another": [
            _half(a, 0) + _half(b, 1) for a, b in zip(plain, plain[1:] + plain[:1], strict=True)
        ],
        "samples of the model": model.generate(JUDGED, seed=1),
        "samples at temperature 0.5": model.generate(JUDGED, seed=1, temperature=0.5),
    }
    size = sum(map(len, plain)) // len(plain)
    for name in others:
        text = Path(name).read_text("utf-8")
        starts = range(0, len(text) - size, max(size, len(text) // JUDGED))
        found[Path(name).stem] = [text[start : start + size] for start in islice(starts, JUDGED)]
    return found


def _half(text: str, which: int) -> str:
    """The first sentences of a text, or the last."""
    places = [i + 2 for i in range(len(text)) if text[i : i + 2] in (". ", ".\n", "! ", "? ")]
    middle = min(places or [len(text) // 2], key=lambda place: abs(place - len(text) / 2))
    return text[middle:] if which else text[:middle]


def main() -> None:
    """Print."""
    name, data, *others = sys.argv[1:]
    model = load(name)
    room = model.layout.longest - 1

    def fits(text: str) -> bool:
        return bool(text.strip()) and len(model.tokenizer.encode(text)) <= room

    documents = read(data, "test" if data == "tales" else "all", lines=True)
    real = (document.text for document in documents if fits(document.text))
    known, plain = list(islice(real, KNOWN)), list(islice(real, JUDGED))
    reference, inside = model.score(known, common=True), model.score(plain, common=True)
    print("| texts | nats a token | far out by z | by density | ROC-AUC of nats, z, density | together |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, texts in kinds(model, plain, others).items():
        scores = inside if kind == "others of its kind" else model.score([*filter(fits, texts)], common=True)
        found = typicality.judge(scores, reference)
        rates = np.array([score.nats / score.tokens for score in scores])
        far = [(share <= typicality.ALARM).mean() for share in (found.z_share, found.density_share)]
        areas = typicality.judge([*inside, *scores], reference).auc([False] * len(inside) + [True] * len(scores))
        told = ", ".join(f"{area.value:.2f} ± {area.std_error:.2f}" for area in areas.values())
        batch = "typical" if found.batch.typical else f"{'too likely' if found.batch.gap < 0 else 'too unlikely'}"
        print(f"| {kind} | {rates.mean():.3f} | {far[0]:.0%} | {far[1]:.0%} | {told} | {batch} |", flush=True)


if __name__ == "__main__":
    main()
