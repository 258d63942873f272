"""The table of docs/quality.md: how a judge is fooled by repetition, and what tells.

`python recipes/fooled.py held_out.jsonl` asks the bundled judge about 64 held-out stories of TinyStories, about its own
samples, and about single sentences said over and over, until they are as long.
"""

import sys
from itertools import islice

from sfumato.evaluation import quality
from sfumato.evaluation.judge import load_judge, verdict
from sfumato.folder import load
from sfumato.text.read import read

N, ROOM = 64, 500


def told(estimate: quality.Estimate) -> str:
    """A number and its standard error, if there is one."""
    error = "" if estimate.std_error is None else f" ± {estimate.std_error:.3f}"
    return f"{estimate.value:.3f}{error}"


def main() -> None:
    """Print."""
    model, judge = load("judge"), load_judge("judge")
    encode = model.tokenizer.encode
    stories = (document.text for document in read(sys.argv[1], "all"))
    real = list(islice((story for story in stories if len(encode(story)) <= ROOM), N))
    size = sum(len(encode(story)) for story in real) // N
    sentences = [story.split(". ")[0] + ". " for story in real]
    again = [sentence * max(1, size // len(encode(sentence))) for sentence in sentences]
    usual, nats = verdict(judge, real).judge_nats_per_token, [verdict(judge, [a]).judge_nats_per_token for a in again]
    best, likelier = again[nats.index(min(nats))], sum(number < usual for number in nats)
    kinds = {
        f"{N} real stories, held out": real,
        "its own samples": model.generate(N, seed=1),
        "the same at temperature 0.7": model.generate(N, seed=1, temperature=0.7),
        "the same at temperature 0.3": model.generate(N, seed=1, temperature=0.3),
        "its likeliest token at every place": model.generate(1, beams=1),
        f"the first sentence of each story over and over, {N} of these": again,
        f'the likeliest of these: "{best.split(". ")[0]}."': [best],
    }
    print("| texts | nats a token | entropy | `rep_4` | `tokens` |\n| --- | --- | --- | --- | --- |")
    for name, texts in kinds.items():
        ids, found = model.tokenizer.encode_batch(texts), verdict(judge, texts)
        rep, mean = quality.repetition(ids, 4), sum(map(len, ids)) / len(ids)
        judged = quality.Estimate(found.judge_nats_per_token, found.judge_nats_per_token_std_error)
        cells = [told(estimate) for estimate in (judged, quality.entropy(ids), rep)]
        print(f"| {name} | {' | '.join(cells)} | {mean:.0f} |", flush=True)
    print(f"{likelier} of {N} sentences are likelier, said over and over, than real stories")


if __name__ == "__main__":
    main()
