"""The commands of the command line, and their options."""

from __future__ import annotations

import os
from typing import Any

import click

from ._command_options import (
    EPILOG,
    ask_for_command,
    count_reader,
    json_option,
    message_options,
    name_option,
    read_seconds,
    since_option,
    until_option,
    url_option,
)
from ._dlq_commands import dlq
from ._terminal import Group

__all__ = ["commands"]

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
_EPILOG_OF_COPIES = (
    "Exit code: 0 when all went well, 1 when copying has failed and may be begun again, 2 when"
    " something about the command is wrong, the states cannot be copied now, or the cluster cannot"
    " be used; nothing was changed then."
)
_LEVELS = ("debug", "info", "warning", "error", "critical")
_LOG_FORMATS = ("text", "json")
_MOST_WORKERS = 1_000


@click.group(
    cls=Group,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="spa-dat", message="spa-dat %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """Run applications, talk to a bus, record what happens, and replay it."""
    ask_for_command(context, commands)


@commands.command(
    "run", epilog=EPILOG, short_help="Run applications, in one process or in several."
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
    callback=count_reader(_MOST_WORKERS),
    metavar="N",
    help="Run the whole application in N processes, instances 0 to N-1 (with an instance name,"
    " NAME-0 and so on), and restart those that die.",
)
@click.option(
    "--worker-timeout",
    callback=read_seconds,
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


@commands.command(
    "publish", epilog=_EPILOG_OF_PUBLISH, short_help="Publish a message, or one for each line."
)
@click.argument("url")
@click.argument("topic")
@click.argument("payload", required=False)
@message_options
@click.option("--lines", is_flag=True, help="Publish each line of the input that is not empty.")
@click.option("--qos", type=click.Choice(("0", "1")), help="By default that of the bus.")
@click.option("--retain", is_flag=True, help="The broker keeps it for later subscribers; on MQTT.")
@click.option(
    "--expiry",
    callback=read_seconds,
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


@commands.command(
    "request", epilog=_EPILOG_OF_REQUEST, short_help="Send a request, and print the reply."
)
@click.argument("url")
@click.argument("topic")
@click.argument("payload", required=False)
@message_options
@json_option
def _request(**given: Any) -> int:
    """Send a request over an MQTT broker or a Kafka cluster, and print the payload of the reply.

    The arguments are those of spa-dat publish. With --json the reply is a line of JSON with
    everything about it, as spa-dat listen prints it.
    """
    from ._send import request

    return request(**given)


@commands.command(
    "listen", epilog=_EPILOG_OF_LISTEN, short_help="Show the messages that arrive on some topics."
)
@click.argument("url")
@click.argument("pattern", metavar="FILTER")
@name_option
@click.option("--count", callback=count_reader(), metavar="N", help="End after N messages.")
@click.option(
    "--for", "seconds", callback=read_seconds, metavar="SECONDS", help="End after so many seconds."
)
@since_option
@json_option
def _listen(**given: Any) -> int:
    """Show messages on an MQTT broker or a Kafka cluster as they arrive, until Ctrl-C.

    URL is that of the broker, or of a configuration document. FILTER is one as actors have it: +
    stands for one level, and # at the end for all below, as in 'plant/#'. Nobody misses a message
    because of it, and nothing of it stays on the broker.
    """
    from ._listen import listen

    return listen(**given)


commands.add_command(dlq)


@commands.group(
    "states",
    invoke_without_command=True,
    epilog=EPILOG,
    short_help="Copy the states of keys, for more partitions.",
)
@click.pass_context
def _states(context: click.Context) -> None:
    """Work with the states of durable keys on a Kafka cluster."""
    ask_for_command(context, _states)


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
@name_option
def _states_copy(**given: Any) -> int:
    """Copy the states of an actor's keys for another actor, whose topic has more partitions.

    To be called while no instance of the application is running. URL is that of the Kafka cluster,
    or of a configuration document. Each state goes where the messages of its key are now. In topics
    that both actors read the second goes on where the first has ended. What the first one has stays
    as it is.
    """
    from ._states import copy_states

    return copy_states(**given)


@commands.command(
    "top", epilog=EPILOG, short_help="Watch running applications, and pause or restart actors."
)
@click.argument("admin", nargs=-1, metavar="[HOST:PORT]...")
@click.option(
    "--interval",
    callback=read_seconds,
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


@commands.command("record", epilog=EPILOG)
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
    callback=count_reader(),
    metavar="N",
    help="Record at most N messages; an application then keeps running, listening ends.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@since_option
@until_option
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


@commands.command("replay", epilog=EPILOG)
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
@since_option
@until_option
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


@commands.command(
    "config", epilog=EPILOG, short_help="Show the options of a bus, and where they come from."
)
@click.argument("url", envvar="SPA_DAT_URL", required=False)
@name_option
@click.option(
    "--allow-http",
    is_flag=True,
    help="Allow a document over http://, where anybody in between can change it.",
)
@json_option
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


@commands.command(
    "health", epilog=_EPILOG_OF_HEALTH, short_help="Ask a running application whether it is ready."
)
@click.argument("address", required=False, metavar="[HOST:PORT]", envvar="SPA_DAT_ADMIN")
@click.option("--live", is_flag=True, help="Ask only whether its event loop responds.")
@click.option(
    "--workers",
    callback=count_reader(_MOST_WORKERS),
    default="1",
    metavar="N",
    help="Ask N workers, from PORT on.",
)
@click.option(
    "--timeout",
    callback=read_seconds,
    metavar="SECONDS",
    default="5",
    show_default=True,
    help="How long to wait for each answer.",
)
@json_option
def _health(**given: Any) -> int:
    """Ask a running application whether it is ready for messages.

    It has to answer probes, as with spa-dat run --admin; by default at the address in the
    environment variable SPA_DAT_ADMIN. This is a health check for containers, without curl.
    """
    from ._health import ask_health

    return ask_health(**given)


@commands.command("show", epilog=EPILOG, short_help="Show what is registered with an application.")
@click.argument("target")
@url_option
@click.option("--json", "form", flag_value="json", help="As JSON, for programs.")
@click.option("--mermaid", "form", flag_value="mermaid", help="As a picture, for Mermaid.")
def _show(form: str | None, **given: Any) -> int:
    """Show what is registered with an application: its actors, what they handle and how.

    Also the names by which brokers know it: sessions, groups and topics. Nothing is connected to.
    TARGET is as for spa-dat run.
    """
    from ._show import show

    return show(form=form or "text", **given)


@commands.command(
    "asyncapi", epilog=EPILOG, short_help="Write the AsyncAPI document of an application."
)
@click.argument("target")
@url_option
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


@commands.command(
    "acl", epilog=EPILOG, short_help="Show the access rules that an application needs."
)
@click.argument("target")
@url_option
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
