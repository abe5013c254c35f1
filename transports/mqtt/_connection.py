"""A connection that comes back."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from ...errors import ConfigurationError, ConnectFailed, ConnectionLost, SpaDatError
from .._backoff import Backoff
from .._contract import Surroundings
from .._failures import ConnectProblem
from ._adapter import MqttClient
from ._config import MqttConfig
from ._reasons import SESSION_TAKEN_OVER, connect_problem
from ._session import ClientHandler, Loss

__all__ = ["Connection", "ConnectionOwner"]

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 2.0
_MOST_KICKS = 6
# Two clients that take over from each other hold for as long as the other one backs off.
_SHORT_LIFE = 10.0


class ConnectionOwner(ClientHandler, Protocol):
    """Who a connection works for."""

    def make_client(self) -> MqttClient:
        """A client for the next attempt."""

    async def prepare(self, client: MqttClient, *, first: bool) -> None:
        """Bring in force what the connection needs before it is any use.

        An error of this package ends the attempt; with ``first`` it is what `Connection.start`
        raises, unless trying again may help.
        """

    def on_ready(self, client: MqttClient) -> None:
        """The connection can be used."""


class Connection:
    """Keeps one client connected: makes a new one whenever the last one is lost, for ever.

    Args:
        owner: makes the clients and hears of them.
        config: timeouts and backoff.
        identifier: the client identifier, for messages.
        surroundings: counters, randomness, and who to tell when it is no use.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        config: MqttConfig,
        identifier: str,
        surroundings: Surroundings,
    ) -> None:
        self._owner = owner
        self._config = config
        self._identifier = identifier
        self._surroundings = surroundings
        self._stats = surroundings.stats
        self._backoff = Backoff(
            surroundings.environment, minimum=config.backoff_min, maximum=config.backoff_max
        )
        self._client: MqttClient | None = None
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._kicks = 0

    async def start(self) -> None:
        """Connect for the first time.

        Raises:
            ConnectFailed: not within ``start_timeout``; or at once when trying again is no use.
            NotAuthorised: the broker refused the login or a subscription.
            ConfigurationError: the TLS files can not be used.
        """
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        self._task = loop.create_task(self._run(), name=f"mqtt {self._identifier}")
        self._task.add_done_callback(self._on_task_done)
        try:
            await self._started
        except BaseException:
            await self._end_task()
            raise

    async def close(self) -> None:
        """Disconnect in good order, within some seconds; never raises."""
        client = self._client
        await self._end_task()
        if client is not None:
            await client.disconnect(_CLOSE_TIMEOUT)

    async def _end_task(self) -> None:
        task, self._task = self._task, None
        if self._started is not None and not self._started.done():
            self._started.set_exception(ConnectFailed("closed before there was a connection"))
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            if self._started is not None and not self._started.done():
                self._started.set_exception(error)
            self._surroundings.fatal(error)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._started is not None
        give_up = loop.time() + self._config.start_timeout
        while True:
            try:
                client = await self._attempt(first=not self._started.done())
            except ConfigurationError as error:
                problem = ConnectProblem(error, final=True)
            # Whatever it is, it must not end the attempts to come back.
            except Exception as error:  # noqa: BLE001
                problem = connect_problem(error, self._config.address, self._config.username)
                problem.error.__cause__ = None if problem.error is error else error
            else:
                lasted = await self._use(client)
                if self._kicks >= _MOST_KICKS:
                    self._surroundings.fatal(self._kicked_off())
                    return
                await asyncio.sleep(self._backoff.next_delay(lasted))
                continue
            self._stats["mqtt.connect_failed"] += 1
            if self._kicks >= _MOST_KICKS:
                problem = ConnectProblem(self._kicked_off(), final=True)
                if self._started.done():
                    self._surroundings.fatal(problem.error)
                    return
            delay = self._backoff.next_delay()
            if not self._started.done() and (problem.final or loop.time() + delay > give_up):
                self._started.set_exception(self._no_start(problem))
                return
            level = logging.WARNING if self._started.done() or problem.final else logging.INFO
            _log.log(level, "%s; next attempt in %.1f s", problem.error, delay)
            await asyncio.sleep(delay)

    def _no_start(self, problem: ConnectProblem) -> SpaDatError:
        if problem.final:
            return problem.error
        error = ConnectFailed(
            f"{problem.error}; tried for {self._config.start_timeout:g} s: check the address and"
            " that the broker runs, or raise the option start_timeout"
        )
        error.__cause__ = problem.error
        return error

    async def _attempt(self, *, first: bool) -> MqttClient:
        client = self._owner.make_client()
        try:
            await client.connect()
        except BaseException:
            client.abort()
            self._kicks = 0
            raise
        try:
            await self._owner.prepare(client, first=first)
            if client.lost.done():
                raise ConnectionLost(
                    f"the connection of {self._identifier!r} to {self._config.address} ended at"
                    f" once: {client.lost.result().text}"
                )
        except BaseException:
            if client.lost.done():
                self._count_kick(client.lost.result(), 0.0)
            client.abort()
            raise
        return client

    async def _use(self, client: MqttClient) -> float:
        """Seconds for which the connection held."""
        loop = asyncio.get_running_loop()
        assert self._started is not None
        began = loop.time()
        self._client = client
        self._stats["mqtt.connected"] += 1
        self._owner.on_ready(client)
        if not self._started.done():
            self._started.set_result(None)
        loss = await asyncio.shield(client.lost)
        lasted = loop.time() - began
        self._client = None
        self._stats["mqtt.lost"] += 1
        self._count_kick(loss, lasted)
        _log.warning(
            "connection of %r to %s lost after %.1f s: %s",
            self._identifier,
            self._config.address,
            lasted,
            loss.text,
        )
        return lasted

    def _count_kick(self, loss: Loss, lasted: float) -> None:
        # A broker that goes away also closes its connections, but then it is away for a while:
        # the failed attempts that follow set the count back.
        kicked = loss.code == SESSION_TAKEN_OVER or (loss.closed_by_broker and lasted < _SHORT_LIFE)
        self._kicks = self._kicks + 1 if kicked else 0

    def _kicked_off(self) -> SpaDatError:
        return ConfigurationError(
            f"the broker at {self._config.address} closed the connection of client identifier"
            f" {self._identifier!r} {_MOST_KICKS} times, each time right after it was made: most"
            " likely another program uses the same identifier; give every copy of the"
            " application an instance of its own (instance=..., or SPA_DAT_INSTANCE)"
        )
