"""The commands of the command line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NoReturn

from ..errors import ConfigurationError, SpaDatError, TransportError
from ._record import record
from ._replay import replay
from ._text import one_line

__all__ = ["main"]

_FAILED = 1
_WRONG = 2
_LONGEST = 8_000
_USER_IN_URL = re.compile(r"(?<=://)[^/?#\s]*@")
_SECRET_IN_URL = re.compile(
    r"([?&][^=&\s]*(?:password|secret|token|key)[^=&\s]*=)[^&\s]*", re.IGNORECASE
)

_EPILOG = """\
exit code: 0 when all went well, 1 when the application failed, 2 when something about the command
is wrong; what it is stands on standard error, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        return command(given)
    except SpaDatError as error:
        return _complain(str(error), error)
    except SystemExit as end:
        # A text is what an application says that could not start or go on.
        if isinstance(end.code, str):
            return _complain(end.code, end.__cause__)
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130


def _complain(text: str, error: BaseException | None) -> int:
    line = one_line(text[:_LONGEST].removeprefix("spa_dat: "))
    # What is cut off may be what shows that a part is secret, so more is looked at than is shown.
    sys.stderr.write(f"spa-dat: {_without_secrets(line)[: _LONGEST // 2]}\n")
    return _WRONG if isinstance(error, ConfigurationError | TransportError) else _FAILED


def _without_secrets(text: str) -> str:
    return _SECRET_IN_URL.sub(r"\1***", _USER_IN_URL.sub("***@", text))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and repeats no password."""

    def error(self, message: str) -> NoReturn:
        error = ConfigurationError(f"{message}; see {self.prog} --help")
        raise SystemExit(_complain(str(error), error))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="spa-dat",
        description="Record what happens in applications, and replay it.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"spa-dat {version('spa-dat')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_record(commands)
    _add_replay(commands)
    return parser


def _add_record(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "record",
        help="write messages to a file",
        description="Run an application until a signal, or until it has nothing left to do, and"
        " write the messages that reach its actors to a file. Or listen on a bus, and write what"
        " arrives on some topics: as a client of its own that takes no message from anybody.",
        epilog=_EPILOG,
    )
    parser.set_defaults(command=record)
    parser.add_argument(
        "source",
        metavar="MODULE:APPLICATION|URL",
        help="the application, for example package.module:app, or the address of a bus, for"
        " example mqtt://host; a password is best given as password_env or password_file",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to")
    parser.add_argument(
        "--actor", action="append", metavar="NAME", help="of the application; may be repeated"
    )
    parser.add_argument(
        "--topic", action="append", metavar="FILTER", help="of the bus; may be repeated"
    )
    parser.add_argument(
        "--limit",
        type=_count,
        metavar="N",
        help="record N messages at the most; an application then goes on, listening ends",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there already")


def _add_replay(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = commands.add_parser(
        "replay",
        help="put recorded messages into an application, without a broker",
        description="Start an application on simulated buses and virtual time, put the messages of"
        " a recording in, and tell what it publishes, what fails and what becomes a dead letter."
        " The exit code is 1 when anything fails. What the application does besides sending"
        " messages, it really does.",
        epilog=_EPILOG,
    )
    parser.set_defaults(command=replay)
    parser.add_argument("file", metavar="FILE", help="written by `spa-dat record` or a Recorder")
    parser.add_argument(
        "--to", required=True, metavar="MODULE:APPLICATION", help="for example package.module:app"
    )
    parser.add_argument("--actor", metavar="NAME", help="only what this actor got, right at it")
    parser.add_argument(
        "--keep-times", action="store_true", help="with the time between messages that there was"
    )
    parser.add_argument(
        "--keep-own", action="store_true", help="also what the application itself has sent"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return number
