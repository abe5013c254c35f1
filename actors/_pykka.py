"""The parts of pykka that are used although they are private, and the check that they are there."""

from __future__ import annotations

import functools
from importlib import metadata

import pykka
from pykka import messages

from ..errors import ConfigurationError

__all__ = ["SUPPORTED", "check_pykka", "is_proxy_message", "is_stop_message"]

SUPPORTED = (4, 5)

_HOOKS: tuple[tuple[object, str], ...] = (
    (pykka.Actor, "_create_actor_inbox"),
    (pykka.Actor, "_create_future"),
    (pykka.Actor, "_start_actor_loop"),
    (pykka.Actor, "_handle_receive"),
    (pykka.ThreadingActor, "_start_actor_loop"),
    (pykka.ThreadingActor, "use_daemon_thread"),
    (messages, "_ActorStop"),
)
_FUTURE_FIELDS = ("_condition", "_result", "_get_hook")

_PROXY_MESSAGES = (messages.ProxyCall, messages.ProxyGetAttr, messages.ProxySetAttr)


def is_stop_message(message: object) -> bool:
    """Whether pykka sent the message to end an actor."""
    return isinstance(message, messages._ActorStop)


def is_proxy_message(message: object) -> bool:
    """Whether the message is a call or an attribute access through a pykka proxy."""
    return isinstance(message, _PROXY_MESSAGES)


@functools.cache
def check_pykka() -> None:
    """Make sure that the installed pykka is one whose inner parts are known.

    Raises:
        ConfigurationError: it is another version, or a part is missing.
    """
    version = metadata.version("pykka")
    wanted = ".".join(str(number) for number in SUPPORTED)
    numbers = version.split(".")[:2]
    missing = [f"{owner!r}.{name}" for owner, name in _HOOKS if not hasattr(owner, name)]
    fields = vars(pykka.ThreadingFuture())
    missing += [f"ThreadingFuture().{name}" for name in _FUTURE_FIELDS if name not in fields]
    if numbers != wanted.split(".") or missing:
        lacks = f", and it lacks {', '.join(missing)}" if missing else ""
        raise ConfigurationError(
            f"pykka {version} is installed{lacks}; this package is made for pykka {wanted}.x:"
            f" install 'pykka>={wanted},<{SUPPORTED[0]}.{SUPPORTED[1] + 1}'"
        )
