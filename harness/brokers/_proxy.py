"""A TCP proxy that injects faults: cuts, silence, delays, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Literal

__all__ = ["Proxy"]

Hook = Callable[[bytes], bytes]
_CHUNK = 65_536
_TURNS_TO_ACCEPT = 5


class Proxy:
    """A proxy between clients and a server on this machine.

    Use it as ``async with Proxy(host, port) as proxy`` and connect to ``proxy.host`` and
    ``proxy.port``.

    Args:
        host: the host of the server.
        port: the port of the server.

    Attributes:
        delay: seconds by which every chunk is delayed, in each direction.
        on_client_bytes: called with each chunk from a client; what it returns is passed on.
            If it calls `cut`, nothing of the chunk is passed on.
        on_server_bytes: the same for chunks from the server.
        accepted: the number of connections accepted so far.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int) -> None:
        self.delay: float = 0.0
        self.on_client_bytes: Hook | None = None
        self.on_server_bytes: Hook | None = None
        self.accepted: int = 0
        self.port: int = 0
        self._target = (host, port)
        self._refusing = False
        self._server: asyncio.Server | None = None
        self._proxied: list[_ProxiedConnection] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._open = asyncio.Event()
        self._open.set()

    @property
    def connections(self) -> int:
        """The number of connections that are open now."""
        return len(self._proxied)

    async def start(self) -> None:
        """Listen, the first time on a free port, later on the same port again."""
        self._refusing = False
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut everything."""
        await self.refuse()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def cut(self) -> None:
        """Reset all connections, at both ends; data on its way is lost."""
        for link in list(self._proxied):
            link.reset()

    def cut_after(self, size: int, source: Literal["client", "server"] = "client") -> None:
        """Reset all connections once ``size`` more bytes from that side have been passed on."""
        left = size

        def cut() -> None:
            setattr(self, f"on_{source}_bytes", None)
            self.cut()

        def count(chunk: bytes) -> bytes:
            nonlocal left
            passed = chunk[:left]
            if left and len(passed) == left:
                asyncio.get_running_loop().call_later(0.01, cut)
            # What still comes before the cut is dropped: it must not follow a gap.
            left -= len(passed)
            return passed

        setattr(self, f"on_{source}_bytes", count)

    def blackhole(self) -> None:
        """Pass nothing on, so that connections are half-open; new ones are still accepted."""
        self._open.clear()

    def heal(self) -> None:
        """End `blackhole`; what was held back is passed on."""
        self._open.set()

    async def refuse(self) -> None:
        """Refuse new connections; open ones stay."""
        self._refusing = True
        server = self._server
        if server is None:
            return
        loop = asyncio.get_running_loop()
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        # A connection that was accepted takes some turns of the loop to get here. If the server is
        # closed meanwhile, it is never closed.
        try:
            for _ in range(_TURNS_TO_ACCEPT):
                await asyncio.sleep(0)
        finally:
            server.close()
            self._server = None

    async def allow(self) -> None:
        """End `refuse`."""
        if self._server is None:
            await self.start()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # At once and not in a task, which could be cancelled before it knows of the connection.
        link = _ProxiedConnection(writer)
        if self._refusing:
            # It was established before, and is accepted only now.
            link.reset()
            return
        self.accepted += 1
        self._proxied.append(link)
        task = asyncio.get_running_loop().create_task(self._pass_on(reader, link))
        self._tasks.append(task)
        task.add_done_callback(functools.partial(self._ended, link))

    def _ended(self, link: _ProxiedConnection, task: asyncio.Task[None]) -> None:
        # The client sees the reset, whatever has ended the connection.
        link.reset()
        self._proxied.remove(link)
        self._tasks.remove(task)

    async def _pass_on(self, reader: asyncio.StreamReader, link: _ProxiedConnection) -> None:
        with contextlib.suppress(OSError, ExceptionGroup, asyncio.CancelledError):
            await self._open.wait()
            server_reader, server = await asyncio.open_connection(*self._target)
            link.server = server
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, server, link, "on_client_bytes"))
                group.create_task(self._pump(server_reader, link.client, link, "on_server_bytes"))

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link: _ProxiedConnection,
        hook_name: str,
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._open.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            hook: Hook | None = getattr(self, hook_name)
            if hook is not None:
                chunk = hook(chunk)
            if link.gone:
                return
            if chunk:
                writer.write(chunk)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


class _ProxiedConnection:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.gone = False

    def reset(self) -> None:
        """Close both sides with RST."""
        self.gone = True
        for writer in filter(None, (self.client, self.server)):
            raw = writer.get_extra_info("socket")
            if raw is not None and not writer.transport.is_closing():
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
