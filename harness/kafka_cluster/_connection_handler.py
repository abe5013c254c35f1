"""One client's connection: requests in, answers out, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..loop._network import ServerConnection
from ._cluster import Cluster
from ._fetch_requests import PendingFetch
from ._group_requests import GROUP_REQUESTS
from ._protocol_frames import FrameReader, Request, encode_answer, parse
from ._topic_requests import TOPIC_REQUESTS
from ._transaction_requests import TRANSACTION_REQUESTS

__all__ = ["serve"]

_FETCH = 1
_HANDLERS: dict[int, Callable[[Cluster, Request, Callable[[Any], None]], None]] = {
    **TOPIC_REQUESTS,
    **GROUP_REQUESTS,
    **TRANSACTION_REQUESTS,
}


def serve(cluster: Cluster, connection: ServerConnection) -> None:
    """Serve a client of the cluster, for as long as its connection lasts."""
    _ConnectionHandler(cluster, connection)


class _ConnectionHandler:
    """Serves one connection like a broker: takes the next request once the last is answered.

    Args:
        cluster: the cluster.
        connection: the connection of the client.
    """

    def __init__(self, cluster: Cluster, connection: ServerConnection) -> None:
        self._cluster = cluster
        self._connection = connection
        self._frames = FrameReader()
        self._waiting: deque[bytes] = deque()
        self._current: Request | None = None
        self._fetch: PendingFetch | None = None
        connection.on_data = self._on_data
        connection.on_close = self._on_close

    def _on_data(self, data: bytes) -> None:
        self._waiting.extend(self._frames.feed(data))
        if self._fetch is not None:
            self._fetch.hurry()
        self._work()

    def _on_close(self) -> None:
        self._waiting.clear()
        if self._fetch is not None:
            self._fetch.cancel()
        if self._connection.name:
            self._cluster.note(self._connection.name, "disconnect")

    def _work(self) -> None:
        while self._waiting and self._current is None:
            try:
                request = parse(self._waiting.popleft())
            except (ValueError, TypeError):
                request = None
            if request is None:
                # A broker closes the connection over what it cannot read.
                self._waiting.clear()
                self._connection.close()
                return
            self._begin(request)

    def _begin(self, request: Request) -> None:
        if not self._connection.name and request.client_id:
            self._connection.name = request.client_id
            self._cluster.note(request.client_id, "connect")
        self._current = request

        def reply(answer: Any) -> None:
            self._reply(request, answer)

        if request.body.API_KEY == _FETCH:
            self._fetch = PendingFetch(self._cluster, request, reply)
            self._fetch.start()
        else:
            _HANDLERS[request.body.API_KEY](self._cluster, request, reply)

    def _reply(self, request: Request, answer: Any) -> None:
        """Send an answer; None if the request expects none."""
        self._current = None
        self._fetch = None
        if answer is not None:
            self._connection.send(encode_answer(request.correlation, answer))
        if self._waiting:
            # Not at once: the caller may be in the middle of something.
            self._cluster.loop.call_soon(self._work)
