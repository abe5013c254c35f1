"""Options that an actor class gives as class attributes, and misspelt ones."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from ...actors import Actor, Overflow
from ...errors import ConfigurationError
from ...transports import as_provider
from ..options._custom_codecs import Codec
from ..options._option_checks import is_number
from ..options._retry_policy import RetryPolicy
from ..options._state_factory import is_factory

__all__ = ["class_options"]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _says_how(value: Any) -> bool:
    if isinstance(value, bool):
        return True
    # Not at the top: most applications have no durable actors.
    from ..options._durable import Durable

    return isinstance(value, Durable)


def _is_codec(value: Any) -> bool:
    return isinstance(value, Codec) or (isinstance(value, type) and issubclass(value, Codec))


_OPTIONS: Mapping[str, Callable[[Any], bool]] = {
    "socket_provider": lambda value: not isinstance(value, bool | int | float),
    "ressources": lambda value: isinstance(value, Mapping),
    "retry": lambda value: isinstance(value, RetryPolicy),
    "mailbox": _is_count,
    "window": _is_count,
    "overflow": lambda value: isinstance(value, Overflow),
    "qos": _is_count,
    "deliver": lambda value: value in ("share", "all"),
    "retained": _is_text,
    "rewind_to": lambda value: isinstance(value, str | datetime),
    "subscription": _is_text,
    "replies": _is_switch,
    "reply_topics": lambda value: isinstance(value, str | list | tuple),
    "retry_requests": _is_switch,
    "handle_expired": _is_switch,
    "deadline": is_number,
    "concurrency": _is_count,
    "per": _is_text,
    "hot": _is_count,
    "idle": is_number,
    "durable": _says_how,
    "exactly_once": _is_switch,
    "key": _is_text,
    "batch": lambda value: isinstance(value, tuple),
    "codec": _is_codec,
    "wire": _is_text,
    "placement": _is_text,
    "processes": _is_count,
}
"""The options, each with a test of whether a value could be meant for it."""

_SIMILAR = 0.8
# For values that can only be meant as options.
_SIMILAR_ENOUGH = 0.6
_ONLY_OPTIONS = (RetryPolicy, Overflow)


def class_options(cls: type[Actor]) -> dict[str, Any]:
    """Return the options that are class attributes, including ``name``.

    Raises:
        ConfigurationError: an attribute has almost the name of an option, and could be one.
    """
    given: dict[str, Any] = {}
    for option in ("name", *_OPTIONS):
        value = inspect.getattr_static(cls, option, None)
        # A method or property that happens to have the name is the user's own.
        if value is None or hasattr(type(value), "__get__"):
            continue
        # The class of a codec is a mistake that is to be named.
        if callable(value) and not (option == "codec" and _is_codec(value)):
            continue
        given[option] = value
    if "per" in given and is_factory(state := inspect.getattr_static(cls, "state", None)):
        given["state"] = state
    if "socket_provider" in given:
        given["socket_provider"] = as_provider(given["socket_provider"])
    _refuse_misspelt(cls, given)
    return given


def _refuse_misspelt(cls: type[Actor], given: Mapping[str, Any]) -> None:
    own = [base for base in cls.__mro__ if issubclass(base, Actor) and base is not Actor]
    declared = {name for base in own for name in vars(base).get("__annotations__", {})}
    for base in own:
        for name, value in vars(base).items():
            if name.startswith("_") or name in given or name in declared or hasattr(Actor, name):
                continue
            if hasattr(type(value), "__get__"):
                continue
            _refuse(
                cls.__name__, name, value, [option for option in _OPTIONS if option not in given]
            )


def _refuse(owner: str, name: str, value: Any, open_options: list[str]) -> None:
    own = f"if it is an attribute of your own, annotate it: {name}: {type(value).__name__} = ..."
    if name == "every" and is_number(value):
        raise ConfigurationError(
            f"actor class {owner}: only producers have the option 'every'; {own}"
        )
    if name == "state" and _makes_state(value):
        raise ConfigurationError(
            f"actor class {owner}: the option 'state' is for functions; a class without per= keeps"
            f" its state in attributes, which __init__ sets. Otherwise {own}"
        )
    if name in _OPTIONS:
        return
    cutoff = _SIMILAR_ENOUGH if isinstance(value, _ONLY_OPTIONS) else _SIMILAR
    plain = name.lower().replace("_", "")
    by_name = {option.replace("_", ""): option for option in open_options}
    for near in difflib.get_close_matches(plain, list(by_name), cutoff=cutoff):
        option = by_name[near]
        if _OPTIONS[option](value):
            raise ConfigurationError(
                f"actor class {owner}: {name} = {value!r:.80} is not an option; did you mean"
                f" {option!r}? ({own[0].upper()}{own[1:]})"
            )


def _makes_state(value: Any) -> bool:
    # A class defined inside the actor's class is something else, for example an enumeration.
    return isinstance(value, type) and "." not in value.__qualname__
