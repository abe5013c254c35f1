"""Access rules for Kafka: the ACLs that one application needs."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote
from typing import NamedTuple

from .._access import Access
from .._topics import TopicFilter
from ._config import KafkaConfig
from ._topic_names import SHARED_BY_EPHEMERAL, Names

__all__ = ["KafkaRule", "kafka_rules"]


class KafkaRule(NamedTuple):
    """One ACL.

    Attributes:
        operation: ``READ``, ``WRITE``, ``CREATE``, ``DELETE`` or ``DESCRIBE_CONFIGS``. All but
            ``CREATE`` and ``DESCRIBE_CONFIGS`` imply ``DESCRIBE``.
        kind: ``TOPIC``, ``GROUP`` or ``TRANSACTIONAL_ID``.
        name: of the resource.
        prefixed: whether it is for all whose names begin with that.
    """

    operation: str
    kind: str
    name: str
    prefixed: bool = False

    def command(self, user: str) -> str:
        """Return the arguments of ``kafka-acls.sh`` that add it."""
        pattern = " --resource-pattern-type prefixed" if self.prefixed else ""
        return (
            f"--add --allow-principal {quote(f'User:{user}')}"
            f" --operation {self.operation.title().replace('_', '')}"
            f" --{self.kind.lower().replace('_', '-')} {quote(self.name)}{pattern}"
        )


def kafka_rules(config: KafkaConfig, access: Access) -> list[KafkaRule]:
    """Return the ACLs that allow an application what it needs.

    Kafka has prefixes where filters have wildcards, so a filter with one is allowed with all that
    begins in the same way.

    Raises:
        ConfigurationError: no topic of a cluster can match a filter.
    """
    return [*dict.fromkeys(_rules(config, access))]


def _rules(config: KafkaConfig, access: Access) -> Iterator[KafkaRule]:
    names = Names(config)
    group = names.group(f"{access.application}.")
    for pattern in sorted(access.received):
        yield from _topics(names, config, pattern, ("READ",))
    writing = ("WRITE", "CREATE") if config.create_topics == "all" else ("WRITE",)
    if config.create_topics == "all":
        for pattern in sorted(access.received):
            yield from _topics(names, config, pattern, ("CREATE",))
    for pattern in sorted(access.published):
        yield from _topics(names, config, pattern, writing)
    if access.received:
        yield KafkaRule("READ", "GROUP", group, prefixed=True)
    if access.transactions:
        yield KafkaRule("WRITE", "TRANSACTIONAL_ID", group, prefixed=True)
    own = ("READ", "WRITE") if config.create_topics == "never" else ("READ", "WRITE", "CREATE")
    for name in (names.replies(access.application), names.dead_letters(access.application)):
        for operation in own:
            yield KafkaRule(operation, "TOPIC", name)
    if access.keeps_states:
        for operation in (*own, "DESCRIBE_CONFIGS"):
            yield KafkaRule(operation, "TOPIC", names.states(access.application, ""), True)
    if access.asks_0_4_0 and config.create_topics != "never":
        # Each of these requests waits alone on a topic that is created for it.
        for operation in ("READ", "CREATE", "DELETE"):
            yield KafkaRule(operation, "TOPIC", names.replies(f"{access.application}-"), True)
    if access.answers:
        yield KafkaRule("WRITE", "TOPIC", names.replies(""), prefixed=True)
        for pattern in sorted(access.reply_topics):
            yield from _topics(names, config, pattern, ("WRITE",))
    else:
        # Who asks it to replay dead letters has no name.
        yield KafkaRule("WRITE", "TOPIC", names.replies(SHARED_BY_EPHEMERAL))


def _topics(
    names: Names, config: KafkaConfig, pattern: str, operations: tuple[str, ...]
) -> Iterator[KafkaRule]:
    selection = names.selection((TopicFilter.parse(pattern).pattern,))
    for operation in operations:
        for name in selection.names:
            yield KafkaRule(operation, "TOPIC", name)
        if selection.pattern is not None:
            beginning, above = _beginning(config, pattern)
            if above is not None:
                yield KafkaRule(operation, "TOPIC", above)
            yield KafkaRule(operation, "TOPIC", beginning or "*", prefixed=bool(beginning))


def _beginning(config: KafkaConfig, pattern: str) -> tuple[str, str | None]:
    """Return how the names of topics begin that a filter with wildcards matches.

    Besides them ``a/#`` matches the topic of ``a`` itself, which is the second; None for others.
    """
    levels: list[str] = []
    above: str | None = None
    for level in TopicFilter.parse(pattern).pattern.split("/"):
        if level == "#" and levels:
            above = config.prefix + ".".join(levels)
        if level in ("+", "#"):
            break
        levels.append(level)
    return config.prefix + "".join(f"{level}." for level in levels), above
