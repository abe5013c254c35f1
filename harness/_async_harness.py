"""The harness of an ``async def`` test."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from ..runtime.application._application import DistributedApplication
from ..runtime.messaging._requests import RequestOptions
from ..runtime.messaging._socket import NOT_GIVEN
from ..runtime.messaging._typed_topic import P, R, Topic
from ..transports._wire_formats import WireName
from ._harness_base import HarnessBase
from ._harness_core import HarnessCore

if TYPE_CHECKING:
    from ._harness import Harness

__all__ = ["AsyncHarness"]

T = TypeVar("T")

_TIMEOUT = 30.0


class AsyncHarness(HarnessBase):
    """A harness in an ``async def`` test: methods that take time are awaited.

    The applications run on an event loop of the harness, in a separate thread, and only while one
    of these methods is awaited; the event loop of the test stands still meanwhile.

    Args:
        harness: the harness, entered.
    """

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    @property
    def _core(self) -> HarnessCore:
        return self._harness._core

    async def settle(self) -> None:
        """See `Harness.settle`."""
        self._harness.settle()

    async def advance(self, seconds: float) -> None:
        """See `Harness.advance`."""
        self._harness.advance(seconds)

    @overload
    async def request(
        self,
        topic: Topic[P, R],
        payload: P,
        *,
        bus: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> R: ...

    @overload
    async def request(
        self,
        topic: str,
        payload: object = None,
        *,
        bus: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> bytes: ...

    @overload
    async def request(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        reply: type[T],
        bus: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> T: ...

    @overload
    async def request(
        self,
        topic: str,
        payload: object = None,
        *,
        reply: type[T],
        bus: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> T: ...

    async def request(
        self,
        topic: str | Topic[Any, Any],
        payload: object = None,
        *,
        reply: Any = NOT_GIVEN,
        timeout: float = _TIMEOUT,
        key: str | None = None,
        headers: Mapping[str, str | None] | None = None,
        wire: WireName | None = None,
        bus: str | None = None,
    ) -> Any:
        """See `Harness.request`."""
        # The overloads have more unions than mypy tries.
        request: Any = self._harness.request
        return request(
            topic,
            payload,
            reply=reply,
            timeout=timeout,
            key=key,
            headers=headers,
            wire=wire,
            bus=bus,
        )

    async def replay(
        self,
        file: str | PathLike[str],
        *,
        actor: str | None = None,
        keep_times: bool = False,
        keep_own: bool = False,
    ) -> int:
        """See `Harness.replay`."""
        return self._harness.replay(file, actor=actor, keep_times=keep_times, keep_own=keep_own)

    async def restart(self, application: DistributedApplication | None = None) -> None:
        """See `Harness.restart`."""
        self._harness.restart(application)

    async def stop(self, application: DistributedApplication | None = None) -> None:
        """See `Harness.stop`."""
        self._harness.stop(application)
