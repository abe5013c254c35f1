"""The MQTT client: the only module that uses private parts of aiomqtt and paho.

The libraries write CONNECT, SUBSCRIBE, UNSUBSCRIBE and DISCONNECT, and read CONNACK and DISCONNECT.
Three things are done here instead, because the libraries would lose messages or time over them:
messages and their acknowledgements bypass them (paho acknowledges on receipt or forgets the order,
aiomqtt searches all pending calls for every publish); the socket is opened without a thread, so
that abandoning an attempt leaves nothing behind; and the keep-alive runs even while reading is
paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes

from ...._logs import get_logger
from ..._wire_formats import CLOUDEVENTS, WireFormat
from .._config import MqttConfig
from .._connection_events import ClientHandler, Ending, Loss, ServerLimits
from .._last_will import LastWill
from ._keepalive import KeepAlive
from ._open_socket import open_socket
from ._packets import (
    LARGEST_HEAD,
    LargePublish,
    MalformedPacket,
    PublishPacket,
    add_password,
    variable_integer,
)
from ._publish_and_puback import MessageFlow
from ._reason_codes import (
    BrokerReason,
    Decision,
    LoginRefused,
    NotAnswered,
    OtherProtocol,
    Packet,
    WrongVersion,
    answer_to,
    describe,
    reason_text,
)
from ._stream import FrameStream
from ._subscribe import SubscribeRequests, make_properties, read_properties

__all__ = ["MqttClient"]

# The libraries' own log lines; aiomqtt sets the level of its default logger on import.
_log = get_logger(f"{__name__}.library")

_CONNECT, _CONNACK, _PUBLISH, _SUBACK, _UNSUBACK, _DISCONNECT = 0x10, 0x20, 0x30, 0x90, 0xB0, 0xE0
_REFUSED = 0x80
# Mosquitto 2.0 refuses and closes in one step, where its queues have no limit.
_AT_ONCE = 1.0
_CLOSED_HERE = "closed here"
_OLD_REFUSAL_OF_THE_VERSION = 1


class MqttClient:
    """One attempt to connect, and the connection if it succeeds. Never reused.

    Args:
        config: where and how.
        identifier: the client identifier.
        handler: gets the events.
        stats: counters.
        clean_start: whether to forget an older session of this identifier.
        session_expiry: seconds for which the broker keeps the session without a connection.
        receive_maximum: the most unacknowledged messages the broker may send; 0 for no limit.
        patience: by how much to multiply the time that a silent broker gets for a large message;
            see `KeepAlive`.
        will: what the broker publishes when the connection is lost.
        wire: the format that received messages have.
        topic_aliases: the most topic aliases to use, if the broker accepts them.

    Attributes:
        limits: what the broker stated.
        session_expiry: seconds for which the broker was asked to keep the session.
        unanswered: whether the broker may have received a CONNECT that it did not answer.
        lost: completes with a `Loss` when the connection ends. Never cancelled, never an error.
    """

    def __init__(
        self,
        config: MqttConfig,
        identifier: str,
        handler: ClientHandler,
        stats: Counter[str],
        *,
        clean_start: bool,
        session_expiry: int = 0,
        receive_maximum: int = 0,
        patience: int = 1,
        will: LastWill | None = None,
        wire: WireFormat = CLOUDEVENTS,
        topic_aliases: int = 0,
    ) -> None:
        self.limits = ServerLimits()
        self.session_expiry = session_expiry
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[Loss] = self._loop.create_future()
        self._config = config
        self._handler = handler
        self._stream: FrameStream | None = None
        self._wants_pause = False
        self._accepted = self.unanswered = False
        self._keepalive: KeepAlive | None = None
        self._patience = patience
        self._will = will
        self._topic_aliases = topic_aliases
        self._unconfirmed = 0
        self._end_cause: Exception | None = None
        self._closing = ""
        properties = make_properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=session_expiry,
            ReceiveMaximum=receive_maximum,
        )
        self._client = aiomqtt.Client(
            config.host,
            config.effective_port,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=clean_start,
            keepalive=config.keepalive,
            timeout=config.connect_timeout,
            properties=properties,
            # The libraries only call its methods, and an error in one would end the connection.
            logger=cast(logging.Logger, _log),
        )
        generate = self._client._client._mid_generate
        self._flow = MessageFlow(
            handler,
            stats,
            config.largest_received,
            generate,
            self._on_other_packet,
            wire,
        )
        self._subscribe = SubscribeRequests(
            self._client._client,
            self.lost,
            lambda: 0 if self._stream is None else self._stream.received,
            self._on_busy,
        )
        self._hook()

    def _log_in_with(self, name: str | None, password: str | None) -> None:
        if name is not None:
            self._client._client.username_pw_set(name, password)
        elif password is not None:
            self._send_password_alone(password.encode())

    def _send_password_alone(self, password: bytes) -> None:
        """Have the library's CONNECT carry a password although it has no user name.

        MQTT 5 allows that, for self-contained tokens; the library silently omits the password.
        """
        library = self._client._client
        queue = library._packet_queue

        def queue_with_password(command: int, packet: Any, *rest: Any) -> Any:
            if command == _CONNECT:
                packet = add_password(bytes(packet), password)
            return queue(command, packet, *rest)

        library._packet_queue = queue_with_password  # type: ignore[assignment, method-assign]

    def _leave_will(self, will: LastWill) -> None:
        library = self._client._client
        properties = make_properties(PacketTypes.WILLMESSAGE, WillDelayInterval=will.delay)
        properties.ContentType = will.content_type
        properties.PayloadFormatIndicator = 1
        library.will_set(will.topic, will.payload, will.qos, will.retain, properties)

    def _hook(self) -> None:
        library = self._client._client
        if self._will is not None:
            self._leave_will(self._will)
        library.manual_ack_set(True)
        library.on_connect = self._on_connect
        library.on_socket_open = None
        library.on_socket_close = None
        library.on_socket_register_write = self._on_write_wanted
        library.on_socket_unregister_write = None
        library._create_socket = lambda: self._stream  # type: ignore[assignment, method-assign, return-value]
        # Perhaps nobody is waiting for these futures when the connection ends.
        self._client._connected.add_done_callback(_retrieve)
        self._client._disconnected.add_done_callback(_retrieve)

    # Connecting and disconnecting.

    async def connect(self) -> None:
        """Connect, within the configured time at most. Cancelling leaves nothing behind.

        Raises:
            OSError: the socket could not be opened, or there is no password to be had.
            aiomqtt.MqttError: the broker refused, or did not answer.
            ConfigurationError: the TLS files or the password cannot be used.
        """
        try:
            login = await self._config.current_login()
            self._log_in_with(login.username, await login.current_password())
            sock = await open_socket(self._config)
            self._stream = FrameStream(sock, self._on_first_packet, self._on_end, self._divert)
            self._flow.begin(self._stream)
            self.unanswered = True
            # This only creates the packet: the socket is already open.
            self._client._client_connect()
            async with asyncio.timeout(self._config.connect_timeout):
                await asyncio.shield(self._client._connected)
        except BaseException:
            self.abort()
            raise
        if not self.lost.done():
            wanted = self._config.keepalive
            self._keepalive = KeepAlive(
                self._stream,
                min(self.limits.keepalive or wanted, wanted),
                self._on_silence,
                self._flow.unconfirmed,
                oldest=self._flow.oldest,
                bearable=wanted,
                patience=self._patience,
            )

    async def disconnect(self, timeout: float, why: str = _CLOSED_HERE) -> bool:
        """Send what is written, then DISCONNECT, and close; within about ``timeout`` seconds.

        Returns:
            Whether the connection had ended by then; if not, the broker has not answered.
        """
        stream, self._closing = self._stream, why
        ended = True
        self._stop_keepalive()
        if stream is not None and not self.lost.done():
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._client.__aexit__(None, None, None)
            ended = await stream.finish(timeout)
        self.abort()
        return ended

    def abort(self) -> None:
        """Close at once, without a DISCONNECT. Harmless if it is closed already."""
        self._stop_keepalive()
        if self._stream is not None:
            self._stream.abort()
        self._fail_connect()
        self._lose(Loss(self._closing or _CLOSED_HERE, Ending.OURS))

    # Messages.

    def acknowledge(self, tokens: list[int]) -> None:
        """Acknowledge messages, in this order."""
        self._flow.acknowledge(tokens)

    def publish(self, packet: PublishPacket, note: Any) -> None:
        """Write a message; `ClientHandler.on_confirmed` gets the note with the outcome."""
        self._flow.publish(packet, note)

    def pause(self) -> None:
        """Stop reading until `resume`, so that no more arrives than can be held.

        While an answer to `subscribe` or `unsubscribe` is pending, reading continues: the answer
        comes after the messages.
        """
        self._wants_pause = True
        if self._stream is not None and not self._subscribe.busy:
            self._stream.pause()

    def resume(self) -> None:
        """Read again."""
        self._wants_pause = False
        self._resume_stream()

    # Subscriptions.

    async def subscribe(
        self,
        patterns: Sequence[str],
        *,
        qos: int,
        timeout: float,
        identifier: int = 0,
        retained: Literal["new", "always", "never"] = "new",
    ) -> list[int]:
        """Subscribe, and return a reason code for each filter; 0x80 and above are refusals.

        Args:
            patterns: the filters.
            qos: the highest quality of service, 0 or 1.
            timeout: seconds to wait for the answer while nothing else arrives.
            identifier: comes with every message of this subscription; 0 for none.
            retained: for which of the filters the broker sends retained messages: those that are
                new to the session, all, or none.

        Raises:
            ConnectionLost: the connection ended first, or there was no answer.
        """
        return await self._subscribe.subscribe(
            patterns, qos=qos, timeout=timeout, identifier=identifier, retained=retained
        )

    async def unsubscribe(self, patterns: Sequence[str], *, timeout: float) -> list[int]:
        """Unsubscribe, and return a reason code for each filter; 0x11 if there was no such one.

        Raises:
            ConnectionLost: the connection ended first, or there was no answer.
        """
        return await self._subscribe.unsubscribe(patterns, timeout=timeout)

    # Callbacks of the stream.

    def _on_first_packet(self, first: int, data: bytes, start: int, stop: int) -> None:
        if first & 0xF0 == _PUBLISH:
            raise MalformedPacket("a message arrived before the connection was accepted")
        if data[start - 2 : start + 2] == b"HTTP":
            raise OtherProtocol("it speaks HTTP there: use another port, or websockets (ws://)")
        self._on_other_packet(first, data, start, stop)
        if self._accepted and self._stream is not None:
            self._stream.on_packet = self._flow.on_packet

    def _divert(self, first: int, length: int) -> LargePublish | None:
        if self._accepted and first & 0xF0 == _PUBLISH:
            return self._flow.divert(first, length)
        if length > LARGEST_HEAD:
            raise MalformedPacket(f"a packet that begins with {first:#04x} has {length} bytes")
        return None

    def _on_other_packet(self, first: int, data: bytes, start: int, stop: int) -> None:
        kind = first & 0xF0
        if kind == _CONNACK:
            self._on_connack(data, start, stop)
        elif kind in (_SUBACK, _UNSUBACK):
            self._subscribe.answered(data, start, stop)
        elif kind == _DISCONNECT:
            self._on_goodbye(data, start, stop)
        else:
            self._give_to_library(first, data, start, stop)

    def _on_connack(self, data: bytes, start: int, stop: int) -> None:
        if stop - start == 2:
            raise WrongVersion("the broker answered in an older version than MQTT 5")
        if stop - start < 2:
            raise MalformedPacket("a CONNACK packet ends too early")
        self.unanswered = False
        if self._client._connected.done():
            return
        code = data[start + 1]
        if code == _OLD_REFUSAL_OF_THE_VERSION:
            raise WrongVersion("the broker does not speak MQTT 5")
        properties, _ = read_properties(data, start + 2, stop)
        if code >= _REFUSED:
            self._client._connected.set_exception(LoginRefused(BrokerReason.of(code, properties)))
            return
        self.limits = ServerLimits.of(properties)
        self._flow.use_aliases(
            min(self._topic_aliases, self.limits.topic_aliases), self.limits.maximum_packet_size
        )
        # The library gets it without properties: it fails on malformed ones.
        self._give_to_library(_CONNACK, data[start : start + 2] + b"\0", 0, 3)

    def _on_goodbye(self, data: bytes, start: int, stop: int) -> None:
        properties, _ = read_properties(data, start + 1, stop)
        reason = BrokerReason.of(data[start] if stop > start else 0, properties)
        text = f"the broker ended the connection: {reason_text(reason)}"
        self._end_cause = aiomqtt.MqttError(text)
        self._fail_connect()
        self._lose(Loss(text, Ending.GOODBYE, reason))
        self.abort()

    def _give_to_library(self, first: int, data: bytes, start: int, stop: int) -> None:
        if self._stream is not None:
            length = variable_integer(stop - start)
            self._stream.hand_over(bytes((first,)) + length + data[start:stop])
            self._run_library(self._client._client.loop_read)

    def _run_library(self, step: Callable[[], Any]) -> None:
        try:
            result = step()
        except Exception as error:
            # Paho raises all kinds of errors over malformed packets.
            raise MalformedPacket(f"a packet from the broker cannot be read: {error}") from error
        if result != paho.MQTT_ERR_SUCCESS:
            raise MalformedPacket(
                f"a packet from the broker is invalid: {paho.error_string(result)}"
            )

    def _on_end(self, error: Exception | None) -> None:
        self._end_cause = error
        with contextlib.suppress(MalformedPacket):
            self._run_library(self._client._client.loop_read)
        self._fail_connect()
        self._lose(self._loss())

    def _loss(self) -> Loss:
        if self._closing:
            return Loss(self._closing, Ending.OURS)
        broken = isinstance(self._end_cause, ConnectionError)
        refusal = self._flow.refused_within(_AT_ONCE)
        if (self._end_cause is None or broken) and refusal is not None:
            if answer_to(Packet.PUBACK, refusal).decision is Decision.MESSAGE:
                return Loss("the broker closed it over a publish that it refused", Ending.REFUSED)
            # As if it had said so in a DISCONNECT: the publish comes first on the next connection.
            text = "the broker closed it over a publish that it does not accept for now"
            reason = refusal if isinstance(refusal, BrokerReason) else BrokerReason(refusal)
            return Loss(f"{text}: {reason_text(reason)}", Ending.GOODBYE, reason)
        if self._end_cause is None:
            return Loss("the broker closed the connection", Ending.CLOSED)
        return Loss(
            describe(self._end_cause),
            Ending.RESET if broken else Ending.FAILED,
            unconfirmed=self._unconfirmed,
        )

    # Callbacks of the library.

    def _on_write_wanted(self, client: Any, userdata: Any, sock: Any) -> None:
        # The library may be in a callback, where it must not be called again.
        self._loop.call_soon(self._client._client.loop_write)

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any = None
    ) -> None:
        self._client._on_connect(client, userdata, flags, reason, properties)
        self._accepted = True
        self._handler.on_connected(flags.session_present)

    # Internals.

    def _on_busy(self, is_busy: bool) -> None:
        if is_busy:
            self._resume_stream()
        elif self._wants_pause and self._stream is not None:
            self._stream.pause()

    def _resume_stream(self) -> None:
        if self._stream is not None and self._stream.paused:
            self._stream.resume()
            if self._keepalive is not None:
                self._keepalive.resumed()

    def _stop_keepalive(self) -> None:
        if self._keepalive is not None:
            self._keepalive.stop()
            self._keepalive = None

    def _on_silence(self, reason: str) -> None:
        self._unconfirmed = self._flow.unconfirmed()
        if self._stream is not None:
            self._stream.abort()
        self._on_end(TimeoutError(reason))

    def _fail_connect(self) -> None:
        # After a DISCONNECT aiomqtt has a new future there, which nobody looks at.
        if not self._accepted and not self._client._connected.done():
            cause: Exception | None = self._end_cause
            if cause is None:
                cause = NotAnswered("the broker closed it before it was accepted")
            elif isinstance(cause, ConnectionError):
                cause = NotAnswered(describe(cause))
            elif not isinstance(cause, (OtherProtocol, WrongVersion, ssl.SSLError)):
                cause = aiomqtt.MqttError(describe(cause))
            self._client._connected.set_exception(cause)

    def _lose(self, loss: Loss) -> None:
        if not self.lost.done():
            self._stop_keepalive()
            self.lost.set_result(loss)
            self._flow.end()
            if self._accepted:
                self._handler.on_lost(loss)


def _retrieve(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
