"""``spa-dat states copy``."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigurationError
from ..runtime.options._option_checks import check_name
from ..transports import KafkaConfig
from ._broker_client import broker_at, run_client
from ._standard_output import check_open, printing, write_text

__all__ = ["copy_states"]


def copy_states(
    url: str, *, application: str, actor: str, to: str, topics: Sequence[str], name: str | None
) -> int:
    """Copy the states of an actor's keys for another actor; returns the exit code.

    Args:
        url: of the cluster or document.
        application: its name.
        actor: whose states they are.
        to: the actor that goes on with them.
        topics: all that it reads, by their names on the cluster.
        name: of the provider in the document.

    Raises:
        ConfigurationError: an argument is wrong, or it cannot be done now.
        TransportError: the cluster cannot be used, or copying has failed.
    """
    check_open()
    check_name("--application", application)
    check_name("--actor", actor)
    check_name("--to", to)
    if actor == to:
        raise ConfigurationError(
            f"--to {to!r} is the actor whose states are to be copied: give the name of another one"
        )
    config = broker_at(url, name=name).config
    if not isinstance(config, KafkaConfig):
        raise ConfigurationError(
            "states are copied on Kafka only, where they are in a topic: give the address of a"
            " Kafka cluster"
        )
    # The client library takes time to import.
    from ..transports.kafka.consuming import _state_copies

    done = run_client(_state_copies.copy_states(config, application, actor, to, topics))
    with printing():
        write_text(
            f"states: {done.states}, {done.written} of them written now, from {done.before}"
            f" partitions of {done.source} to {done.after} of {done.target}\n"
        )
    return 0
