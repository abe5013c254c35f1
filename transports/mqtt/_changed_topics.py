"""Brokers that deliver messages on other topics than those that were asked for."""

from __future__ import annotations

from ..._texts import quoted

__all__ = ["about_changed_topics"]


def about_changed_topics(address: str, topic: str) -> str:
    """Return what is wrong with a broker, and what to do.

    Args:
        address: of the broker.
        topic: of a message that came, although the session has no filter for it.
    """
    return (
        f"the broker at {address} delivers messages on {quoted(topic)}, which this program has not"
        " asked for, and they are dropped: something changes the topics on their way (Mosquitto"
        " 2.0 up to 2.0.11 does with mount_point: use a newer one, or leave it out)"
    )
