"""Errors that the harness raises in tests."""

from __future__ import annotations

from ..errors import ConfigurationError

__all__ = ["HandlerFailed", "NotSettled", "NotSimulated"]


class HandlerFailed(AssertionError):
    """Something in an application failed that the test did not expect.

    Its cause is the error that was raised, with its own traceback; an ExceptionGroup if there were
    several.
    """


class NotSettled(AssertionError):
    """The application does not come to rest; the text says what is going on, and where."""


class NotSimulated(ConfigurationError):
    """The test runs on a real bus, and asks for something that only a simulated one has."""
