"""Errors that the brokers for tests raise."""

from __future__ import annotations

from ...errors import SpaDatError

__all__ = ["BrokerFailed", "BrokerUnavailable"]


class BrokerFailed(SpaDatError, RuntimeError):
    """A broker process does not do what it is to do; shows the broker's log."""


class BrokerUnavailable(BrokerFailed):
    """This machine does not have what the broker needs; says how to get it."""
