"""The commands of the command line: their options, and what they say when something is wrong."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from .._moments import YEAR_1970, parse_moment, seconds_back
from .._texts import quoted
from ..errors import (
    ConfigurationError,
    ConnectFailed,
    MessageTooLarge,
    NotAuthorised,
    SpaDatError,
    UnknownTopic,
)
from ._one_line import one_line
from ._terminal import Group

if TYPE_CHECKING:
    from ..runtime.dead_letters._stored_letter import LetterFilter
    from ._dlq_replay import Choice

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

_EPILOG = (
    "Exit code: 0 when all went well, 1 when the application failed, 2 when something about the"
    " command is wrong. What it is stands on standard error, in one line."
)
_EPILOG_OF_REQUEST = (
    "Exit code: 0 after a reply, 1 when it is an error or none came in time, 2 when something about"
    " the command is wrong or the broker cannot be used."
)
_EPILOG_OF_PUBLISH = (
    "Exit code: 0 when the broker has confirmed it, 1 when it has not or refuses it, 2 when"
    " something about the command is wrong or the broker cannot be used."
)
_EPILOG_OF_HEALTH = (
    "Exit code: 0 when all are ready, or alive; 1 when one is not, or does not answer; 2 when"
    " something about the command is wrong."
)
_EPILOG_OF_LISTEN = (
    "Exit code: 0 after a signal or when there is an end, 1 when there were fewer than --count"
    " messages in the time, 2 when something about the command is wrong or the broker cannot be"
    " used."
)
_EPILOG_OF_LETTERS = (
    "Exit code: 0 when all went well, 1 when there is no such dead letter, 2 when something about"
    " the command is wrong or the broker cannot be used."
)
_EPILOG_OF_COPIES = (
    "Exit code: 0 when all went well, 1 when copying has failed and may be begun again, 2 when"
    " something about the command is wrong, the states cannot be copied now, or the cluster cannot"
    " be used; nothing was changed then."
)
_EPILOG_OF_CHANGES = (
    "Exit code: 0 when all went well, 1 when there is no such dead letter or it is still there, 2"
    " when something about the command is wrong, nobody answers, or the broker cannot be used."
)
# Where the command, or what it names, is to blame, and not what came of it.
_BLAMED = (
    ConfigurationError,
    ConnectFailed,
    MessageTooLarge,
    NotAuthorised,
    UnknownTopic,
)
_LEVELS = ("debug", "info", "warning", "error", "critical")
_LOG_FORMATS = ("text", "json")
_MOST_WORKERS = 1_000
_LONGEST_VALUE = 60
_EARLIEST = "earliest"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    wanted = os.environ.get(_COMPLETE)
    if wanted:
        from click.shell_completion import shell_complete

        return shell_complete(_commands, {}, "spa-dat", _COMPLETE, wanted)
    before = sys.argv
    given = list(before[1:] if arguments is None else arguments)
    try:
        with _commands.make_context("spa-dat", list(given), obj=given) as context:
            code: int = _commands.invoke(context)
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


def _count(most: int | None = None) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return what reads an option that is a whole number, 1 or more, and at the most this one."""

    def read(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
        if value is None:
            return None
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1 or (most is not None and number > most):
            rest = ", 1 or more" if most is None else f" from 1 to {most}"
            raise click.BadParameter(f"{value!r}: give a whole number{rest}", context, option)
        return number

    return read


def _seconds(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Read an option that is a time: 0 or more, and finite (``nan`` and ``inf`` are floats)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise click.BadParameter(f"{value!r}: give seconds, 0 or more", context, option)
    return seconds


def _headers(
    context: click.Context, option: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    """Read an option that is the name and the value of a header."""
    headers: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{quoted(text, 40)}: give NAME=VALUE", context, option)
        if name in headers:
            raise click.BadParameter(
                f"{quoted(name, 40)} is given twice: leave one out", context, option
            )
        headers[name] = value
    return headers


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what gives a command several options or arguments, in this order."""

    def give(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return give


_name_option = click.option(
    "--name", metavar="NAME", help="Of the provider, where URL is a document that has several."
)
_url_option = click.option(
    "--url",
    metavar="URL",
    envvar="SPA_DAT_URL",
    help="The bus in place of the application's default one.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
_message_options = _options(
    _name_option,
    click.option(
        "--header",
        "headers",
        multiple=True,
        callback=_headers,
        metavar="NAME=VALUE",
        help="May be repeated.",
    ),
    click.option("--key", metavar="TEXT", help="Messages with the same key stay in order."),
    click.option(
        "--content-type",
        metavar="TYPE",
        help="By default application/json for what is JSON, text/plain for other text, and"
        " application/octet-stream for the rest.",
    ),
    click.option(
        "--timeout",
        callback=_seconds,
        metavar="SECONDS",
        default="30",
        show_default=True,
        help="How long to wait for the broker or the reply.",
    ),
)


def _moment(context: click.Context, option: click.Parameter, value: str | None) -> datetime | None:
    """Read an option that is a time; without a zone it is local time."""
    if value is None:
        return None
    now = datetime.now(UTC)
    beginning = option.name == "since"
    if beginning and value == _EARLIEST:
        return YEAR_1970
    try:
        back = seconds_back(value)
        if back is not None:
            return max(now - timedelta(seconds=back), YEAR_1970)
        moment = parse_moment(value).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value[:_LONGEST_VALUE]!r}: give a time such as '2026-11-27T09:00', or with a zone"
            " '2026-11-27T09:00:00Z', or how far to go back, such as '90s', '30m', '1h' or '7d'"
            + (f", or {_EARLIEST!r} for all there is" if beginning else ""),
            context,
            option,
        ) from None
    if moment < YEAR_1970:
        raise click.BadParameter(f"{value!r}: no message is older than 1970", context, option)
    if beginning and moment > now:
        raise click.BadParameter(f"{value!r} is in the future", context, option)
    return moment


_since = click.option(
    "--since",
    callback=_moment,
    metavar="TIME",
    help="Begin with what topics of a Kafka cluster hold from this time on, such as"
    " 2026-11-27T09:00 (local time unless a zone follows), or from 90s, 30m, 1h or 7d ago, or"
    f" {_EARLIEST}.",
)
_until = click.option(
    "--until",
    callback=_moment,
    metavar="TIME",
    help="Stop at this time; without it, at the end that the topics have at the start.",
)


@click.group(
    cls=Group,
    invoke_without_command=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="spa-dat", message="spa-dat %(version)s")
@click.pass_context
def _commands(context: click.Context) -> None:
    """Run applications, talk to a bus, record what happens, and replay it."""
    _ask_for_command(context, _commands)


def _ask_for_command(context: click.Context, group: click.Group) -> None:
    if context.invoked_subcommand is None:
        names = ", ".join(group.commands)
        raise click.UsageError(f"Missing command: one of {names}", context)


@_commands.command(
    "run", epilog=_EPILOG, short_help="Run applications, in one process or in several."
)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--url",
    metavar="URL",
    envvar="SPA_DAT_URL",
    help="The bus to use in place of the application's default one, including all its options."
    " Actors that name their own bus keep it. By default the environment variable SPA_DAT_URL,"
    " where a password is less visible than in a command.",
)
@click.option(
    "--instance",
    metavar="NAME",
    help="Tells copies of the application apart. By default the environment variable"
    " SPA_DAT_INSTANCE.",
)
@click.option(
    "--log-level",
    type=click.Choice(_LEVELS, case_sensitive=False),
    help="What to log. By default what the application has set up, or else info.",
)
@click.option(
    "--log-format",
    type=click.Choice(_LOG_FORMATS, case_sensitive=False),
    envvar="SPA_DAT_LOG_FORMAT",
    help="Lines of text, or a JSON object in each line. By default the environment variable"
    " SPA_DAT_LOG_FORMAT, or else what the application has set up, or else text.",
)
@click.option(
    "--admin",
    metavar="HOST:PORT",
    help="Where to answer probes over HTTP, for example 127.0.0.1:8085; worker N at PORT+N. With"
    " several applications, each has a port of its own, from PORT on. By default what the"
    " application has set up.",
)
@click.option(
    "--workers",
    callback=_count(_MOST_WORKERS),
    metavar="N",
    help="Run the whole application in N processes, instances 0 to N-1 (with an instance name,"
    " NAME-0 and so on), and restart those that die.",
)
@click.option(
    "--worker-timeout",
    callback=_seconds,
    metavar="SECONDS",
    default="60",
    show_default=True,
    help="Replace a worker whose event loop has given no sign of life for this long; 0 for never.",
)
@click.option(
    "--reload",
    is_flag=True,
    help="For development: start the application again whenever a Python file changes.",
)
@click.option(
    "--reload-dir",
    "folders",
    multiple=True,
    metavar="FOLDER",
    help="Where to look for changes, with --reload; by default the current folder. May be"
    " repeated.",
)
@click.pass_obj
def _run(arguments: list[str], /, **given: Any) -> int:
    """Run applications until a signal, or until they have nothing left to do.

    Several share one process, and one event loop. If one fails, all are stopped.

    TARGET is module:name, for example package.main:app, or file.py:name. The name is that of the
    application, or of a function that returns it; where a module has exactly one application, it
    may be left out.
    """
    from ._run import run

    return run(arguments, **given)


@_commands.command(
    "publish", epilog=_EPILOG_OF_PUBLISH, short_help="Publish a message, or one for each line."
)
@click.argument("url")
@click.argument("topic")
@click.argument("payload", required=False)
@_message_options
@click.option("--lines", is_flag=True, help="Publish each line of the input that is not empty.")
@click.option("--qos", type=click.Choice(("0", "1")), help="By default that of the bus.")
@click.option("--retain", is_flag=True, help="The broker keeps it for later subscribers; on MQTT.")
@click.option(
    "--expiry",
    callback=_seconds,
    metavar="SECONDS",
    help="After which it need not be delivered any more.",
)
def _publish(qos: str | None, **given: Any) -> int:
    """Publish a message on an MQTT broker or a Kafka cluster, and wait until that confirms it.

    URL is that of the broker, or of a configuration document. PAYLOAD is sent as it is; @FILE
    stands for what is in a file, and - or nothing for standard input. A PAYLOAD that begins with
    another - is written after --, as in: spa-dat publish URL TOPIC -- -5
    """
    from ._send import publish

    return publish(qos=None if qos is None else int(qos), **given)


@_commands.command(
    "request", epilog=_EPILOG_OF_REQUEST, short_help="Send a request, and print the reply."
)
@click.argument("url")
@click.argument("topic")
@click.argument("payload", required=False)
@_message_options
@_json_option
def _request(**given: Any) -> int:
    """Send a request over an MQTT broker or a Kafka cluster, and print the payload of the reply.

    The arguments are those of spa-dat publish. With --json the reply is a line of JSON with
    everything about it, as spa-dat listen prints it.
    """
    from ._send import request

    return request(**given)


@_commands.command(
    "listen", epilog=_EPILOG_OF_LISTEN, short_help="Show the messages that arrive on some topics."
)
@click.argument("url")
@click.argument("pattern", metavar="FILTER")
@_name_option
@click.option("--count", callback=_count(), metavar="N", help="End after N messages.")
@click.option(
    "--for", "seconds", callback=_seconds, metavar="SECONDS", help="End after so many seconds."
)
@_since
@_json_option
def _listen(**given: Any) -> int:
    """Show messages on an MQTT broker or a Kafka cluster as they arrive, until Ctrl-C.

    URL is that of the broker, or of a configuration document. FILTER is one as actors have it: +
    stands for one level, and # at the end for all below, as in 'plant/#'. Nobody misses a message
    because of it, and nothing of it stays on the broker.
    """
    from ._listen import listen

    return listen(**given)


@_commands.group(
    "dlq",
    invoke_without_command=True,
    epilog=_EPILOG,
    short_help="Look at dead letters, replay or discard them.",
)
@click.pass_context
def _dlq(context: click.Context) -> None:
    """Look at dead letters: messages that an application could not handle, and has stored.

    They are read from the broker, whether the application is running or not.
    """
    _ask_for_command(context, _dlq)


_application_option = click.option(
    "--application", required=True, metavar="NAME", help="The application that stored them."
)
_admin_option = click.option(
    "--admin",
    metavar="HOST:PORT",
    help="Ask the admin endpoint of the running application instead of the broker; needed for"
    " memory://. Its token is in the environment variable SPA_DAT_ADMIN_TOKEN.",
)
_wanted_options = _options(
    click.option("--actor", metavar="NAME", help="Only those of this actor."),
    click.option(
        "--error",
        metavar="TEXT",
        help="Only those whose error has this in the name of its class or in its text, in upper or"
        " lower case.",
    ),
    click.option(
        "--since",
        callback=_moment,
        metavar="TIME",
        help="Only those stored from this time on, such as 2026-11-27T09:00 (local time unless a"
        " zone follows), or from 90s, 30m, 1h or 7d ago.",
    ),
    click.option(
        "--until", callback=_moment, metavar="TIME", help="Only those stored before this time."
    ),
)


def _wanted(given: dict[str, Any]) -> LetterFilter:
    """Take the options out that say which dead letters are wanted."""
    from ._dlq_show import letter_filter

    return letter_filter(*(given.pop(name) for name in ("actor", "error", "since", "until")))


@_dlq.command("list", epilog=_EPILOG_OF_LETTERS, short_help="List dead letters.")
@click.argument("url")
@_application_option
@_name_option
@_admin_option
@_wanted_options
@_json_option
def _dlq_list(**given: Any) -> int:
    """List the dead letters of an application on an MQTT broker or a Kafka cluster.

    URL is that of the broker, or of a configuration document, or memory:// with --admin. Anything
    else that is found where they are kept is listed as unreadable. Nothing is changed.
    """
    from ._dlq_show import list_letters

    wanted = _wanted(given)
    return list_letters(wanted=wanted, **given)


@_dlq.command("show", epilog=_EPILOG_OF_LETTERS, short_help="Show a dead letter.")
@click.argument("url")
@click.argument("identifier", metavar="LETTER")
@_application_option
@_name_option
@_admin_option
@_json_option
def _dlq_show(**given: Any) -> int:
    """Show a dead letter: what went wrong, and the message with its headers and payload.

    LETTER is its name in spa-dat dlq list.
    """
    from ._dlq_show import show_letter

    return show_letter(**given)


_change_options = _options(
    click.argument("url"),
    click.argument("letters", nargs=-1, metavar="[LETTER]..."),
    _application_option,
    _name_option,
    _admin_option,
    _wanted_options,
    click.option("--all", "everything", is_flag=True, help="All of them."),
    click.option("--dry-run", is_flag=True, help="Only list the letters concerned."),
)


def _choice(given: dict[str, Any]) -> Choice:
    """Take the options out that say which dead letters are to be changed."""
    from ._dlq_replay import Choice

    return Choice(
        given.pop("letters"),
        _wanted(given),
        everything=given.pop("everything"),
        unreadable=given.pop("unreadable", False),
    )


@_dlq.command(
    "replay", epilog=_EPILOG_OF_CHANGES, short_help="Handle the messages of dead letters again."
)
@_change_options
@click.option(
    "--instance",
    metavar="NAME",
    help="Have this instance of the application handle them, instead of those that failed.",
)
@click.option(
    "--timeout",
    callback=_seconds,
    metavar="SECONDS",
    default="30",
    show_default=True,
    help="How long to wait for the application to answer, and for each message to be handled.",
)
@_json_option
def _dlq_replay(**given: Any) -> int:
    """Have a running application handle the messages of its dead letters again.

    Only the actor that failed gets them, as they were. A dead letter is removed once its message
    is handled; if that fails again, it stays. LETTER is a name in spa-dat dlq list.
    """
    from ._dlq_replay import replay_letters

    choice = _choice(given)
    return replay_letters(choice=choice, **given)


@_dlq.command(
    "discard", epilog=_EPILOG_OF_CHANGES, short_help="Remove dead letters without handling them."
)
@_change_options
@click.option("--unreadable", is_flag=True, help="Only what is listed as unreadable.")
@_json_option
def _dlq_discard(**given: Any) -> int:
    """Remove dead letters for good, and what strangers have put in their place.

    LETTER is a name in spa-dat dlq list.
    """
    from ._dlq_replay import discard_letters

    choice = _choice(given)
    return discard_letters(choice=choice, **given)


@_commands.group(
    "states",
    invoke_without_command=True,
    epilog=_EPILOG,
    short_help="Copy the states of keys, for more partitions.",
)
@click.pass_context
def _states(context: click.Context) -> None:
    """Work with the states of durable keys on a Kafka cluster."""
    _ask_for_command(context, _states)


@_states.command(
    "copy", epilog=_EPILOG_OF_COPIES, short_help="Copy states for a topic with other partitions."
)
@click.argument("url")
@click.option("--application", required=True, metavar="NAME", help="The application, stopped.")
@click.option("--actor", required=True, metavar="NAME", help="Whose states they are.")
@click.option("--to", required=True, metavar="NAME", help="The actor that goes on with them.")
@click.option(
    "--topic",
    "topics",
    required=True,
    multiple=True,
    metavar="NAME",
    help="The topic that this one reads, by its name on the cluster, with all its partitions; may"
    " be repeated.",
)
@_name_option
def _states_copy(**given: Any) -> int:
    """Copy the states of an actor's keys for another actor, whose topic has more partitions.

    To be called while no instance of the application is running. URL is that of the Kafka cluster,
    or of a configuration document. Each state goes where the messages of its key are now. In topics
    that both actors read the second goes on where the first has ended. What the first one has stays
    as it is.
    """
    from ._states import copy_states

    return copy_states(**given)


@_commands.command(
    "top", epilog=_EPILOG, short_help="Watch running applications, and pause or restart actors."
)
@click.argument("admin", nargs=-1, metavar="[HOST:PORT]...")
@click.option(
    "--interval",
    callback=_seconds,
    metavar="SECONDS",
    default="1",
    show_default=True,
    help="The time between two updates.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON for each application, and end."
)
def _top(admin: tuple[str, ...], **given: Any) -> int:
    """Watch in the terminal what the actors of running applications are doing.

    HOST:PORT is the admin endpoint of an application, by default the environment variable
    SPA_DAT_ADMIN, or else 127.0.0.1:8085. If it requires a token, set SPA_DAT_ADMIN_TOKEN.
    """
    from ._top import top

    return top(admin or (os.environ.get("SPA_DAT_ADMIN") or "127.0.0.1:8085",), **given)


@_commands.command("record", epilog=_EPILOG)
@click.argument("source", metavar="MODULE:APPLICATION|URL")
@click.option("-o", "--output", required=True, metavar="FILE", help="The file to write.")
@click.option(
    "--actor", "actors", multiple=True, metavar="NAME", help="An actor to record; may be repeated."
)
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="FILTER",
    help="A filter for the topics to listen to; may be repeated.",
)
@click.option(
    "--limit",
    callback=_count(),
    metavar="N",
    help="Record at most N messages; an application then keeps running, listening ends.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@_since
@_until
def _record(**given: Any) -> int:
    """Write messages to a file.

    Run an application until a signal, or until it has nothing left to do, and write the messages
    that reach its actors to a file. Or listen on a bus, and write what arrives on some topics: as
    a separate client that takes no messages away from others. With --since, read the messages that
    topics of a Kafka cluster hold instead, and wait for nothing.

    The application is given as for spa-dat run, for example package.module:app; the bus by its
    address, for example mqtt://host, where a password is best given as password_env or
    password_file.
    """
    from ._record import record

    return record(**given)


@_commands.command("replay", epilog=_EPILOG)
@click.argument("source", metavar="FILE|URL")
@click.option(
    "--to", required=True, metavar="MODULE:APPLICATION", help="For example package.module:app."
)
@click.option("--actor", metavar="NAME", help="Replay only what this actor got, directly to it.")
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="FILTER",
    help="A filter for the topics of the cluster; may be repeated.",
)
@_since
@_until
@click.option("--keep-times", is_flag=True, help="Keep the recorded time between messages.")
@click.option("--keep-own", is_flag=True, help="Also replay what the application itself has sent.")
@click.option("--seed", type=int, default=0, metavar="N", help="The seed of all randomness.")
def _replay(**given: Any) -> int:
    """Put recorded messages into an application, without a broker.

    Start an application on simulated buses and virtual time, replay the messages of the recording
    FILE, and show what it publishes, what fails and what becomes a dead letter. The exit code is 1
    if anything fails. Whatever the application does besides sending messages, it really does.

    Or replay the messages that topics of a Kafka cluster hold: give its address in place of FILE,
    with --topic and --since. They are read first, and nothing is sent to the cluster.
    """
    from ._replay import replay

    return replay(**given)


@_commands.command(
    "config", epilog=_EPILOG, short_help="Show the options of a bus, and where they come from."
)
@click.argument("url", envvar="SPA_DAT_URL", required=False)
@_name_option
@click.option(
    "--allow-http",
    is_flag=True,
    help="Allow a document over http://, where anybody in between can change it.",
)
@_json_option
@click.option(
    "--schema", is_flag=True, help="Print the JSON Schema of configuration documents instead."
)
def _config(**given: Any) -> int:
    """Show the effective options of a bus, and where each of them comes from.

    URL is that of the bus, or of the configuration document; by default the environment variable
    SPA_DAT_URL. No connection is opened, and passwords are not shown. Variables that begin with
    SPA_DAT_ and look as if they were meant for this bus, but are not used, are named on standard
    error.
    """
    from ._config import show_config

    return show_config(**given)


@_commands.command(
    "health", epilog=_EPILOG_OF_HEALTH, short_help="Ask a running application whether it is ready."
)
@click.argument("address", required=False, metavar="[HOST:PORT]", envvar="SPA_DAT_ADMIN")
@click.option("--live", is_flag=True, help="Ask only whether its event loop responds.")
@click.option(
    "--workers",
    callback=_count(_MOST_WORKERS),
    default="1",
    metavar="N",
    help="Ask N workers, from PORT on.",
)
@click.option(
    "--timeout",
    callback=_seconds,
    metavar="SECONDS",
    default="5",
    show_default=True,
    help="How long to wait for each answer.",
)
@_json_option
def _health(**given: Any) -> int:
    """Ask a running application whether it is ready for messages.

    It has to answer probes, as with spa-dat run --admin; by default at the address in the
    environment variable SPA_DAT_ADMIN. This is a health check for containers, without curl.
    """
    from ._health import ask_health

    return ask_health(**given)


@_commands.command(
    "show", epilog=_EPILOG, short_help="Show what is registered with an application."
)
@click.argument("target")
@_url_option
@click.option("--json", "form", flag_value="json", help="As JSON, for programs.")
@click.option("--mermaid", "form", flag_value="mermaid", help="As a picture, for Mermaid.")
def _show(form: str | None, **given: Any) -> int:
    """Show what is registered with an application: its actors, what they handle and how.

    Also the names by which brokers know it: sessions, groups and topics. Nothing is connected to.
    TARGET is as for spa-dat run.
    """
    from ._show import show

    return show(form=form or "text", **given)


@_commands.command(
    "asyncapi", epilog=_EPILOG, short_help="Write the AsyncAPI document of an application."
)
@click.argument("target")
@_url_option
@click.option(
    "--format",
    "form",
    type=click.Choice(("yaml", "json"), case_sensitive=False),
    help="By default yaml, which needs spa-dat[yaml].",
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    help="Write a page for browsers to this file; also the document, if --format is given.",
)
@click.option("--title", metavar="TEXT", help="By default the application's name.")
@click.option(
    "--version",
    metavar="TEXT",
    help="Of the application; by default that of the installed package with its actors, or 0.0.0.",
)
@click.option("--description", metavar="TEXT", help="By default the summary of that package.")
def _asyncapi(**given: Any) -> int:
    """Write the AsyncAPI 3.0 document of an application.

    It says what the application receives, replies and sends, with the schemas of the payloads. It
    is made from what is registered; no connection is opened. TARGET is as for spa-dat run.
    """
    from ._asyncapi import show_asyncapi

    return show_asyncapi(**given)


@_commands.command(
    "acl", epilog=_EPILOG, short_help="Show the access rules that an application needs."
)
@click.argument("target")
@_url_option
@click.option(
    "--user", metavar="NAME", help="The user to write rules for; by default the user of the login."
)
@click.option(
    "--publish",
    "published",
    multiple=True,
    metavar="FILTER",
    help="What its handlers publish on the default bus; may be repeated.",
)
@click.option(
    "--subscribe",
    "subscribed",
    multiple=True,
    metavar="FILTER",
    help="What its handlers subscribe to with socket.subscribe(); may be repeated.",
)
def _acl(**given: Any) -> int:
    """Show the access rules that an application needs, and no others.

    For Mosquitto these are lines of an acl_file, for Kafka commands that add ACLs. They come from
    what is registered, so use --publish to say what handlers publish. TARGET is as for spa-dat run.
    """
    from ._acl import show_rules

    return show_rules(**given)
