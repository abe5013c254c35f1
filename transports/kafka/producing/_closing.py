"""Ending a producer of the library without waiting for confirmations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from .._aiokafka_private import retire_producer, stop_waiting_for_metadata

__all__ = ["close_producer"]

_CLOSE_TIMEOUT = 2.0


async def close_producer(library: Any, tasks: Iterable[asyncio.Future[Any]] = ()) -> None:
    """End a producer at once. Never raises; bounded in time.

    The library's own way waits for confirmations, which may never come.

    Args:
        library: the producer.
        tasks: what uses it, and was cancelled.
    """
    client = library.client
    sender = retire_producer(library)
    closing = asyncio.ensure_future(client.close())
    ending: list[asyncio.Future[Any]] = [closing] if sender is None else [sender, closing]
    left = [*tasks, *ending]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _CLOSE_TIMEOUT
    while left and loop.time() < deadline:
        _, waiting = await asyncio.wait(left, timeout=0.02)
        left = list(waiting)
        stop_waiting_for_metadata(client)
    for task in left:
        task.cancel()
    for task in ending:
        if task.done() and not task.cancelled():
            task.exception()
