"""Errors raised by the brokers for tests."""

from __future__ import annotations

from ...errors import SpaDatError

__all__ = ["BrokerFailed", "BrokerUnavailable"]


class BrokerFailed(SpaDatError, RuntimeError):
    """A broker process does not do what it should; the text includes the broker's log."""


class BrokerUnavailable(BrokerFailed):
    """This machine lacks something that the broker needs; the text says how to get it."""
