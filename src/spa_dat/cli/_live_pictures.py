"""Live pictures of running applications, from their admin endpoints, and rates made of them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from .._texts import describe
from ..errors import ConfigurationError, ConnectFailed, NotAuthorised
from ._admin_client import AdminClient

__all__ = ["LiveActor", "LiveApplication", "LiveConnection", "LiveFailure", "LivePicture"]

_TIMEOUT = 5.0
# Bytes. A picture is decoded between two key presses: this takes a fraction of a second.
_LARGEST = 16_000_000
# Rates are over this many pictures, so that they can be read.
_PICTURES = 6

# As large as what is calculated with them can be, and shown.
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
_Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]


class LiveFailure(msgspec.Struct, kw_only=True, frozen=True):
    """One of the latest failures: when, where, and of what class."""

    at: _Seconds
    where: str
    error: str
    text: str
    topic: str | None = None


class _Latency(msgspec.Struct, kw_only=True, frozen=True):
    p50: _Seconds
    p99: _Seconds


class _Stalled(msgspec.Struct, kw_only=True, frozen=True):
    where: str
    seconds: _Seconds


class LiveActor(msgspec.Struct, kw_only=True, frozen=True):
    """One actor or producer, as it was a moment ago.

    The fields are those of the document; see docs/production.md.
    """

    name: str
    kind: str
    bus: str
    topics: list[str]
    state: str
    every: _Seconds | None = None
    problem: str | None = None
    handled: _Count | None = None
    failed: _Count = 0
    failures: list[LiveFailure] = []
    latency: _Latency | None = None
    mailbox: _Count = 0
    mailbox_limit: _Count | None = None
    window: _Count | None = None
    in_work: _Count = 0
    oldest_unsettled: _Seconds | None = None
    stalled: list[_Stalled] = []
    dead_letters: _Count = 0
    retrying: _Count | None = None
    lag: _Count | None = None


class LiveConnection(msgspec.Struct, kw_only=True, frozen=True):
    """The connection to one bus."""

    bus: str
    connected: bool


class _Publishes(msgspec.Struct, kw_only=True, frozen=True):
    actor: str | None
    topic: str
    count: _Count


class LivePicture(msgspec.Struct, kw_only=True, frozen=True):
    """What an application was doing a moment ago.

    Later versions may have more fields.
    """

    version: Literal[1]
    application: str | None
    instance: str
    pid: _Count
    state: str
    clock: _Seconds
    actors: list[LiveActor]
    connections: list[LiveConnection] = []
    problems: dict[str, str] = {}
    loop_lag: _Seconds | None = None
    publishes: list[_Publishes] = []


class LiveApplication:
    """Looks at one running application.

    Args:
        client: of its admin endpoint.

    Attributes:
        picture: the latest one; None before the first.
        trouble: why there is no newer one.
    """

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._earlier: deque[tuple[float, dict[str, int]]] = deque(maxlen=_PICTURES)
        self.picture: LivePicture | None = None
        self.trouble: str | None = None

    @property
    def name(self) -> str:
        """What to call it: application and instance, or its address until it has answered."""
        picture = self.picture
        if picture is None or picture.application is None:
            return self._client.where
        return f"{picture.application}/{picture.instance}"

    async def look(self) -> None:
        """Get a new picture, or say in `trouble` why there is none."""
        try:
            self._take(self._read(await self._asked("GET", "/live")))
        except (ConfigurationError, ConnectFailed, NotAuthorised) as error:
            self.trouble = describe(error)

    async def document(self) -> Any:
        """Return the picture as it came.

        Raises:
            ConfigurationError: something else answers there, or the picture is too large.
            ConnectFailed: nobody answers.
            NotAuthorised: the token is another one.
        """
        data = await self._asked("GET", "/live")
        self._read(data)
        return json.loads(data)

    async def order(self, action: Literal["pause", "resume", "restart"], actor: str) -> str | None:
        """Have something done to an actor; return why it was not done, or None."""
        body = msgspec.json.encode({"action": action, "actor": actor})
        try:
            await self._asked("POST", "/live/control", body)
        except (ConfigurationError, ConnectFailed, NotAuthorised) as error:
            return describe(error)
        return None

    def rate(self, actor: str) -> float | None:
        """Return how many messages a second it handles; None if that is not known yet."""
        if len(self._earlier) < 2:
            return None
        (since, before), (until, after) = self._earlier[0], self._earlier[-1]
        if actor not in before or actor not in after or until <= since:
            return None
        return max(0, after[actor] - before[actor]) / (until - since)

    async def _asked(self, method: str, line: str, body: bytes | None = None) -> bytes:
        status, data = await asyncio.to_thread(
            self._client.ask, method, line, body, timeout=_TIMEOUT, most=_LARGEST
        )
        if status != 200:
            raise self._client.refusal(status, data)
        return data

    def _read(self, data: bytes) -> LivePicture:
        try:
            return msgspec.json.decode(data, type=LivePicture)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._client.misunderstanding(error) from error

    def _take(self, picture: LivePicture) -> None:
        earlier = self._earlier
        before = self.picture
        if before is not None and (before.pid != picture.pid or before.clock > picture.clock):
            # It was started again, and counts from 0; in a container with the same pid.
            earlier.clear()
        if not earlier or picture.clock > earlier[-1][0]:
            handled = {actor.name: actor.handled or 0 for actor in picture.actors}
            earlier.append((picture.clock, handled))
        self.picture, self.trouble = picture, None
