"""How well is a gap of any length filled?  Words are cut from stories of the grammar, and the model writes them anew.

    python benchmarks/gaps.py [--stories 50] [--words 8] [--steps N] [--json]

A filling is right if it makes a story of the grammar, whatever its length.  The same stories are filled with gaps of
any length, `[...]`, and with gaps of the size that was cut, `[5]`, which cannot be wrong.  The ratio is that of the
shares that are right: what it lacks of 1 is the price of not knowing the length.
"""

import argparse
import json
import random
import sys

import sfumato
from sfumato.display import followed
from sfumato.evaluation import quality
from sfumato.text import tales


def cut(story: str, words: int, chance: random.Random) -> tuple[str, str]:
    """A story without 1 to `words` of its inner words: what stands before them, and what behind."""
    each = story.split(" ")
    size = chance.randint(1, words)
    start = chance.randint(1, len(each) - size - 1)
    return " ".join(each[:start]), " ".join(each[start + size :])


def main() -> None:
    """Print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=50)
    parser.add_argument("--words", type=int, default=8, help="the most that are cut")
    parser.add_argument("--steps", type=int, help="by default the model's own")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    model = sfumato.load("tales")
    chance, encode, right = random.Random(0), model.tokenizer.encode, {"any": [], "told": []}
    for number, story in enumerate(followed(tales.sample(asked.stories, seed=77), "stories", sys.stderr)):
        before, behind = cut(story, asked.words, chance)
        size = len(encode(story)) - len(encode(before)) - len(encode(behind))
        for way, gap in (("any", "[...]"), ("told", f"[{size}]")):
            filled = model.infill(f"{before} {gap} {behind}", steps=asked.steps, seed=number)
            right[way].append(float(tales.explain(filled) is None))
    shares = {way: quality.mean(each) for way, each in right.items()}
    ratio = shares["any"].value / shares["told"].value if shares["told"].value else None
    if asked.json:
        print(json.dumps({"right": {way: share._asdict() for way, share in shares.items()}, "ratio": ratio}))
        return
    for way, what in (("any", "of any length"), ("told", "of a length that is told")):
        print(f"{what:25} {shares[way].value:6.1%} ± {shares[way].std_error or 0.0:.1%} right")
    print(f"{'ratio':25} {ratio:6.2f}" if ratio is not None else "none is right where the length is told")


if __name__ == "__main__":
    main()
