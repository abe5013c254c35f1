"""What an actor has to be like so that its messages have their effects exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...actors import Overflow
from ...errors import ConfigurationError

if TYPE_CHECKING:
    from ._actor_options import ActorOptions

__all__ = ["check_exactly_once"]


def check_exactly_once(owner: str, options: ActorOptions) -> None:
    """Raise ConfigurationError for options that do not go with ``exactly_once``."""
    if not isinstance(options.exactly_once, bool):
        raise ConfigurationError(
            f"{owner}: exactly_once={options.exactly_once!r}: give True or False"
        )
    if not options.exactly_once:
        return
    refused = {
        "per": options.per is not None and not options.durable,
        "batch": options.batch is not None,
        "overflow": options.overflow is not Overflow.REFUSE,
        "qos": options.qos == 0,
        "subscription": options.subscription is not None,
        "deliver": options.deliver == "all",
        "rewind_to": options.rewind_to is not None,
        "placement": options.placement is not None,
        "every": options.every is not None,
    }
    for name, given in refused.items():
        if given:
            raise ConfigurationError(
                f"{owner}: {name}={getattr(options, name)!r} does not go with exactly_once=True:"
                f" {_WHY_NOT[name]}; remove one of them"
            )
    if options.durable and options.kept.store is not None:
        raise ConfigurationError(
            f"{owner}: Durable(store=...) does not go with exactly_once=True: what the cluster"
            " commits and what the store commits are not one. Leave out store=, and the states are"
            " in a topic of the cluster; or leave out exactly_once=True, and what is published"
            " arrives at least once, with the same ids"
        )
    provider = options.socket_provider
    if provider is not None and not provider.has_transactions:
        raise ConfigurationError(
            f"{owner}: exactly_once=True needs a bus with transactions, and {provider.address} has"
            " none: use Kafka; what durable=True promises on other buses is in docs/keyed.md"
        )


_WHY_NOT = {
    "per": "a message that comes again would change a state twice that is not durable=True",
    "batch": "each message is committed with its own effects",
    "overflow": "a message that is dropped has no effects at all",
    "qos": "what is not acknowledged does not come again after a crash",
    "subscription": "what is handled has to be committed by the actor alone",
    "deliver": "the instances would have to commit each for itself",
    "rewind_to": "what was handled would have its effects again",
    "placement": "a child process commits nothing",
    "every": "a producer gets no messages that could be committed",
}
