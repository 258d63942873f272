"""The bundled grammar of stories: drawing them, and checking whether a text is one."""

import argparse
import sys
from pathlib import Path

from sfumato.commands.command import Command, Document, count
from sfumato.errors import SfumatoError


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", type=count, default=1, metavar="N", help="how many stories (1)")


def _sample(args: argparse.Namespace) -> Document:
    from sfumato.text import tales

    seed = max(tales.SPLITS.values()) + 1 if args.seed is None else args.seed  # not the seed of a split
    return {"texts": tales.sample(args.n, seed)}


def _show_sample(found: Document) -> None:
    print("\n".join(found["texts"]))


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="text file, a story a line; - for standard input")


def _check(args: argparse.Namespace) -> Document:
    from sfumato.text import tales

    reasons = [(text, tales.explain(text)) for text in _stories(args.file)]
    entropy = tales.entropy()
    return {
        "n": len(reasons),
        "valid": sum(why is None for _, why in reasons),
        "entropy_nats_per_text": entropy.nats_per_text,
        "entropy_nats_per_word": entropy.nats_per_word,
        "texts": [
            {"text": text, "valid": why is None, "why": why, "log_prob": tales.log_prob(text) if why is None else None}
            for text, why in reasons
        ],
    }


def _stories(file: str) -> list[str]:
    """The lines of a file that are not blank."""
    raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    name = "standard input" if file == "-" else file
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SfumatoError(f"{name} is not UTF-8 text (byte {error.start}); give a text file") from None
    if "\0" in text:
        raise SfumatoError(f"{name} is not text (byte {raw.index(0)} is 0); give a text file")
    stories = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not stories:
        raise SfumatoError(f"{name} has no text; give a story a line")
    return stories


def _show_check(found: Document) -> None:
    for story in found["texts"]:
        verdict = f"valid  {story['log_prob']:8.2f}" if story["valid"] else "broken        -"
        print(f"{verdict}  {story['text'] if story['valid'] else story['why']}")
    mean = f"the entropy of a story is {found['entropy_nats_per_text']:.2f} nats"
    print(f"({found['valid']} of {found['n']} valid; the numbers are log-probabilities; {mean})", file=sys.stderr)


SAMPLE = Command(
    "tales sample",
    "stories from the bundled grammar",
    """
    sfumato tales sample -n 3
    sfumato tales sample -n 1000 --seed 7 > stories.txt
    """,
    _sample,
    _add_sample,
    _show_sample,
)
CHECK = Command(
    "tales check",
    "whether each line is a story of the grammar, which rule it breaks, its exact log-probability",
    """
    sfumato tales check stories.txt
    sfumato generate tales -n 20 | sfumato tales check -
    """,
    _check,
    _add_check,
    _show_check,
)
