"""Checks that the configurations of all transports share."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigurationError

__all__ = ["check_flag", "check_numbers", "check_text"]


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
