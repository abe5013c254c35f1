"""``spa-dat listen``."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from .._environment import Environment
from .._texts import quoted
from ..errors import ConfigurationError, UnknownTopic
from ..transports import (
    Delivery,
    Envelope,
    Identity,
    KafkaConfig,
    SocketProvider,
    SocketProviderFactory,
    Subscription,
    Surroundings,
    TopicFilter,
)
from ._broker_client import broker_at, run_client
from ._message_output import envelope_as_json, envelope_as_text
from ._standard_output import BackgroundOutput, check_open, write_notice

__all__ = ["listen"]

_FAILED = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Shown together, so that many small messages do not take one turn of the thread each.
_MOST_TOGETHER = 100


def listen(
    url: str,
    pattern: str,
    *,
    name: str | None,
    count: int | None,
    seconds: float | None,
    since: datetime | None,
    as_json: bool,
) -> int:
    """Show the messages that arrive on some topics; returns the exit code.

    It is 1 if there were fewer than ``count`` within ``seconds``, and otherwise 0, also after a
    signal.

    Args:
        url: of the broker or document.
        pattern: the filter.
        name: of the provider in the document.
        count: end after so many messages; None for no end.
        seconds: end after so long; None for no end.
        since: where to begin; None for now. On Kafka only.
        as_json: show them for programs.

    Raises:
        ConfigurationError: an argument is wrong.
        TransportError: the broker cannot be used.
    """
    check_open()
    provider = broker_at(url, name=name)
    if isinstance(provider.config, KafkaConfig):
        # Not even the topic of dead letters, of an application that has none.
        config = replace(provider.config, create_topics="never")
        provider = SocketProviderFactory.from_config(config)
    if since is not None and not provider.keeps_history:
        raise ConfigurationError(
            f"--since is for Kafka: all that {provider.address} keeps is the retained message of"
            " each topic, which is shown without it"
        )
    plain = TopicFilter.parse(pattern).pattern
    provider.check_filter(plain)
    subscription = Subscription(
        "listen",
        (plain,),
        window=provider.default_window,
        window_bytes=provider.default_window_bytes,
        durable=False,
        rewind_to=since,
    )
    show = envelope_as_json if as_json else envelope_as_text
    listener = _Listener(provider, subscription, show)
    try:
        run_client(listener.run(count, seconds))
    except UnknownTopic as error:
        # What creates topics elsewhere is no advice for a command that never does.
        raise UnknownTopic(f"there is no topic {plain!r} at {provider.address}") from error
    if listener.is_over and count is not None:
        write_notice(f"messages in {seconds:g} s: {listener.shown}, wanted: {count}")
        return _FAILED
    return 0


class _Listener:
    """Shows what a subscription gets that the broker forgets with its connection.

    It needs no right but that of reading, and creates nothing: there is neither an inbox for
    replies nor a place for dead letters.

    Args:
        provider: the broker.
        subscription: what to get.
        show: makes text of a message.

    Attributes:
        shown: how many messages it has shown.
        is_over: whether it has ended because the time was over.
    """

    def __init__(
        self,
        provider: SocketProvider,
        subscription: Subscription,
        show: Callable[[Envelope], str],
    ) -> None:
        self._provider = provider
        self._subscription = subscription
        self._show = show
        self._waiting: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self.shown = 0
        self.is_over = False

    async def run(self, count: int | None, seconds: float | None) -> None:
        """Listen until there were enough messages, the time is over, a signal, or nobody reads."""
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        working = asyncio.ensure_future(self._listen(count, seconds, failed))
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._interrupt, working)
        try:
            await asyncio.wait((working, failed), return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            await asyncio.wait((working,))
            if failed.done():
                failed.result()
            if not working.cancelled():
                working.result()
        finally:
            failed.cancel()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _interrupt(self, working: asyncio.Task[None]) -> None:
        working.cancel()
        # The next one ends the program.
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    async def _listen(
        self, count: int | None, seconds: float | None, failed: asyncio.Future[None]
    ) -> None:
        def fail(error: BaseException) -> None:
            if not failed.done():
                failed.set_exception(error)

        environment = Environment()
        identity = Identity(f"listen-{environment.token(8)}", ephemeral=True)
        bus = self._provider.open(Surroundings(identity, environment, fatal=fail))
        consumer = bus.consumer(self._subscription, self)
        try:
            await consumer.start()
            where = f"{self._provider.address}, {quoted(self._subscription.filters[0])}"
            write_notice(f"listening: {where}")
            try:
                async with asyncio.timeout(seconds):
                    await self._show_all(count)
            except TimeoutError:
                self.is_over = True
        finally:
            consumer.stop_intake()
            await consumer.close()
            await bus.close()

    async def _show_all(self, count: int | None) -> None:
        working = asyncio.current_task()
        assert working is not None
        output = BackgroundOutput(unread=working.cancel)
        try:
            while count is None or self.shown < count:
                if not await self._show_some(output, count):
                    return
        finally:
            output.close()

    async def _show_some(self, output: BackgroundOutput, count: int | None) -> bool:
        """Show what has arrived, at least one; returns whether somebody reads it."""
        await self._arrived.wait()
        most = _MOST_TOGETHER if count is None else min(_MOST_TOGETHER, count - self.shown)
        some: list[Delivery] = []
        while self._waiting and len(some) < most:
            delivery = self._waiting.popleft()
            if delivery.start():
                some.append(delivery)
        if not self._waiting:
            self._arrived.clear()
        if not await output.write("".join(self._show(one.envelope) for one in some)):
            return False
        self.shown += len(some)
        for delivery in some:
            delivery.settle()
        return True

    # For the consumer.

    def deliver(self, delivery: Delivery) -> None:
        """See `Receiver.deliver`."""
        self._waiting.append(delivery)
        self._arrived.set()

    def deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        """See `Receiver.deliver_all`."""
        self._waiting.extend(deliveries)
        self._arrived.set()

    def hold(self) -> None:
        """Do nothing: nobody else gets what has arrived, and showing it twice does no harm."""

    def resume(self, *, redelivered: bool) -> None:
        """Do nothing: what comes again has been withdrawn."""
