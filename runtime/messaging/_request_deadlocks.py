"""Deadlocks of requests: each names the actors that wait for its reply, so circles show."""

from __future__ import annotations

import functools
import re

from ...transports import Envelope

__all__ = ["CHAIN_HEADER", "chain_of", "circle_of"]

CHAIN_HEADER = "spa_chain"
"""On a request: the actors that wait for its reply, outermost first, separated by commas."""

# At most sixteen names of printable characters: see `chain_names`.
_CHAIN = re.compile(r"[!-+\--~]+(?:,[!-+\--~]+){0,15}")
_LONGEST_CHAIN = 4096


def chain_of(envelope: Envelope) -> tuple[str, ...]:
    """Return the actors that wait for the reply to a request, outermost first.

    Empty if none are named, or if a stranger has written anything else there: it is sent on with
    each request that the handler makes.
    """
    text = envelope.headers.get(CHAIN_HEADER)
    return () if text is None or len(text) > _LONGEST_CHAIN else _names_in(text)


# The requests of one actor all have the same chain, and it is looked at twice for each.
@functools.lru_cache(256)
def _names_in(text: str) -> tuple[str, ...]:
    return () if _CHAIN.fullmatch(text) is None else tuple(text.split(","))


def circle_of(envelope: Envelope, name: str) -> str | None:
    """Return the circle of actors that the request would make wait; None if there is none."""
    names = chain_of(envelope)
    return " -> ".join([*names[names.index(name) :], name]) if name in names else None
