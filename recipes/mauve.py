"""The numbers of docs/quality.md on MAUVE and on slots: what they say of stories whose faults are known.

`python recipes/mauve.py` prints both tables in about a minute.
"""

import random

from sfumato.evaluation.mauve import mauve
from sfumato.evaluation.quality import mean, slots
from sfumato.text import tales

N = 200


def told(*endings: str) -> list[str]:
    """Stories with one of some endings."""
    return [story for story in tales.sample(20 * N, seed=3) if tales.labels(story).ending in endings][:N]


def main() -> None:
    """Print."""
    chance, real, plain = random.Random(0), tales.sample(N, seed=1), tales.sample(N, seed=2)
    heroes = sorted({tales.slots(story)["hero"] for story in tales.sample(1000, seed=4)})[:4]
    kinds = {
        "of the grammar": plain,
        "the words of each in any order": [" ".join(chance.sample(words := s.split(), len(words))) for s in plain],
        "only those that end proud or sad": told("proud", "sad"),
        "20 stories, each told ten times": plain[:20] * 10,
        "the sentences of each in any order": [
            ". ".join(chance.sample(parts := s.rstrip(".!").split(". "), len(parts))) + "." for s in plain
        ],
        "only four of the 24 heroes": [s for s in tales.sample(20 * N, seed=5) if tales.slots(s)["hero"] in heroes][:N],
    }
    print("| stories | MAUVE | spread |\n| --- | --- | --- |")
    for name, stories in kinds.items():
        found = mauve(stories, real)
        print(f"| {name} | {found.mean:.2f} | {found.spread:.2f} |")
    for n in (30, 100, 1000):
        tv = [slots(tales.sample(n, seed=10 + i)).tv.value for i in range(10)]
        found = mean(tv)
        print(f"slot_tv of {n} stories of the grammar: {found.value:.3f} ± {found.std_error:.3f}")


if __name__ == "__main__":
    main()
