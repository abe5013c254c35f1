"""The command line: running a command, and saying what is wrong with it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import click

from ..errors import (
    ConfigurationError,
    ConnectFailed,
    MessageTooLarge,
    NotAuthorised,
    SpaDatError,
    UnknownTopic,
)
from ._commands import commands
from ._one_line import one_line

__all__ = ["main"]

_FAILED = 1
_WRONG = 2
_INTERRUPTED = 130
# How a shell asks for what can come next; click writes the code for that.
_COMPLETE = "_SPA_DAT_COMPLETE"
_LONGEST = 8_000
_USER_IN_URL = re.compile(r"(?<=://)[^/?#\s]*@")
_SECRET_IN_URL = re.compile(
    r"([?&][^=&\s]*(?:password|secret|token|key)[^=&\s]*=)[^&\s]*", re.IGNORECASE
)

# Where the command, or what it names, is to blame, and not what came of it.
_BLAMED = (
    ConfigurationError,
    ConnectFailed,
    MessageTooLarge,
    NotAuthorised,
    UnknownTopic,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    wanted = os.environ.get(_COMPLETE)
    if wanted:
        from click.shell_completion import shell_complete

        return shell_complete(commands, {}, "spa-dat", _COMPLETE, wanted)
    before = sys.argv
    given = list(before[1:] if arguments is None else arguments)
    try:
        with commands.make_context("spa-dat", list(given), obj=given) as context:
            code: int = commands.invoke(context)
            return code
    except click.exceptions.Exit as end:
        # That of --help and --version.
        return end.exit_code
    except click.ClickException as error:
        return _complain(_usage(error), ConfigurationError())
    except SpaDatError as error:
        return _complain(str(error), error)
    except SystemExit as end:
        # A text is what an application says that could not start or go on.
        if isinstance(end.code, str):
            return _complain(end.code, end.__cause__)
        return int(end.code or 0)
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    finally:
        sys.argv = before


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = "spa-dat" if context is None else context.command_path
    return f"{error.format_message().rstrip('.')}; see {command} --help"


def _complain(text: str, error: BaseException | None) -> int:
    from ._standard_output import write_notice

    line = one_line(text[:_LONGEST].removeprefix("spa_dat: "))
    # What is cut off may be what shows that a part is secret, so more is looked at than is shown.
    write_notice(_without_secrets(line)[: _LONGEST // 2], failed=True)
    return _WRONG if isinstance(error, _BLAMED) else _FAILED


def _without_secrets(text: str) -> str:
    return _SECRET_IN_URL.sub(r"\1***", _USER_IN_URL.sub("***@", text))
