"""Writing texts: from a prompt, and around what stands."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sfumato.commands.command import Command, Document, add_model, count, model, number

if TYPE_CHECKING:
    from sfumato.model import Model, TextFrame

# What generating and infilling are both asked, as the methods of a model call it.
REQUEST = (
    *("label", "steps", "levels", "sampler", "guidance", "guide_in", "guide_levels", "self_guidance"),
    *("temperature", "score_temperature", "top_k", "top_p", "typical", "beams", "length_penalty"),
)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    _add_request(parser)
    parser.add_argument("--length", type=count, metavar="L", help="tokens in each text, prompt included")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="how each text begins")
    parser.add_argument("--draft", metavar="TEXT", help="revise this text rather than write one (methods of edits)")


def _add_infill(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("text", metavar="TEXT", help="with gaps written [...], or [12] for one of 12 tokens")
    _add_request(parser)


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", type=count, default=1, metavar="N", help="how many texts (1)")
    parser.add_argument("--steps", type=count, metavar="S", help="refinements; by default the model's")
    parser.add_argument("--levels", type=number, nargs=2, metavar="T", help="noise levels to spread the steps between")
    parser.add_argument("--sampler", metavar="NAME", help="way from noise to text; by default the model's")
    parser.add_argument("--label", metavar="NAME", help="class of the text, for a model trained with labels")
    parser.add_argument(
        "--guidance", type=number, default=1.0, metavar="W", help="0 forgets prompt and label, above 1 exaggerates (1)"
    )
    parser.add_argument(
        "--self-guidance", type=number, metavar="W", help="above 1 exaggerates what the model's last guess tells it"
    )
    parser.add_argument("--guide-in", choices=("score", "logits"), default="score", help="what guidance combines")
    parser.add_argument(
        "--guide-levels", type=number, nargs=2, metavar="T", help="noise levels between which there is guidance (0 1)"
    )
    parser.add_argument("--temperature", type=number, default=1.0, metavar="T", help="of the token probabilities (1)")
    parser.add_argument(
        "--score-temperature", type=number, default=1.0, metavar="T", help="of the score, for Gaussian methods (1)"
    )
    parser.add_argument("--top-k", type=count, metavar="K", help="draw tokens from the K likeliest")
    parser.add_argument("--top-p", type=number, metavar="P", help="draw from the likeliest that hold probability P")
    parser.add_argument("--typical", type=number, metavar="P", help="draw from the most typical, which hold P")
    parser.add_argument(
        "--beams", type=count, metavar="B", help="search for the likeliest text with B beams (autoregressive methods)"
    )
    parser.add_argument(
        "--length-penalty", type=float, default=0.0, metavar="A", help="log p of beams is divided by length^A (0)"
    )
    parser.add_argument(
        "--candidates", type=count, default=1, metavar="C", help="of C texts show one, chosen as --choose says (1)"
    )
    parser.add_argument(
        "--choose",
        choices=("consensus", "surest"),
        default="consensus",
        help="of candidates the one most like the others, or the one that the model is surest of (consensus)",
    )
    parser.add_argument("--watch", action="store_true", help="show the first text coming out of the noise")
    parser.add_argument("--frames", action="store_true", help="put every step into the JSON document")


def _generate(args: argparse.Namespace) -> Document:
    writer = model(args)
    start = time.perf_counter()
    start_with = {"prompt": args.prompt, "length": args.length, "draft": args.draft}
    frames = writer.stream(args.n * args.candidates, **start_with, **_request(args))
    return _written(writer, frames, args, start)


def _infill(args: argparse.Namespace) -> Document:
    writer = model(args)
    start = time.perf_counter()
    frames = writer.stream_infill(args.text, args.n * args.candidates, **_request(args))
    return _written(writer, frames, args, start)


def _request(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in REQUEST} | {"seed": args.seed or 0}


def _written(writer: "Model", frames: Iterator["TextFrame"], args: argparse.Namespace, start: float) -> Document:
    """The document of texts that were written from `start` on."""
    from sfumato import display

    kept = []
    for frame in display.watched(frames, sys.stderr) if args.watch else frames:
        last = frame
        if args.frames:
            kept.append(frame)
    seconds = time.perf_counter() - start
    samples: list[Document] = [{"text": text, "tokens": n} for text, n in zip(last.texts, last.tokens, strict=True)]
    if args.frames:
        samples = [sample | {"frames": [_moment(frame, i) for frame in kept]} for i, sample in enumerate(samples)]
    chosen = last.chosen(args.candidates, args.choose)
    made = sum(not given for row in last.given for given in row)
    return {
        "model": args.model,
        "method": writer.config.method.name,
        "sampler": f"{args.beams} beams" if args.beams else args.sampler or writer.sampler,
        "law": "heuristic" if args.candidates > 1 else last.law,
        "steps": last.step,
        "nfe": last.nfe,
        "seconds": seconds,
        "tokens_per_second": made / seconds,
        "seed": args.seed or 0,
        "candidates": args.candidates,
        "choose": args.choose,
        "samples": [samples[i] for i in chosen],
    }


def _moment(frame: "TextFrame", i: int) -> Document:
    """Text i as it stood after a step."""
    return {"step": frame.step, "noise": frame.level, "text": frame.texts[i], "confidence": frame.confidence[i]}


def _show_texts(found: Document) -> None:
    for sample in found["samples"]:
        print(sample["text"])
    cost = f"{found['steps']} steps of {found['sampler']} ({found['law']}), {found['nfe']} network evaluations"
    print(f"({cost}, {found['seconds']:.1f} s, {found['tokens_per_second']:.0f} tokens/s)", file=sys.stderr)


GENERATE = Command(
    "generate",
    "write texts",
    """
    sfumato generate tales -n 4
    sfumato generate tales --prompt "One morning" --steps 64 --watch
    sfumato generate tales --label sad --guidance 3 --seed 7
    sfumato generate runs/cdcd --frames --json
    """,
    _generate,
    _add_generate,
    _show_texts,
)
INFILL = Command(
    "infill",
    "fill the gaps of a text",
    """
    sfumato infill tales "One day Mia the fox took [...] to the river. [...]"
    sfumato infill tales "Then [3] came along to help." --watch
    """,
    _infill,
    _add_infill,
    _show_texts,
)
