"""``spa-dat publish`` and ``spa-dat request``."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Unpack

from ..errors import ConfigurationError, RemoteError, RequestError, SpaDatError
from ..runtime import DistributedApplication, Message, MessageBuilder, PublishOptions, Socket
from ..transports import KafkaConfig, SocketProvider
from ..transports._broker_config import BrokerConfig
from ._broker_client import broker_at, run_client
from ._message_output import message_as_json, payload_as_text
from ._payload_input import ReadLines, content_type_of, opened_lines, read_payload
from ._standard_output import check_open, printing, write_notice, write_text

__all__ = ["publish", "request"]

_MOST_UNCONFIRMED = 200


def publish(
    url: str,
    topic: str,
    payload: str | None,
    *,
    name: str | None,
    lines: bool,
    timeout: float,
    **options: Unpack[PublishOptions],
) -> int:
    """Publish a message, or one for each line; returns the exit code.

    Args:
        url: of the broker or document.
        topic: to publish on.
        payload: see `read_payload`.
        name: of the provider in the document.
        lines: publish each line of the payload by itself.
        timeout: seconds to wait for each confirmation.
        options: of the message; without a content type it is what the payload looks like.

    Raises:
        ConfigurationError: an argument is wrong.
        TransportError: the broker cannot be used, or has not confirmed the message.
    """
    provider = broker_at(url, name=name)
    if options.get("retain") and isinstance(provider.config, KafkaConfig):
        raise ConfigurationError(
            "--retain is for MQTT: Kafka keeps messages as the topic is set up, and --key tells"
            " which of them is the newest of a compacted topic"
        )
    if lines:
        with opened_lines(payload, _largest(provider)) as read:
            sending = _publish_lines(provider, topic, read, options, timeout)
            count = run_client(sending)
        write_notice(f"messages published: {count}")
        return 0
    data = read_payload(payload, _largest(provider))
    run_client(_publish(provider, topic, data, options, timeout))
    return 0


def request(
    url: str,
    topic: str,
    payload: str | None,
    *,
    name: str | None,
    timeout: float,
    as_json: bool,
    **options: Unpack[PublishOptions],
) -> int:
    """Send a request, and print the reply; returns the exit code.

    Args:
        url: as for `publish`, like the others.
        topic: to publish on.
        payload: see `read_payload`.
        name: of the provider in the document.
        timeout: seconds to wait for the reply.
        as_json: print the whole message for programs.
        options: as for `publish`.

    Raises:
        ConfigurationError, TransportError: as for `publish`.
        RequestError: there is no reply in time, or it is an error.
    """
    # Asked before anything is sent.
    check_open()
    provider = broker_at(url, name=name)
    data = read_payload(payload, _largest(provider))
    asking = _request(provider, topic, data, options, timeout)
    reply = run_client(asking)
    with printing():
        write_text(message_as_json(reply) if as_json else payload_as_text(reply))
    return 0


async def _publish(
    provider: SocketProvider,
    topic: str,
    payload: bytes,
    options: PublishOptions,
    timeout: float,
) -> None:
    async with DistributedApplication(provider) as application:
        await _send(application.socket(), topic, payload, options, timeout)


async def _send(
    socket: Socket,
    topic: str,
    payload: bytes,
    options: PublishOptions,
    timeout: float,
) -> None:
    stated = _stated(options, payload)
    # None is sent as nothing, without a content type.
    await socket.publish(topic, payload or None, timeout=timeout, **stated)


async def _publish_lines(
    provider: SocketProvider,
    topic: str,
    read: ReadLines,
    options: PublishOptions,
    timeout: float,
) -> int:
    """Publish each line, without waiting for one to be confirmed before the next; returns how many.

    They are sent in their order.
    """
    count = 0
    unconfirmed: deque[tuple[int, asyncio.Task[None]]] = deque()
    async with DistributedApplication(provider) as application:
        socket = application.socket()
        try:
            async for number, line in read():
                sending = _send(socket, topic, line, options, timeout)
                unconfirmed.append((number, asyncio.create_task(sending)))
                # It puts its message into the outbox, of which there may be too little.
                await asyncio.sleep(0)
                await socket.drain()
                while unconfirmed[0][1].done() or len(unconfirmed) > _MOST_UNCONFIRMED:
                    count += await _confirmed(*unconfirmed.popleft())
                    if not unconfirmed:
                        break
            while unconfirmed:
                count += await _confirmed(*unconfirmed.popleft())
        finally:
            for _, task in unconfirmed:
                task.cancel()
            await asyncio.gather(*(task for _, task in unconfirmed), return_exceptions=True)
    return count


async def _confirmed(number: int, task: asyncio.Task[None]) -> int:
    try:
        await task
    except SpaDatError as error:
        raise type(error)(
            f"line {number}: {error}; those before it are published, those after it may be"
        ) from error
    return 1


async def _request(
    provider: SocketProvider,
    topic: str,
    payload: bytes,
    options: PublishOptions,
    timeout: float,
) -> Message[bytes]:
    stated = _stated(options, payload)
    message = MessageBuilder()(topic, payload or None, **stated)
    async with DistributedApplication(provider) as application:
        try:
            return await application.socket().request(
                message, reply=Message[bytes], timeout=timeout
            )
        except RemoteError as error:
            raise RequestError(f"the responder answered with an error, {error}") from error


def _stated(options: PublishOptions, payload: bytes) -> PublishOptions:
    """Return the options with a content type, which is what the payload looks like without one."""
    content_type = options.get("content_type") or content_type_of(payload)
    return {**options, "content_type": content_type}


def _largest(provider: SocketProvider) -> int:
    config = provider.config
    assert isinstance(config, BrokerConfig)
    return config.max_payload
