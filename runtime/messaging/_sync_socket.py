"""The socket of ``def`` handlers, which run in a thread."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, Never, TypeVar, Unpack, overload

from ..._busy_threads import waits_for_loop
from ...errors import ActorStopped, ConfigurationError, RemoteError
from ...transports._wire_formats import WireName
from ._outgoing_message import OutgoingMessage, PublishOptions
from ._requests import MOST_REPLIES, ManyOptions, RequestOptions
from ._socket import DEFAULT_TIMEOUT, NOT_GIVEN, Socket
from ._typed_topic import P, R, Topic

__all__ = ["SyncSocket"]

T = TypeVar("T")

# Seconds between two checks that the loop is still there.
_LOOK_AGAIN = 1.0


class SyncSocket:
    """The socket of a ``def`` handler: like `Socket`, but it blocks its own thread.

    Every method does what the `Socket` method of the same name does, and raises the same.
    Never use it on the event loop: there it raises ConfigurationError.
    """

    def __init__(
        self, socket: Socket, loop: asyncio.AbstractEventLoop, loop_thread: int | None = None
    ) -> None:
        self._socket = socket
        self._loop = loop
        self._loop_thread = threading.get_ident() if loop_thread is None else loop_thread
        self._revoked = False
        self._calls: dict[Future[Any], None] = {}

    def revoke(self) -> None:
        """Make every further call raise ActorStopped, and those in progress as well."""
        self._revoked = True
        for call in tuple(self._calls):
            call.cancel()

    def give_up(self) -> None:
        """Revoke it, and the socket underneath: the handler that has them was given up."""
        self.revoke()
        self._socket.revoke()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            # Threads that keep running after the end must not keep the loop busy.
            self._socket.check_open()
            if threading.get_ident() == self._loop_thread:
                raise ConfigurationError(
                    "a SyncSocket was used on the event loop, which it would block;"
                    " use Socket in async functions"
                )
            if self._revoked or self._loop.is_closed():
                raise _has_ended()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except BaseException as error:
            coroutine.close()
            if isinstance(error, RuntimeError) and self._loop.is_closed():
                raise _has_ended() from None
            raise
        self._calls[future] = None
        try:
            if self._revoked:
                # It was revoked in the meantime, in the loop's thread.
                future.cancel()
            if waits_for_loop() is not None:
                return future.result()
            while not future.done():
                try:
                    future.exception(_LOOK_AGAIN)
                except TimeoutError:
                    if not future.done() and self._loop.is_closed():
                        # Nobody will ever run it.
                        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                            coroutine.close()
                        raise _has_ended() from None
            return future.result()
        except CancelledError:
            raise _has_ended() from None
        finally:
            del self._calls[future]
            del future  # what it raised has this frame in its traceback

    @overload
    def publish(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[PublishOptions],
    ) -> None: ...

    @overload
    def publish(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[PublishOptions],
    ) -> None: ...

    def publish(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[PublishOptions],
    ) -> None:
        """Publish and wait for the broker's confirmation; see `Socket.publish`."""
        self._wait(self._socket.publish(topic, payload, timeout=timeout, **options))

    @overload
    def post(self, topic: Topic[P, Any], payload: P, **options: Unpack[PublishOptions]) -> None: ...

    @overload
    def post(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        **options: Unpack[PublishOptions],
    ) -> None: ...

    def post(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object = None,
        **options: Unpack[PublishOptions],
    ) -> None:
        """Publish without waiting for the confirmation; see `Socket.post`."""

        async def post() -> None:
            self._socket.post(topic, payload, **options)

        self._wait(post())

    def drain(self) -> None:
        """Wait until posts find room; see `Socket.drain`."""
        self._wait(self._socket.drain())

    def subscribe(self, pattern: str | Topic[Any, Any]) -> None:
        """Also receive what matches; see `Socket.subscribe`."""
        self._wait(self._socket.subscribe(pattern))

    def unsubscribe(self, pattern: str | Topic[Any, Any]) -> None:
        """Undo `subscribe`; see `Socket.unsubscribe`."""
        self._wait(self._socket.unsubscribe(pattern))

    @overload
    def request(self, topic: Topic[P, R], payload: P, **options: Unpack[RequestOptions]) -> R: ...

    @overload
    def request(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        **options: Unpack[RequestOptions],
    ) -> bytes: ...

    @overload
    def request(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        reply: type[T],
        **options: Unpack[RequestOptions],
    ) -> T: ...

    @overload
    def request(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        *,
        reply: type[T],
        **options: Unpack[RequestOptions],
    ) -> T: ...

    def request(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object = None,
        *,
        reply: Any = NOT_GIVEN,
        timeout: float = DEFAULT_TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str | None] | None = None,
        wire: WireName | None = None,
        **unknown: Never,
    ) -> Any:
        """Send a request and wait for its first reply; see `Socket.request`."""
        return self._wait(
            self._socket.request(
                topic,
                payload,
                reply=reply,
                timeout=timeout,
                key=key,
                headers=headers,
                wire=wire,
                **unknown,
            )
        )

    @overload
    def request_many(
        self, topic: Topic[P, R], payload: P, **options: Unpack[ManyOptions]
    ) -> list[R | RemoteError]: ...

    @overload
    def request_many(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        **options: Unpack[ManyOptions],
    ) -> list[bytes | RemoteError]: ...

    @overload
    def request_many(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        reply: type[T],
        **options: Unpack[ManyOptions],
    ) -> list[T | RemoteError]: ...

    @overload
    def request_many(
        self,
        topic: str | OutgoingMessage,
        payload: object = None,
        *,
        reply: type[T],
        **options: Unpack[ManyOptions],
    ) -> list[T | RemoteError]: ...

    def request_many(
        self,
        topic: str | Topic[Any, Any] | OutgoingMessage,
        payload: object = None,
        *,
        reply: Any = NOT_GIVEN,
        count: int | None = None,
        limit: int = MOST_REPLIES,
        timeout: float = DEFAULT_TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str | None] | None = None,
        wire: WireName | None = None,
        **unknown: Never,
    ) -> list[Any]:
        """Send a request and collect several replies; see `Socket.request_many`."""
        return self._wait(
            self._socket.request_many(
                topic,
                payload,
                reply=reply,
                count=count,
                limit=limit,
                timeout=timeout,
                key=key,
                headers=headers,
                wire=wire,
                **unknown,
            )
        )


def _has_ended() -> ActorStopped:
    return ActorStopped(
        "the handler or application that this socket belongs to has ended; use it no longer"
    )
