"""What an actor has to be like so that its states can be kept on disk."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

from ...actors import Overflow
from ...errors import ConfigurationError
from ._durable import Durable

if TYPE_CHECKING:
    from ._actor_options import ActorOptions

__all__ = ["check_durable"]

_INSTEAD: dict[Any, str] = {
    Counter: "dict[str, int]",
    defaultdict: "a dict with setdefault()",
    deque: "a list",
    OrderedDict: "a dict",
}


def check_durable(owner: str, options: ActorOptions) -> None:
    """Raise ConfigurationError for options that do not go with ``durable``."""
    if not isinstance(options.durable, bool | Durable):
        raise ConfigurationError(
            f"{owner}: durable={options.durable!r}: give True, False or Durable(...)"
        )
    if not options.durable:
        return
    kept = options.kept
    kept.check(owner)
    for name in ("hot", "idle"):
        if None not in (getattr(options, name), getattr(kept, name)):
            raise ConfigurationError(
                f"{owner}: {name}={getattr(options, name)!r} and"
                f" Durable({name}={getattr(kept, name)!r}): give only one of them"
            )
    if options.per is None:
        raise ConfigurationError(
            f"{owner}: durable=True keeps the states of keys: give per=, the capture whose values"
            " have a state each"
        )
    provider = options.socket_provider
    has_groups = provider is not None and provider.has_transactions
    refused = {
        "batch": options.batch is not None,
        "overflow": options.overflow is not Overflow.REFUSE,
        "qos": options.qos == 0,
        "subscription": options.subscription is not None,
        "deliver": options.deliver == ("all" if has_groups else "share"),
        "rewind_to": has_groups and options.rewind_to is not None,
    }
    for name, given in refused.items():
        if given:
            raise ConfigurationError(
                f"{owner}: {name}={getattr(options, name)!r} does not go with durable=True:"
                f" {_WHY_NOT[name]}; remove one of them"
            )
    _check_type(owner, options.state)


_WHY_NOT = {
    "batch": "the messages of a batch are of several keys",
    "overflow": "a message that is dropped would be missing in the state of its key",
    "qos": "what is not acknowledged does not come again after a crash",
    "subscription": "what is handled has to be acknowledged by the actor alone",
    "deliver": "each key has one state, and its messages go where that is",
    "rewind_to": "what was handled would change the states again",
}


def _check_type(owner: str, state: Any) -> None:
    base = typing.get_origin(state) or state
    if not isinstance(base, type):
        raise ConfigurationError(
            f"{owner}: durable=True has to read states again: give state= a class, for example a"
            f" dataclass, instead of {state!r}"
        )
    _check_part(owner, state, "", [])


def _check_part(owner: str, part: Any, where: str, seen: list[Any]) -> None:
    base = typing.get_origin(part) or part
    if base in seen:
        return
    instead = next((text for kind, text in _INSTEAD.items() if base is kind), None)
    if instead is not None:
        raise ConfigurationError(
            f"{owner}: the state{where} is a {base.__name__}, which does not come back from JSON as"
            f" it was: use {instead}"
        )
    for argument in typing.get_args(part):
        _check_part(owner, argument, where, seen)
    if isinstance(base, type) and dataclasses.is_dataclass(base):
        seen.append(base)
        hints = typing.get_type_hints(base)
        for field in dataclasses.fields(base):
            _check_part(owner, hints[field.name], f"{where}.{field.name}", seen)
