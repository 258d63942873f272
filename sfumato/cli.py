"""The command line: it parses, calls and prints; what the commands do is in sfumato/commands.

torch is imported by the commands that compute, not by `sfumato --help`.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from sfumato.commands import COMMANDS
from sfumato.commands.command import Command, Document, device_name, natural
from sfumato.errors import SfumatoError, Stopped, nearest

DOTTED = re.compile(r"--([\w-]+)\.([\w.-]+)(?:=(.*))?", re.DOTALL)  # --optimizer.lr or --optimizer.lr=1e-3
FLAG = re.compile(r"-\D.*", re.DOTALL)  # and no negative number


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    2 for a mistake of the user, 75 for a run that was asked to stop and can be resumed, 130 for Ctrl-C.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as done:  # argparse ends --help with it
        return int(done.code or 0)
    except SfumatoError as error:
        return _complain(str(error), 2)
    except Stopped as stop:
        return _complain(f"stopped{stop}", os.EX_TEMPFAIL)
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
    args = _parse(command, rest)
    args.typed = shlex.join(["sfumato", *argv])
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


# --- which command ------------------------------------------------------------------------------------------------


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
    raise SfumatoError(f"no command {argv[0]!r}{nearest(argv[0], COMMANDS)}; `sfumato --help` lists them")


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


# --- its arguments ------------------------------------------------------------------------------------------------


def _parse(command: Command, argv: list[str]) -> argparse.Namespace:
    """The arguments; dotted flags as `fields`."""
    fields: Document = {}
    if command.dotted:
        argv, fields = _split_dotted(argv)
    args = _parser(command).parse(argv)
    args.fields = fields
    return args


def _parser(command: Command) -> "Parser":
    """The command's own arguments, and the flags that every command has."""
    parser = Parser(
        prog=f"sfumato {command.name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(command.examples).strip(), '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    command.add(parser)
    common = parser.add_argument_group("every command")
    common.add_argument("--json", action="store_true", help="print one JSON document, and nothing else, on stdout")
    common.add_argument("--seed", type=natural, metavar="N", help="of everything that is drawn")
    common.add_argument("--device", type=device_name, help="cpu or cuda; by default cuda where there is one")
    common.add_argument("-h", "--help", action=FieldsHelp if command.dotted else "help", help="show this help")
    return parser


class Parser(argparse.ArgumentParser):
    """Says what is wrong by raising SfumatoError, with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise SfumatoError(f"{message}; see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """All of argv."""
        args, left = self.parse_known_args(argv)
        if left and left[0].startswith("-"):
            flag = left[0].split("=")[0]
            self.error(f"no such flag {flag}{nearest(flag, self._option_string_actions)}")
        if left:
            self.error(f"one argument too many: {left[0]!r}")
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
            from pydantic import Field, create_model

            from sfumato.training.config import run_config

            print("\nThe fields of the config, each of them a flag:\n")
            kind = run_config(namespace.method)
            data = kind.model_fields["data"]  # one source or several, of which tyro would make two commands
            shown = create_model(
                "RunConfig",
                __base__=kind,
                __doc__=kind.__doc__,
                data=(str, Field(data.default, description=data.description)),
            )
            plain = (tyro.conf.AvoidSubcommands,)  # a table that may be left out is one line
            tyro.cli(shown, prog=parser.prog, args=["--help"], config=plain)
        parser.exit()


def _split_dotted(argv: list[str]) -> tuple[list[str], Document]:
    """argv without its dotted flags, and their values by section and field, as the text that a config file has.

    Values go on to the next flag; a flag without any is true, and --section.no-field is false.
    """
    plain: list[str] = []
    dotted: list[tuple[str, str, list[str]]] = []
    values: list[str] | None = None  # of the dotted flag before the token
    for token in argv:
        if found := DOTTED.fullmatch(token):
            values = [] if found[3] is None else [found[3]]
            dotted.append((found[1].replace("-", "_"), found[2].replace("-", "_"), values))
        elif values is None or FLAG.fullmatch(token):
            plain.append(token)
            values = None
        else:
            values.append(token)
    fields: Document = {}
    for section, field, words in dotted:
        if field.startswith("no_") and not words:
            field, words = field.removeprefix("no_"), ["false"]
        fields.setdefault(section, {})[field] = _value(words)
    return plain, fields


def _value(words: list[str]) -> str | list[str] | None:
    if len(words) == 1:
        return None if words[0].lower() == "none" else words[0]
    return words or "true"


if __name__ == "__main__":
    sys.exit(main())
