"""``spa-dat acl``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .._texts import quoted, unfit_character
from ..errors import ConfigurationError
from ..runtime import DistributedApplication
from ..runtime.application._application import runs_of
from ..runtime.application._runs import Runs
from ..transports import (
    RESERVED,
    KafkaConfig,
    MqttConfig,
    SocketProvider,
    SocketProviderFactory,
    TopicFilter,
)
from ..transports._access import Access
from ..transports._topics import covers
from ..transports.kafka._access_rules import kafka_rules
from ..transports.mqtt._access_rules import mosquitto_rules
from ._application import load_application
from ._standard_output import printing, write_text

__all__ = ["show_rules"]

_ANY_TOPIC = (
    "# Replies are allowed in the inboxes of applications only (_spa/reply/). If requesters\n"
    "# name other topics, give the application or the actor reply_topics=."
)

_OTHER_BUS = (
    "# What its handlers publish on this bus cannot be seen from here, and --publish is for the\n"
    "# default one: add the rules for it."
)
_WIDE = (
    "# The rule for {} also lets it read replies and dead letters of other applications (_spa/).\n"
    "# Where they must not trust each other, begin the filter with a level of its own."
)
_LONE = (
    "# Kafka has prefixes only: the rules for the reply topics of requests to spa-dat 0.4.0 hold\n"
    "# for those of applications named {application}-..., too. Give others different names."
)


def show_rules(
    target: str,
    *,
    url: str | None,
    user: str | None,
    published: Sequence[str],
    subscribed: Sequence[str],
) -> int:
    """Print the access rules that an application needs; returns the exit code.

    Args:
        target: names the application.
        url: the bus in place of the application's default one.
        user: who the broker takes it for; None for the user of the login.
        published: filters of what its handlers publish on the default bus.
        subscribed: filters to which its handlers subscribe on the default bus.

    Raises:
        ConfigurationError: there is no such application, it has no name, or a filter or the user's
            name is wrong.
    """
    if user is not None and (unfit := unfit_character(user)) is not None:
        # A line break would begin another rule.
        raise ConfigurationError(f"--user {quoted(user)} contains {unfit}: leave it out")
    application = load_application(target)
    runs = runs_of(application)
    if application.identity.ephemeral:
        raise ConfigurationError(
            "the application has no name, and so a different one in each run: give it a name,"
            " DistributedApplication(..., name='plant')"
        )
    if url is not None:
        runs.replace_provider(SocketProviderFactory.from_url(url))
    buses = [*dict.fromkeys(runs.providers)]
    shown: list[str] = []
    for provider in buses:
        default = provider is (runs.settings.provider or buses[0])
        access, lines = _access(application, runs, provider, user)
        if default:
            access = replace(
                access,
                received=(*access.received, *_plain(subscribed)),
                published=_plain(published),
            )
            if not published:
                lines.append(
                    "# What its handlers publish cannot be seen from here: give --publish."
                )
        else:
            lines.append(_OTHER_BUS)
        rules = [*_rules(provider, access), *lines, *_too_wide(provider, access)]
        shown.append("".join(f"{line}\n" for line in rules))
    with printing():
        write_text("\n".join(shown))
    return 0


def _too_wide(provider: SocketProvider, access: Access) -> list[str]:
    """Return what has to be said of filters that reach into what belongs to other applications."""
    config = getattr(provider, "config", None)
    if not isinstance(config, (MqttConfig, KafkaConfig)):
        return []
    # Kafka has no rule for some of what does not begin in the same way.
    wide = [
        pattern
        for pattern in access.received
        if pattern[0] in "+#" and (isinstance(config, KafkaConfig) or _matches_others(pattern))
    ]
    return [_WIDE.format(quoted(pattern)) for pattern in wide]


def _matches_others(pattern: str) -> bool:
    """Return whether a broker matches the filter, whose first level is a wildcard, with theirs."""
    within = f"{RESERVED}/#" if pattern == "#" else RESERVED + pattern[1:]
    theirs = (f"{RESERVED}/reply/a/b/c", f"{RESERVED}/dead-letter/a/b")
    return any(covers(within, topic) for topic in theirs)


def _plain(filters: Sequence[str]) -> tuple[str, ...]:
    return tuple(TopicFilter.parse(text).pattern for text in filters)


def _login(provider: SocketProvider) -> str | None:
    config = getattr(provider, "config", None)
    return getattr(config, "username", None)


def _access(
    application: DistributedApplication, runs: Runs, provider: SocketProvider, user: str | None
) -> tuple[Access, list[str]]:
    """Return what is registered for the bus, and what has to be said about it."""
    received: dict[str, None] = {}
    reply_topics: dict[str, None] = {}
    answers = anywhere = transactions = keeps_states = False
    asks_0_4_0 = getattr(getattr(provider, "config", None), "wire", None) == "spa-dat"
    for spec in runs.specs:
        if (spec.options.socket_provider or runs.settings.provider) is not provider:
            continue
        asks_0_4_0 = asks_0_4_0 or spec.options.wire == "spa-dat"
        keeps_states = keeps_states or spec.options.are_kept_by(provider)
        transactions = transactions or spec.options.exactly_once or keeps_states
        received |= dict.fromkeys(filter_.pattern for filter_ in spec.filters)
        if any(handler.responder for handler in spec.handlers):
            answers = True
            allowed = spec.options.reply_filters
            allowed = runs.settings.reply_topics if allowed is None else allowed
            anywhere = anywhere or allowed is None
            reply_topics |= dict.fromkeys(filter_.pattern for filter_ in allowed or ())
    name = application.identity.application
    access = Access(
        application=name,
        user=user or _login(provider) or name,
        received=tuple(received),
        answers=answers,
        reply_topics=tuple(reply_topics),
        asks_0_4_0=asks_0_4_0,
        transactions=transactions,
        keeps_states=keeps_states,
    )
    return access, [_ANY_TOPIC] if anywhere else []


def _rules(provider: SocketProvider, access: Access) -> list[str]:
    config = getattr(provider, "config", None)
    if isinstance(config, MqttConfig):
        head = f"# {access.application} on {config.address}: lines of an acl_file of Mosquitto."
        return [head, *mosquitto_rules(config, access)]
    if isinstance(config, KafkaConfig):
        head = (
            f"# {access.application} on {config.address}: commands for an administrator of Kafka."
        )
        command = f"kafka-acls.sh --bootstrap-server {config.servers.split(',')[0]} "
        rules = kafka_rules(config, access)
        lines = [head, *(command + rule.command(access.user) for rule in rules)]
        if any(rule.operation == "DELETE" for rule in rules):
            lines.append(_LONE.format(application=access.application))
        return lines
    return [f"# {access.application} on {getattr(config, 'address', 'another bus')}: no rules."]
