"""Access: what an application does on a bus, of which each bus makes rules."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Access"]


@dataclass(frozen=True)
class Access:
    """What an application has to be allowed on a bus.

    Attributes:
        application: its name.
        user: who the broker takes it for.
        received: filters of what its actors get.
        published: filters of what its handlers publish.
        answers: whether it answers requests.
        reply_topics: filters of where its replies go, besides the inboxes of applications.
        asks_0_4_0: whether it may make requests in the format of spa-dat 0.4.0.
        transactions: whether an actor commits in transactions.
        keeps_states: whether states of keys are kept on the bus.
    """

    application: str
    user: str
    received: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    answers: bool = False
    reply_topics: tuple[str, ...] = ()
    asks_0_4_0: bool = False
    transactions: bool = False
    keeps_states: bool = False
