"""The connection to an MQTT broker that reconnects, with its backoff, until it is closed."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Protocol

from ..._logs import get_logger
from ...errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    NotAuthorised,
    SpaDatError,
)
from .._connect_failures import ConnectProblem, OtherEnd
from .._contract import Surroundings
from .._credentials import PasswordUnavailable
from .._tls_probe import answers_tls
from ._config import MqttConfig
from ._connection_events import ClientHandler, Ending, Loss
from ._connection_group import CLOSE_TIMEOUT, ConnectionGroup
from ._replaced_identifiers import (
    replaced_identifiers,
    replaces_identifiers,
)
from ._session_probe import SessionProbe
from ._takeovers import SETTLED, Takeovers
from .protocol._client import MqttClient
from .protocol._open_socket import (
    Spoken,
    version_spoken,
    without_tls,
    without_websocket,
)
from .protocol._reason_codes import (
    ANSWERS,
    SESSION_TAKEN_OVER,
    Answer,
    Decision,
    NotAdmitted,
    NotAnswered,
    Packet,
    WrongVersion,
    answer_to,
    connect_problem,
    describe,
)

__all__ = ["Connection", "ConnectionOwner"]

_log = get_logger(__name__)

_CUT_OFF = (ConnectionResetError, ssl.SSLEOFError)
_LOOK_TIMEOUT = 5.0
_TRACE_SECONDS = 60
_NO_SUBSCRIPTION = 0x11


class ConnectionOwner(ClientHandler, Protocol):
    """The user of a connection."""

    def make_client(self) -> MqttClient:
        """Return a client for the next attempt to connect."""

    async def prepare(self, client: MqttClient, *, first: bool) -> None:
        """Put into force whatever the connection needs before it can be used.

        An error of this package ends the attempt; with ``first`` `Connection.start` raises it,
        unless retrying may help.
        """

    def on_ready(self, client: MqttClient) -> None:
        """Note that the connection can be used."""

    def on_unreachable(self) -> None:
        """Note that an attempt to connect has failed."""

    def trace(self) -> str | None:
        """Return a filter that distinguishes the session from those of clients with its identifier.

        None if there is none, or this is not the time to look for it.
        """


class Connection:
    """Keeps one client connected: makes a new one whenever the last one is lost, forever.

    Args:
        owner: creates the clients, and is told about them.
        config: timeouts and backoff.
        identifier: the client identifier, for log and error messages.
        surroundings: counters, randomness, and the callback for fatal errors.
        group: all connections of the application to the broker.

    Attributes:
        obstacle: why no connection can be had, as text, if the last attempt to reconnect found more
            than an outage: a login, a certificate, a file.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        config: MqttConfig,
        identifier: str,
        surroundings: Surroundings,
        group: ConnectionGroup,
    ) -> None:
        self._group = group
        self._owner = owner
        self._config = config
        self._identifier = identifier
        self._surroundings = surroundings
        self._stats = surroundings.stats
        self._backoff = config.backoff(
            surroundings.environment, stable=min(SETTLED, config.backoff_max)
        )
        self._client: MqttClient | None = None
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._takeovers = Takeovers()
        self._is_older = False
        self.obstacle: str | None = None

    @property
    def trace_seconds(self) -> int:
        """For how long the next connection should leave its session behind; usually 0."""
        wanted = self._takeovers.leaves_trace and self._owner.trace() is not None
        return _TRACE_SECONDS if wanted else 0

    async def start(self) -> None:
        """Connect for the first time.

        Raises:
            ConnectFailed: not within ``start_timeout``; or at once if retrying is pointless.
            NotAuthorised: the broker refused the login or a subscription.
            ConfigurationError: the TLS files cannot be used.
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
        """Disconnect cleanly within a few seconds; never raises."""
        client = self._client
        await self._end_task()
        await self._group.disconnect(self._identifier, client)

    async def _end_task(self) -> None:
        task, self._task = self._task, None
        if self._started is not None and not self._started.done():
            self._started.set_exception(ConnectFailed("closed before there was a connection"))
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        error = self._cut_short(task) if task.cancelled() else task.exception()
        if error is not None:
            if self._started is not None and not self._started.done():
                self._started.set_exception(error)
            self._surroundings.fatal(error)

    def _cut_short(self, task: asyncio.Task[None]) -> BaseException | None:
        if self._task is not task:
            return None
        # Nothing would reconnect, and nobody would notice before the connection is lost.
        return ConnectionLost(
            f"the task that keeps the connection of {self._identifier!r} to"
            f" {self._config.address} was cancelled by other code, such as a handler that cancels"
            " all tasks, or asyncio.run(), which does so when the coroutine that it was given has"
            " ended"
        )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._started is not None
        give_up = loop.time() + self._config.start_timeout
        while True:
            if await self._is_replaced():
                self._end_for_good(replaced_identifiers(self._config, self._identifier))
                return
            if self._takeovers.looks:
                await self._look()
            if self._takeovers.gives_way:
                self._end_for_good(self._kicked_off())
                return
            try:
                client = await self._attempt(first=not self._started.done())
            except ConfigurationError as error:
                problem = ConnectProblem(error, final=True)
            # Whatever it is, it must not end the attempts to reconnect.
            except Exception as error:  # noqa: BLE001
                problem = self._problem(await self._diagnosed(error))
            else:
                lasted, loss = await self._use(client)
                longest = _answer(loss).decision is Decision.LATER
                if self._takeovers.hurries or loss.ending is Ending.REFUSED:
                    self._backoff.reset()
                if not self._takeovers.gives_way:
                    await asyncio.sleep(self._backoff.next_delay(lasted, longest=longest))
                continue
            self._stats["mqtt.connect_failed"] += 1
            started = self._started.done()
            delay = self._backoff.next_delay(longest=problem.later and started)
            if not started:
                left = give_up - loop.time()
                if problem.final or left <= 0.0:
                    self._started.set_exception(self._no_start(problem))
                    return
                delay = min(delay, left)
            unavailable = isinstance(problem.error.__cause__, PasswordUnavailable)
            self.obstacle = str(problem.error) if problem.final or unavailable else None
            level = logging.WARNING if started or problem.final else logging.INFO
            _log.log(level, "%s; next attempt in %.1f s", problem.error, delay)
            await asyncio.sleep(delay)

    async def _diagnosed(self, error: Exception) -> Exception:
        """Return the error, or a better one: what listens there may speak something else."""
        assert self._started is not None
        if not isinstance(error, (NotAnswered, *_CUT_OFF)):
            return error
        if self._group.connected:
            return NotAdmitted(
                f"{describe(error)}, while {self._group.connected} of this application are open: it"
                " may admit no more connections (in Mosquitto max_connections)"
            )
        if self._started.done():
            return error
        config = self._config
        if config.websocket_path is not None:
            if await version_spoken(without_websocket(config)) is not Spoken.NOTHING:
                return OtherEnd("the broker answers there without websockets: use another port")
        elif config.tls:
            if await version_spoken(without_tls(config)) is not Spoken.NOTHING:
                return OtherEnd("the broker answers there without TLS: use a port with TLS")
        else:
            spoken = await version_spoken(config)
            # A broker that is starting may answer in this way once.
            was_older, self._is_older = self._is_older, spoken is Spoken.OLDER
            if was_older and self._is_older:
                if await version_spoken(config, asked_in=Spoken.NEWER) is Spoken.NEWER:
                    return NotAdmitted(
                        "the broker closes it before it is accepted, but answers an MQTT 5 CONNECT"
                        " that is shorter: user name, password and last will may exceed its limit"
                        " for packets (in Mosquitto max_packet_size)"
                    )
                return WrongVersion("it closes MQTT 5 connections, but answers MQTT 3.1.1 ones")
            if spoken is not Spoken.NOTHING or config.unix_socket is not None:
                return error
        if not config.tls and await answers_tls(config.host, config.effective_port):
            scheme = "mqtts" if config.websocket_path is None else "wss"
            return OtherEnd(f"it speaks TLS there: give tls=True (in a URL write {scheme}://)")
        return error

    def _problem(self, error: Exception) -> ConnectProblem:
        address, login = self._config.address, self._config.login
        problem = connect_problem(
            error, address, self._identifier, login.username, login.password_source
        )
        if isinstance(problem.error, NotAuthorised):
            login.forget_password()
        problem.error.__cause__ = None if problem.error is error else error
        return problem

    def _end_for_good(self, error: SpaDatError) -> None:
        assert self._started is not None
        if self._started.done():
            self._group.fail(error)
        else:
            self._started.set_exception(error)

    def _no_start(self, problem: ConnectProblem) -> SpaDatError:
        if problem.final:
            return problem.error
        address = self._config.address
        said = str(problem.error)
        if address not in said:
            said = f"no connection to the broker at {address}: {said}"
        tried = f"tried for {self._config.start_timeout:g} s"
        if not isinstance(problem.error.__cause__, NotAdmitted):
            tried += (
                ": check the address and that the broker is running, or raise the option"
                " start_timeout"
            )
        error = ConnectFailed(f"{said}; {tried}")
        error.__cause__ = problem.error
        return error

    async def _attempt(self, *, first: bool) -> MqttClient:
        client = self._owner.make_client()
        try:
            await client.connect()
            if self._group.shares(self._identifier, client.limits.assigned_identifier):
                raise replaced_identifiers(self._config, self._identifier)
        except BaseException:
            client.abort()
            self._takeovers.unreachable()
            self._owner.on_unreachable()
            raise
        try:
            await self._owner.prepare(client, first=first)
            if client.lost.done():
                raise ConnectionLost(
                    f"the connection of {self._identifier!r} to {self._config.address} ended at"
                    f" once: {client.lost.result().text}"
                )
        except BaseException as error:
            lost = client.lost.done()
            client.abort()
            loss = client.lost.result()
            self._owner.on_unreachable()
            if lost:
                self._group.lost(self._identifier)
                self._takeovers.ended(loss, 0.0, left_trace=False)
            answer = _answer(loss)
            if answer.error is ConnectFailed and isinstance(error, ConnectionLost):
                raise ConnectFailed(f"{error}; {answer.advice}".removesuffix("; ")) from error
            raise
        return client

    async def _use(self, client: MqttClient) -> tuple[float, Loss]:
        """Use the connection until it ends; return how many seconds it held, and how it ended."""
        loop = asyncio.get_running_loop()
        assert self._started is not None
        began = loop.time()
        self._client = client
        self._group.opened(self._identifier)
        self.obstacle = None
        self._stats["mqtt.connected"] += 1
        self._owner.on_ready(client)
        if not self._started.done():
            self._started.set_result(None)
        loss = await asyncio.shield(client.lost)
        lasted = loop.time() - began
        self._client = None
        self._stats["mqtt.lost"] += 1
        self._group.lost(self._identifier)
        self._takeovers.ended(loss, lasted, left_trace=client.session_expiry >= _TRACE_SECONDS)
        _log.warning(
            "connection of %r to %s lost after %.1f s: %s",
            self._identifier,
            self._config.address,
            lasted,
            loss.text,
        )
        if self._takeovers.puzzles:
            _log.warning(
                "the broker at %s keeps closing the connection of %r right after it is opened, and"
                " does not say why: check its log; if another program uses the same identifier,"
                " give one of them another instance",
                self._config.address,
                self._identifier,
            )
        return lasted, loss

    async def _is_replaced(self) -> bool:
        """Find out if it is a connection of ours that displaces this one, if that may be."""
        return (
            self._takeovers.doubts
            and self._group.may_displace_each_other(at_last=self._takeovers.gives_way)
            and await replaces_identifiers(self._config, self._identifier, self._surroundings)
        )

    async def _look(self) -> None:
        """Find out whose session the broker has: ours, or that of a client that came since."""
        trace = self._owner.trace()
        if trace is None:
            return
        probe = SessionProbe()
        client = MqttClient(
            self._config,
            self._identifier,
            probe,
            self._stats,
            clean_start=False,
            session_expiry=_TRACE_SECONDS,
        )
        foreign = False
        try:
            await client.connect()
            if probe.session_present:
                codes = await client.unsubscribe([trace], timeout=_LOOK_TIMEOUT)
                foreign = codes == [_NO_SUBSCRIPTION]
        except Exception as error:  # noqa: BLE001 (the next attempt meets it again)
            _log.debug("the session of %r could not be examined: %s", self._identifier, error)
        finally:
            await client.disconnect(CLOSE_TIMEOUT)
        self._takeovers.looked(foreign=foreign)

    def _kicked_off(self) -> SpaDatError:
        when = ", the first time right after this one started"
        return ConfigurationError(
            f"another program uses the same identifier {self._identifier!r} on the broker at"
            f" {self._config.address}: it has taken over {self._takeovers.count} times"
            f"{when if self._takeovers.is_newcomer else ''};"
            f" {ANSWERS[Packet.DISCONNECT][SESSION_TAKEN_OVER].advice}"
        )


def _answer(loss: Loss) -> Answer:
    return answer_to(Packet.DISCONNECT, 0 if loss.reason is None else loss.reason)
