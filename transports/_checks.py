"""Checks that the configurations of all transports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .._texts import quoted, unfit_character
from ..errors import ConfigurationError
from ._credentials import PasswordFile
from ._secret import Secret

__all__ = ["check_flag", "check_login", "check_numbers", "check_text"]

_LONGEST = 65_535


def check_numbers(
    config: object,
    limits: Mapping[str, tuple[float, float]],
    *,
    whole: bool,
) -> None:
    """Every option named in ``limits`` is a number within its limits (both ends included).

    Args:
        config: the object whose attributes are looked at.
        limits: option name to lowest and highest value.
        whole: only whole numbers will do.

    Raises:
        ConfigurationError: naming the option, its value and what is expected.
    """
    kind = "a whole number" if whole else "a number"
    for option, (lowest, highest) in limits.items():
        value: object = getattr(config, option)
        # bool is an int for Python; ``keepalive=True`` is a mistake all the same.
        fits = (
            isinstance(value, int if whole else (int, float))
            and not isinstance(value, bool)
            and lowest <= value <= highest
        )
        if not fits:
            raise ConfigurationError(
                f"option {option}={value!r} of {type(config).__name__}:"
                f" give {kind} from {lowest:.12g} to {highest:.12g}"
            )


def check_flag(config: object, option: str) -> None:
    """The option is True or False.

    Raises:
        ConfigurationError: naming the option and its value.
    """
    value = getattr(config, option)
    if not isinstance(value, bool):
        raise ConfigurationError(
            f"option {option}={value!r} of {type(config).__name__}: give True or False"
        )


def check_text(config: object, option: str) -> None:
    """The option is None or a text that is not empty.

    Raises:
        ConfigurationError: naming the option and its value.
    """
    value = getattr(config, option)
    if value is None:
        return
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigurationError(
            f"option {option}={value!r} of {type(config).__name__}:"
            " give a text that is not empty, or leave it out"
        )


class Login(Protocol):
    """Options of a configuration with which it logs in."""

    @property
    def username(self) -> str | None: ...
    @property
    def secret(self) -> Secret | None: ...


def check_login(config: Login) -> None:
    """User name and password are what a broker takes, which would end the connection over others.

    Raises:
        ConfigurationError: naming the option; it shows nothing of a password.
    """
    name, secret = config.username, config.secret
    kind = type(config).__name__
    if name is not None and (unfit := unfit_character(name)) is not None:
        raise ConfigurationError(
            f"option username={quoted(name)} of {kind} contains {unfit}: leave it out"
        )
    if name is not None and len(name.encode()) > _LONGEST:
        raise ConfigurationError(
            f"option username={quoted(name, 40)} of {kind} is longer than {_LONGEST} bytes"
        )
    if secret is None or isinstance(secret, PasswordFile):
        return
    try:
        size = len(secret.reveal().encode())
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"option password of {kind} contains half of a surrogate pair, which UTF-8 can not"
            " carry: use whole characters"
        ) from None
    if size > _LONGEST:
        raise ConfigurationError(f"option password of {kind} is longer than {_LONGEST} bytes")
