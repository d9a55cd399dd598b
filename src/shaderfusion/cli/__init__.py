"""The command line: one module a command, and what they share.

Paths, tables and JSON go to stdout, everything else to stderr.
"""

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import shaderfusion
from shaderfusion.cli import batch, bench, devices, export, generate, info, inspect, serve, tune, verify
from shaderfusion.errors import InputError, ShaderfusionError
from shaderfusion.output import discard, say, show

__all__ = ["main"]

COMMANDS = (generate, batch, serve, export, inspect, devices, info, verify, tune, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns 0, 1 where `verify` finds other values or a job of `batch` fails, 2 after an error of ours, 130 after
    Ctrl-C, 141 where nobody reads the output.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack a letter of a file's name
    try:
        return _run(argv)
    except BrokenPipeError:  # `| head` has seen enough: nobody is left to tell
        for stream in (sys.stdout, sys.stderr):
            discard(stream)
        return 128 + 13  # of a process that SIGPIPE ends, as it ends other programs here


def _run(argv: Sequence[str] | None) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args = _parser().parse_args(argv)
            return args.command(args) or 0
        except ShaderfusionError as error:
            say(str(error))
            return 2
        except KeyboardInterrupt:
            say("interrupted")
            return 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and help, through the same way out as everything else."""

    def _print_message(self, message: str, file: Any = None) -> None:
        show(message.rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: ") and ": -" not in message:
            message += "; words that belong together, such as a prompt, go in quotes"
        raise InputError(f"{message} (`{self.prog} --help` shows what there is)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="shaderfusion", description="Stable Diffusion as GPU compute shaders.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"shaderfusion {shaderfusion.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")
