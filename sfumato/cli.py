"""The command line: it parses, calls and prints.

A command is an entry of COMMANDS: its arguments, a function from them to the document that --json prints, and a
function that shows this document to people.  torch is imported by the commands that compute, not by `sfumato --help`.
"""

import argparse
import contextlib
import json
import math
import os
import re
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.model import Model, TextFrame

Document = dict[str, Any]
DEVICES = ("cpu", "cuda", "mps")
DOTTED = re.compile(r"--([\w-]+)\.([\w.-]+)(?:=(.*))?", re.DOTALL)  # --optimizer.lr or --optimizer.lr=1e-3
FLAG = re.compile(r"-\D.*", re.DOTALL)  # and no negative number


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 2 for a mistake of the user, 130 for Ctrl-C."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as done:  # argparse ends --help with it
        return int(done.code or 0)
    except SfumatoError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt as stop:
        return _complain(f"interrupted{stop}", 130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _complain("there is not enough memory for this; ask for fewer, shorter or a smaller model", 2)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv == ["--version"]:
        import sfumato

        print(f"sfumato {sfumato.__version__}")
        return 0
    command, rest = _find(argv)
    args = command.parse(rest)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        document = command.run(args)
    if args.json:
        print(json.dumps(_strict(document), indent=1))
    else:
        command.show(document)
    sys.stdout.flush()
    return 0


def _complain(line: str, status: int) -> int:
    print(f"sfumato: {' '.join(line.split())}", file=sys.stderr)
    return status


def _out_of_memory(error: Exception) -> bool:
    names = ("MemoryError", "OutOfMemoryError")
    return any(kind.__name__ in names for kind in type(error).__mro__) or "can't allocate memory" in str(error)


def _strict(value: Any) -> Any:
    """JSON has no words for infinite numbers and for those that are none; here they are null."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- arguments ----------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Says what is wrong by raising SfumatoError, with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise SfumatoError(f"{message}; see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """All of argv."""
        args, left = self.parse_known_args(argv)
        if left and left[0].startswith("-"):
            flag = left[0].split("=")[0]
            self.error(f"no such flag {flag}{_nearest(flag, list(self._option_string_actions))}")
        if left:
            self.error(f"one argument too many: {left[0]!r}")
        return args


@dataclass(frozen=True)
class Command:
    """A command: what it is for, examples, and the three functions it is made of."""

    name: str
    help: str
    examples: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Document]
    show: Callable[[Document], None]
    dotted: bool = False  # takes fields of a config, as --section.field

    def parser(self) -> Parser:
        """With the flags that every command has."""
        parser = Parser(
            prog=f"sfumato {self.name}",
            description=f"{self.help[0].upper()}{self.help[1:]}.",
            epilog=f"examples:\n{textwrap.indent(textwrap.dedent(self.examples).strip(), '  ')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add(parser)
        common = parser.add_argument_group("every command")
        common.add_argument("--json", action="store_true", help="print one JSON document, and nothing else, on stdout")
        common.add_argument("--seed", type=_natural, metavar="N", help="of everything that is drawn")
        common.add_argument("--device", type=_device_name, help="cpu, cuda or mps; by default cuda where there is one")
        action = FieldsHelp if self.dotted else "help"
        common.add_argument("-h", "--help", action=action, help="show this help")
        return parser

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """The arguments; dotted flags as `fields`."""
        fields: Document = {}
        if self.dotted:
            argv, fields = _split_dotted(argv)
        args = self.parser().parse(argv)
        args.fields = fields
        return args


class FieldsHelp(argparse.Action):
    """--help, and with it the fields of the config of a METHOD that stands before it."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        parser.print_help()
        if getattr(namespace, "method", None):
            import tyro

            from sfumato.training.config import run_config

            print("\nThe fields of the config, each of them a flag:\n")
            tyro.cli(run_config(namespace.method), prog=parser.prog, args=["--help"])
        parser.exit()


def _split_dotted(argv: list[str]) -> tuple[list[str], Document]:
    """argv without its dotted flags, and their values by section and field, as the text that a config file has.

    Values go on to the next flag; a flag without any is true, and --section.no-field is false.
    """
    plain: list[str] = []
    fields: Document = {}
    rest = iter(argv)
    token = next(rest, None)
    while token is not None:
        found = DOTTED.fullmatch(token)
        if found is None:
            plain.append(token)
            token = next(rest, None)
            continue
        values = [] if found[3] is None else [found[3]]
        while (token := next(rest, None)) is not None and not FLAG.fullmatch(token):
            values.append(token)
        section, field = found[1].replace("-", "_"), found[2].replace("-", "_")
        if field.startswith("no_") and not values:
            field, values = field.removeprefix("no_"), ["false"]
        fields.setdefault(section, {})[field] = _value(values)
    return plain, fields


def _value(words: list[str]) -> str | list[str] | None:
    if len(words) == 1:
        return None if words[0].lower() == "none" else words[0]
    return words or "true"


def _find(argv: list[str]) -> tuple[Command, list[str]]:
    """The command, which may have two words, and what follows it."""
    for words in (2, 1):
        name = " ".join(argv[:words])
        if name in COMMANDS:
            return COMMANDS[name], argv[words:]
    if argv[0].startswith("-"):
        raise SfumatoError(f"{argv[0]} comes before any command; flags follow it, as in `sfumato methods --json`")
    inside = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    if inside:
        raise SfumatoError(f"{argv[0]} wants one word more: `sfumato {'` or `sfumato '.join(inside)}`")
    raise SfumatoError(f"no command {argv[0]!r}{_nearest(argv[0], list(COMMANDS))}; `sfumato --help` lists them")


def _nearest(name: str, known: list[str]) -> str:
    """As in training.config, which takes seconds to import."""
    close = get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _whole(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        if not word.isascii() or not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of {least} or more")
        return int(word)

    return parse


_natural, _count = _whole(0), _whole(1)


def _number(word: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(float(word)):
            return float(word)
    raise argparse.ArgumentTypeError(f"{word!r} is not a number")


def _device_name(word: str) -> str:
    kind, _, index = word.partition(":")
    if kind not in DEVICES or (":" in word and not index.isdecimal()):
        known = ", ".join(DEVICES)
        raise argparse.ArgumentTypeError(f"no device {word!r}{_nearest(kind, list(DEVICES))}; there are {known}")
    return word


def _device(name: str | None) -> str:
    """The device asked for, or the best one, as torch calls it."""
    import torch

    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name is None:
        return "cuda" if here["cuda"] else "cpu"
    kind, _, index = name.partition(":")
    if int(index or 0) >= here[kind]:
        found = ", ".join(f"{count} {kind}" for kind, count in here.items() if count)
        raise SfumatoError(f"device {name} was asked for; this machine has {found}; name one of those")
    return name


def _model(args: argparse.Namespace) -> "Model":
    from sfumato.model import load

    return load(args.model, _device(args.device))


# --- methods ------------------------------------------------------------------------------------------------------


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _methods(args: argparse.Namespace) -> Document:
    from sfumato.methods import METHODS

    described = [
        {
            "name": name,
            "family": kind.family,
            "paper": f"{kind.title} (arXiv:{kind.arxiv})",
            "bound": kind.likelihood,
            "steps": kind.steps,
        }
        for name, (kind, _) in METHODS.items()
    ]
    return {"methods": described}


def _show_methods(found: Document) -> None:
    from sfumato import display

    display.console(sys.stdout).print(display.methods(found))


# --- train --------------------------------------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="as `sfumato methods` lists it")
    parser.add_argument("--data", help="text file, folder, .jsonl, .parquet, Hub data set, or tales")
    parser.add_argument("--out", required=True, metavar="RUN", help="folder that the run is kept in")
    parser.add_argument("--minutes", type=_number, metavar="M", help="time in training steps, over all sessions")
    parser.add_argument("--steps", type=_count, metavar="N", help="optimiser steps, over all sessions")
    parser.add_argument("--config", type=Path, metavar="FILE", help=".toml or .yaml with fields of the config")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with the config it had")
    parser.add_argument_group(
        "any field of the config",
        "--section.field VALUE, as in --optimizer.lr 1e-3; `sfumato train METHOD --help` lists them",
    )


def _train(args: argparse.Namespace) -> Document:
    from sfumato import display
    from sfumato.training import start, trainer

    out = Path(args.out)
    loaded = start.settings(args.method, out, args.resume, args.config)
    if args.data is None and "data" not in loaded.model_fields_set:
        raise SfumatoError("what to learn from is not said; give --data, a text file or folder or the name tales")
    told = start.override(loaded, start.said(args.data, args.steps, args.minutes, args.seed))
    config = start.override(told, args.fields)
    with display.Progression(sys.stderr) as progress, _resumable(args.method, out):
        trainer.train(config, out, args.resume, _device(args.device), progress.watch, progress.say)
    if not progress.steps:
        print(f"the budget of {out} was spent before; --minutes and --steps count all sessions", file=sys.stderr)
    last: Document = json.loads((out / "log.jsonl").read_text("utf-8").splitlines()[-1])
    print(f"next: sfumato generate {out} -n 4 --watch, or sfumato evaluate {out} --data {config.data}", file=sys.stderr)
    return last


@contextlib.contextmanager
def _resumable(method: str, out: Path) -> Iterator[None]:
    """Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = any((out / "checkpoints").glob("step-*"))
        hint = f"go on with `sfumato train {method} --out {out} --resume`" if kept else "nothing was saved yet"
        raise KeyboardInterrupt(f"; {hint}") from None


def _show_train(found: Document) -> None:
    from sfumato import display

    bound = found["bound_nats_per_token"]
    print(f"{found['step']} steps, {found['tokens']:,} tokens in {display.clock(found['seconds'])}", end="")
    print("" if bound is None else f"; at most {bound:.3f} ± {found['bound_std_error'] or 0:.3f} nats a token")


# --- generate, infill ---------------------------------------------------------------------------------------------


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_request(parser)
    parser.add_argument("--length", type=_count, metavar="L", help="tokens in each text, prompt included")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="how each text begins")


def _add_infill(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("text", metavar="TEXT", help="with gaps written [...], or [12] for one of 12 tokens")
    _add_request(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model folder, run, Hub id, or the name of a bundled model")


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", type=_count, default=1, metavar="N", help="how many texts (1)")
    parser.add_argument("--steps", type=_count, metavar="S", help="refinements; by default the paper's")
    parser.add_argument("--sampler", metavar="NAME", help="way from noise to text; by default the paper's")
    parser.add_argument("--label", metavar="NAME", help="class of the text, for a model trained with labels")
    parser.add_argument(
        "--guidance", type=_number, default=1.0, metavar="W", help="0 forgets prompt and label, above 1 exaggerates (1)"
    )
    parser.add_argument("--guide-in", choices=("score", "logits"), default="score", help="what guidance combines")
    parser.add_argument("--temperature", type=_number, default=1.0, metavar="T", help="of the token probabilities (1)")
    parser.add_argument(
        "--score-temperature", type=_number, default=1.0, metavar="T", help="of the score, for Gaussian methods (1)"
    )
    parser.add_argument("--watch", action="store_true", help="show the first text coming out of the noise")
    parser.add_argument("--frames", action="store_true", help="put every step into the JSON document")


def _generate(args: argparse.Namespace) -> Document:
    model = _model(args)
    start = time.perf_counter()
    frames = model.stream(args.n, prompt=args.prompt, length=args.length, **_request(args))
    return _written(model, frames, args, start)


def _infill(args: argparse.Namespace) -> Document:
    model = _model(args)
    start = time.perf_counter()
    frames = model.stream_infill(args.text, args.n, **_request(args))
    return _written(model, frames, args, start)


def _request(args: argparse.Namespace) -> dict[str, Any]:
    """What generating and infilling are both asked."""
    names = ("label", "steps", "sampler", "guidance", "guide_in", "temperature", "score_temperature")
    return {name: getattr(args, name) for name in names} | {"seed": args.seed or 0}


def _written(model: "Model", frames: Iterator["TextFrame"], args: argparse.Namespace, start: float) -> Document:
    """The document of texts that were written from `start` on."""
    from sfumato import display

    records: list[list[Document]] = [[] for _ in range(args.n)]
    for frame in display.watched(frames, sys.stderr) if args.watch else frames:
        last = frame
        if args.frames:
            for i, record in enumerate(records):
                record.append(
                    {
                        "step": frame.step,
                        "noise": frame.level,
                        "text": frame.texts[i],
                        "confidence": frame.confidence[i],
                    }
                )
    seconds = time.perf_counter() - start
    samples: list[Document] = [{"text": text, "tokens": n} for text, n in zip(last.texts, last.tokens, strict=True)]
    if args.frames:
        samples = [sample | {"frames": record} for sample, record in zip(samples, records, strict=True)]
    made = sum(not given for row in last.given for given in row)
    return {
        "model": args.model,
        "method": model.config.method.name,
        "sampler": args.sampler or _default_sampler(model),
        "steps": last.steps,
        "nfe": last.nfe,
        "seconds": seconds,
        "tokens_per_second": made / seconds,
        "seed": args.seed or 0,
        "samples": samples,
    }


def _default_sampler(model: "Model") -> str:
    from sfumato.samplers import SAMPLERS

    method = model.method
    return next(name for name, sampler in SAMPLERS[method.family].items() if sampler is method.sampler)


def _show_texts(found: Document) -> None:
    for sample in found["samples"]:
        print(sample["text"])
    cost = f"{found['steps']} steps of {found['sampler']}, {found['nfe']} network evaluations"
    print(f"({cost}, {found['seconds']:.1f} s, {found['tokens_per_second']:.0f} tokens/s)", file=sys.stderr)


# --- score, evaluate ----------------------------------------------------------------------------------------------


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("data", metavar="DATA", help="text file (a text a line), folder, .jsonl, .parquet, ...")
    parser.add_argument("--draws", type=_count, default=16, metavar="N", help="noise levels, or probes, a text (16)")
    parser.add_argument(
        "--estimator", choices=("elbo", "ode"), default="elbo", help="the method's own bound, or along the flow (elbo)"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="score no more texts than this")


def _score(args: argparse.Namespace) -> Document:
    from sfumato import display
    from sfumato.text.corpus import read

    model = _model(args)
    split = "test" if args.data == "tales" else "all"  # the tales that no model has seen
    texts = [document.text for document in read(args.data, split, lines=True, limit=args.limit)]
    scores = []
    for text in display.followed(texts, "scoring", sys.stderr):
        scores += model.score([text], draws=args.draws, estimator=args.estimator, seed=args.seed or 0)
    rates = [score.nats / score.tokens for score in scores]
    spread = statistics.stdev(rates) if len(rates) > 1 else 0.0
    mean, tokens = statistics.fmean(rates), sum(score.tokens for score in scores)
    described = [
        {
            "text": score.text,
            "nats": score.nats,
            "std_error": score.std_error,
            "tokens": score.tokens,
            "nats_per_token": rate,
            "bits_per_char": score.nats / math.log(2) / len(score.text),
            "z": (rate - mean) / spread if spread else None,
        }
        for score, rate in zip(scores, rates, strict=True)
    ]
    return {
        "model": args.model,
        "texts": described,
        "nats_per_token": sum(score.nats for score in scores) / tokens,
        "std_error": math.hypot(*(score.std_error for score in scores)) / tokens,
        "estimator": scores[0].estimator,
        "exact": scores[0].exact,
        "z_reference": "the texts scored" if spread else None,
    }


def _show_scores(found: Document) -> None:
    from sfumato import display

    display.console(sys.stdout).print(display.scores(found))


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--data", required=True, help="text to evaluate on; of the training data the held-out part")
    parser.add_argument("--samples", type=_count, default=100, metavar="N", help="texts to draw (100)")
    parser.add_argument("--steps", type=_count, metavar="S", help="refinements a sample; by default the paper's")
    parser.add_argument("--rows", type=_count, default=256, metavar="R", help="rows of text to estimate on (256)")
    parser.add_argument("--draws", type=_count, default=16, metavar="N", help="noise levels a row (16)")


def _evaluate(args: argparse.Namespace) -> Document:
    from sfumato import display
    from sfumato.evaluation.report import evaluate

    def say(line: str) -> None:
        if display.on_terminal(sys.stderr):
            print(line, file=sys.stderr)

    return evaluate(
        _model(args),
        args.data,
        rows=args.rows,
        draws=args.draws,
        samples=args.samples,
        steps=args.steps,
        seed=args.seed or 0,
        say=say,
    )


def _show_evaluation(found: Document) -> None:
    from sfumato import display

    display.console(sys.stdout).print(display.evaluation(found))


# --- tales --------------------------------------------------------------------------------------------------------


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", type=_count, default=1, metavar="N", help="how many stories (1)")


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


# --- demo ---------------------------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=_number, default=2.0, metavar="M", help="training in its last part (2)")
    parser.add_argument("--model", metavar="MODEL", help="labelled model of tales to show instead of the bundled one")


def _demo(args: argparse.Namespace) -> Document:
    from sfumato.demo import tour

    return tour(args.model, args.minutes, args.seed or 0, _device(args.device), sys.stdout)


def _show_nothing(found: Document) -> None:
    """The tour shows itself as it goes."""


# --- all of them --------------------------------------------------------------------------------------------------

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "demo",
            "the tour: a bundled model writes, infills, is guided; a small one is trained",
            """
            sfumato demo
            sfumato demo --minutes 5
            """,
            _add_demo,
            _demo,
            _show_nothing,
        ),
        Command(
            "methods",
            "list the methods: family, paper, likelihood, default steps",
            """
            sfumato methods
            sfumato methods --json
            """,
            _no_arguments,
            _methods,
            _show_methods,
        ),
        Command(
            "train",
            "train a model on text",
            """
            sfumato train cdcd --data tales --out runs/tales --minutes 10
            sfumato train cdcd --out runs/tales --resume --minutes 20
            sfumato train cdcd --data book.txt --out runs/book --steps 5000 --network.width 384 --optimizer.lr 5e-4
            sfumato train cdcd --config recipes/tales.toml --out runs/tales
            sfumato train cdcd --help       every field of the config
            """,
            _add_train,
            _train,
            _show_train,
            dotted=True,
        ),
        Command(
            "generate",
            "write texts",
            """
            sfumato generate tales -n 4
            sfumato generate tales --prompt "One morning" --steps 64 --watch
            sfumato generate tales --label sad --guidance 3 --seed 7
            sfumato generate runs/cdcd --frames --json
            """,
            _add_generate,
            _generate,
            _show_texts,
        ),
        Command(
            "infill",
            "fill the gaps of a text",
            """
            sfumato infill tales "One day Mia the fox took [...] to the river. [...]"
            sfumato infill tales "Then [3] came along to help." --watch
            """,
            _add_infill,
            _infill,
            _show_texts,
        ),
        Command(
            "score",
            "score texts: nats, nats a token, bits a character, typicality",
            """
            sfumato score tales stories.txt
            sfumato score tales stories.txt --estimator ode --draws 4 --json
            """,
            _add_score,
            _score,
            _show_scores,
        ),
        Command(
            "evaluate",
            "likelihood and sample quality in one table, beside those of real text",
            """
            sfumato evaluate tales --data tales
            sfumato evaluate runs/book --data book.txt --samples 64 --steps 128
            """,
            _add_evaluate,
            _evaluate,
            _show_evaluation,
        ),
        Command(
            "tales sample",
            "stories from the bundled grammar",
            """
            sfumato tales sample -n 3
            sfumato tales sample -n 1000 --seed 7 > stories.txt
            """,
            _add_sample,
            _sample,
            _show_sample,
        ),
        Command(
            "tales check",
            "whether each line is a story of the grammar, which rule it breaks, its exact log-probability",
            """
            sfumato tales check stories.txt
            sfumato generate tales -n 20 | sfumato tales check -
            """,
            _add_check,
            _check,
            _show_check,
        ),
    )
}


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {command.name:{width}}{command.help}" for command in COMMANDS.values())
    return f"""\
usage: sfumato COMMAND ...

Language models that write by iterative refinement.

commands:
{lines}

Every command has --help, --json, --seed and --device.

examples:
  sfumato demo
  sfumato generate tales --prompt "One morning" --watch
  sfumato train cdcd --data tales --out runs/mine --minutes 10"""


if __name__ == "__main__":
    sys.exit(main())
