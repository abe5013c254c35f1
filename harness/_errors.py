"""Errors that the harness raises in tests."""

from __future__ import annotations

from ..errors import ConfigurationError

__all__ = ["HandlerFailed", "NotSettled", "NotSimulated"]


class HandlerFailed(AssertionError):
    """Something of the application's failed that the test did not expect.

    Its cause is what was raised, with its own traceback; an ExceptionGroup where it was several.
    """


class NotSettled(AssertionError):
    """The application does not come to rest; says what goes on, and where."""


class NotSimulated(ConfigurationError):
    """The test asks for what only a simulated bus has, and it runs on a real one."""
