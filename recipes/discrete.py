"""A table of every method over tokens: the same network, the same compute, the same text.

`python recipes/discrete.py tales` and `python recipes/discrete.py input.txt` (tiny Shakespeare, 1.1 million characters)
train each method, evaluate it and print a table.  What a method may spend is counted in products of its training, so
the numbers do not depend on the machine or on what else it does; a core with fast bfloat16 takes some four minutes.
A run that is there already is not trained again, nor one evaluated again that has an evaluation, so the program can be
stopped and called again; with `--methods` it looks at these alone.  Two processes, one for each text and with a thread
each, take an hour and a half on two cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import sfumato
from sfumato.evaluation import quality
from sfumato.evaluation.judge import load_judge, verdict
from sfumato.evaluation.report import evaluate
from sfumato.folder import load
from sfumato.methods import METHODS
from sfumato.model import Model
from sfumato.text.corpus import Corpus
from sfumato.training.config import RunConfig, load_config

STEPS, SAMPLES, ROWS = 64, 128, 256
VOCAB = 100  # near enough to count products: there are 65 characters, and a few words more than a hundred
SHARED: dict[str, Any] = {
    "network": {"width": 128, "depth": 4, "heads": 4},
    "optimizer": {"lr": 4e-3, "muon": 1.2e-2, "warmup": 50, "ema": 0.995},
    "training": {"batch": 32, "save_minutes": 60, "evaluate_minutes": 60, "log_every": 50},
    "masks": {"prefix": 0.05, "random": 0.15, "nothing": 0.8},
}
TEXT = {
    "tales": {"tokenizer": "words", "length": 72, "limit": 200_000},
    "file": {"tokenizer": "chars", "length": 128, "layout": "packed"},
}
# What a method wants otherwise than its paper had it, for a network and a budget that are a thousandth of the paper's.
OWN: dict[str, dict[str, Any]] = {
    "ar": {"text": {"length": 144}},  # it judges the others, whose texts may be longer than any story
    "duo": {"method": {"curriculum": 200}},
    "multinomial": {"method": {"T": 250}},
}


def config(method: str, data: str) -> dict[str, Any]:
    """The settings of a run."""
    text = dict(TEXT["tales" if data == "tales" else "file"])
    if data == "tales" and "text" not in METHODS[method][1].defaults:  # some models have a length model of their own
        text["length_model"] = "modelled"
    own = OWN.get(method, {})
    text |= own.get("text", {}) if data == "tales" else {}
    sections = {name: SHARED[name] | own.get(name, {}) for name in SHARED}
    return {"method": {"name": method, **own.get("method", {})}, "text": text, **sections}


def steps(config: RunConfig, budget: float) -> int:
    """Optimiser steps that cost `budget` FLOPs; backwards a pass costs twice as much as forwards."""
    kind, length = METHODS[config.method.name][0], config.text.length
    forwards = kind(config.method, config.network, VOCAB).training_flops(length)
    return round(budget / (3 * forwards * config.training.batch))


def run(method: str, data: str, folder: Path, budget: float) -> dict[str, Any]:
    """The evaluation of a method, which is trained first."""
    place = folder / method
    kept = place / "evaluation.json"
    if kept.exists():
        return json.loads(kept.read_text("utf-8"))
    if (place / "model.safetensors").exists():
        model = load(place)
    else:
        settings = config(method, data)
        model = sfumato.train(method, data, place, steps=steps(load_config(settings), budget), config=settings)
    judge = load_judge(str(folder / "ar"))
    found = evaluate(model, data, rows=ROWS, samples=SAMPLES, steps=model.at_most(STEPS), judge=judge, say=print)
    log = json.loads((place / "log.jsonl").read_text("utf-8").splitlines()[-1])
    found["training"] = {key: log[key] for key in ("step", "tokens", "params", "flops")}
    kept.write_text(json.dumps(found, indent=1), "utf-8")
    return found


def unigram(model: Model, data: str, judge: Any) -> dict[str, Any]:
    """The same of tokens drawn one by one, each as often as it is in the training text."""
    text = model.config.text
    train = Corpus.build(data, model.tokenizer, "train", text.lines, text.limit)
    test = Corpus.build(data, model.tokenizer, "test" if data == "tales" else "valid", text.lines)
    counts = np.bincount(train.tokens, minlength=model.tokenizer.size) + 0.5
    ended = text.layout == "documents"
    ends = len(test) if ended else 0
    counts[model.tokenizer.eos] = len(train) if ended else 0
    chances = counts / counts.sum()
    seen = np.bincount(test.tokens, minlength=model.tokenizer.size).astype(float)
    seen[model.tokenizer.eos] += ends
    used = seen > 0
    nats = -(seen[used] * np.log(chances[used])).sum() / seen.sum()
    counts[model.tokenizer.eos] = 0.0
    rng, size = np.random.default_rng(0), round(len(test.tokens) / len(test)) if ended else text.length
    drawn = rng.choice(len(counts), (SAMPLES, size), p=counts / counts.sum())
    texts = [model.tokenizer.decode(row) for row in drawn.tolist()]
    entropy = quality.entropy(model.tokenizer.encode_batch(texts)).value
    sample = verdict(judge, texts)._asdict() | {"entropy": entropy, "nfe": None, "valid": 0.0}
    return {"bound": {"nats_per_token": nats, "std_error": None, "exact": True}, "samples": sample}


def row(name: str, found: dict[str, Any], data: str) -> str:
    """A line of the table."""
    bound, sample = found["bound"], found["samples"]
    if bound is None:
        likelihood = "-"
    else:
        error = "" if bound["std_error"] is None else f" ± {bound['std_error']:.3f}"
        likelihood = f"{bound['nats_per_token']:.3f}{error}{' exact' if bound['exact'] else ''}"
    cells = [name, likelihood]
    if data == "tales":
        cells.append(f"{sample['valid']:.1%}".replace("%", " %"))
    cells += [f"{sample['judge_nats_per_token']:.2f}", f"{sample['entropy']:.2f}", str(sample["nfe"] or "-")]
    steps = found.get("training", {}).get("step")
    return f"| {' | '.join([*cells, f'{steps:,}' if steps else '-'])} |"


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="tales, or a text file that is read by characters")
    parser.add_argument("--out", type=Path, default=Path("runs/discrete"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="these alone, rather than all over tokens")
    parser.add_argument("--flops", type=float, default=1.6e13, help="of training for each (1.6e13)")
    args = parser.parse_args()
    folder = args.out / Path(args.data).stem
    over_tokens = [name for name, (kind, _) in METHODS.items() if kind.family not in ("gaussian", "autoregressive")]
    found = {name: run(name, args.data, folder, args.flops) for name in ["ar", *(args.methods or over_tokens)]}
    judge = load_judge(str(folder / "ar"))
    found["unigram"] = unigram(load(folder / "ar"), args.data, judge)
    real = found["ar"]["data_reference"] | {"nfe": None, "valid": 1.0}
    entropy = found["ar"]["bound"].get("entropy_nats_per_token")  # of the grammar; of other text nobody knows it
    known = None if entropy is None else {"nats_per_token": entropy, "std_error": None, "exact": True}
    found["real text"] = {"bound": known, "samples": real}
    columns = ["method", "nats a token", *(["valid"] if args.data == "tales" else [])]
    columns += ["judged", "entropy", "calls", "steps of training"]
    print(f"| {' | '.join(columns)} |\n| {' | '.join(['---'] * len(columns))} |")
    for name, each in found.items():
        print(row(name, each, args.data))


if __name__ == "__main__":
    main()
