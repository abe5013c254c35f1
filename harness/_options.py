"""The options of a harness, and their checks."""

from __future__ import annotations

from typing import get_args

from ..errors import ConfigurationError
from ..runtime.options._checks import check_seconds
from ._faults import Faults
from .simulated._profiles import Profile

__all__ = ["check_options", "failure_classes"]


def check_options(
    *,
    seed: int,
    profile: Profile | None,
    faults: Faults | None,
    grace: float,
    patience: float,
    limit: int,
) -> None:
    """Raise ConfigurationError for an option that cannot be; see `Harness`."""
    if not isinstance(seed, int):
        raise ConfigurationError(f"Harness: seed={seed!r}: give a whole number")
    if profile is not None and profile not in get_args(Profile):
        names = " or ".join(map(repr, get_args(Profile)))
        raise ConfigurationError(f"Harness: profile={profile!r}: give {names}, or None")
    if faults is not None and not isinstance(faults, Faults):
        raise ConfigurationError(
            f"Harness: faults={faults!r}: give Faults, for example Faults.all(), or None"
        )
    check_seconds("Harness", "grace", grace)
    check_seconds("Harness", "patience", patience)
    if not isinstance(limit, int) or limit < 1:
        raise ConfigurationError(f"Harness: limit={limit!r}: give a number of messages, 1 or more")


def failure_classes(what: str, given: object) -> tuple[type[BaseException], ...]:
    """One class of errors, or a tuple of them, as a tuple; raises ConfigurationError for others."""
    kinds = given if isinstance(given, tuple) else (given,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise ConfigurationError(
                f"{what}: {kind!r} is no class of errors; give one such as LookupError, or a tuple"
            )
    return kinds
