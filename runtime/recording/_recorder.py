"""The recorder, which writes the messages that reach an application's actors to a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self

from ...errors import ConfigurationError
from ...transports import Delivery, DeliveryState, Envelope
from ..application._application import DistributedApplication, runs_of
from ..hosting._actor_observer import Receive
from ..hosting._lane import Lane
from ..routing._routed_deliveries import RoutedDelivery
from ._recording_format import Receipt
from ._recording_writer import RecordingWriter

__all__ = ["Recorder"]


class Recorder:
    """Records the messages that reach an application's actors, for `Harness.replay`.

    ``with Recorder(app, "incident.jsonl"): app.run()``. A message is recorded when an actor starts
    on it, once for each receipt and not for each attempt; messages that no actor starts on are not
    recorded. Recording does not delay messages: the recorder's own thread writes the file. If it
    cannot keep up, or the disk is full, messages are left out of the file and counted, and the
    application continues. Messages from the last moments before the process is killed may be
    missing.

    The file has one JSON object per line, in UTF-8. Each has ``version`` (1), ``at`` (seconds since
    1970, UTC), ``topic``, and if there is anything to say ``application``, ``instance``, ``actor``,
    ``handler``, ``bus`` (its address), ``attempt``, ``payload`` (text) or ``payload_base64``,
    ``content_type``, ``id``, ``source``, ``type``, ``time`` (of sending), ``key``, ``headers``,
    ``response_topic``, ``correlation`` (base64), ``expiry`` (seconds left), ``qos``, ``retain``,
    ``redelivered``, ``partition``, ``offset`` and ``tombstone``; ``raw_key`` and ``raw_headers``
    (pairs; base64) if the texts do not say everything. A field that is left out has its default:
    ``qos`` and ``attempt`` are 1, all others are empty, false or absent.

    Payloads may be secret: only the user who runs the program may read the file (mode 0600), and
    ``redact`` can remove what nobody should see.

    Args:
        application: not running yet.
        file: the file to write; its folder has to exist.
        actors: the names of the actors whose messages are recorded; None for all.
        limit: the number of messages after which no more are recorded; None for no limit.
        max_bytes: when the file is larger than this, ``.1`` is appended to its name and a new one
            is begun; a file renamed earlier is lost. None for no limit.
        redact: called with each message in the recorder's thread; what it returns is written, or
            nothing if that is None. A message for which it raises is left out.
        existing: what to do with a file that already exists: ``append``, ``replace`` or
            ``refuse``.

    Raises:
        ConfigurationError: an argument is wrong. On entering: there is no such actor, the
            application is already running, or the file cannot be written.
    """

    def __init__(
        self,
        application: DistributedApplication,
        file: str | PathLike[str],
        *,
        actors: Sequence[str] | None = None,
        limit: int | None = None,
        max_bytes: int | None = 100_000_000,
        redact: Callable[[Envelope], Envelope | None] | None = None,
        existing: Literal["append", "replace", "refuse"] = "append",
    ) -> None:
        if not isinstance(application, DistributedApplication):
            raise ConfigurationError(f"Recorder({application!r}): give a DistributedApplication")
        if isinstance(actors, str):
            raise ConfigurationError(f"actors={actors!r}: give a list of names, [{actors!r}]")
        self._application = application
        self._actors: Collection[str] | None = None if actors is None else tuple(actors)
        self._batches: dict[Lane, Sequence[RoutedDelivery]] = {}
        self._file = RecordingWriter(
            file, limit=limit, max_bytes=max_bytes, redact=redact, existing=existing
        )

    @property
    def recorded(self) -> int:
        """Messages written so far."""
        return self._file.recorded

    @property
    def skipped(self) -> int:
        """Messages that should have been recorded and were not."""
        return self._file.skipped

    @property
    def problem(self) -> str | None:
        """Why nothing more can be written; None as long as it can."""
        return self._file.problem

    def __enter__(self) -> Self:
        """Begin to record; the application can be started now."""
        application, runs = self._application, runs_of(self._application)
        if runs.current is not None:
            raise ConfigurationError(
                f"application {application.name!r} is already running: enter the Recorder first"
            )
        known = [spec.name for spec in runs.specs if spec.kind != "producer"]
        for name in self._actors or ():
            if name not in known:
                raise ConfigurationError(
                    f"there is no actor {name!r} that gets messages in application"
                    f" {application.name!r}; there are: {', '.join(known) or 'none'}"
                )
        self._file.open()
        self._before = runs.settings.observer
        runs.observe(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is left, and close the file.

        After an error an empty file is removed again, if it was not there before.
        """
        runs = runs_of(self._application)
        runs.settings = replace(runs.settings, observer=self._before)
        self._file.close()
        if error is not None:
            self._file.discard_if_new_and_empty()

    # For the runtime.

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        """See `Observer.receiving`."""
        if not self._is_recorded(lane):
            return receive
        take = self._take
        latest: RoutedDelivery | None = None

        def recorded(instance: Any, item: Any) -> Any:
            nonlocal latest
            # A delivery that is interrupted and started again has reached the actor only once.
            if isinstance(item, Delivery) and item is not latest:
                latest = item
                take(lane, item)
            return receive(instance, item)

        return recorded

    def collected(self, lane: Lane, batch: Sequence[RoutedDelivery]) -> None:
        """See `Observer.collected`."""
        if self._is_recorded(lane):
            before = self._batches.get(lane, ())
            self._batches[lane] = batch
            for delivery in batch:
                if all(delivery is not one for one in before):
                    self._take(lane, delivery)

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        """See `Observer.failed`."""

    def troubled(self, actor: str, reason: str) -> None:
        """See `Observer.troubled`."""

    def _is_recorded(self, lane: Lane) -> bool:
        return self._actors is None or lane.actor_name in self._actors

    def _take(self, lane: Lane, delivery: RoutedDelivery) -> None:
        # A delivery that was withdrawn in the meantime is not handled: it comes again.
        if delivery.state is not DeliveryState.QUEUED:
            return
        at, attempt = lane.environment.now(), delivery.attempts + 1
        envelope, handler = delivery.envelope, delivery.route.handler
        self._file.write(
            envelope, lambda envelope: self._receipt(lane, envelope, handler, at, attempt)
        )

    def _receipt(
        self, lane: Lane, envelope: Envelope, handler: int, at: float, attempt: int
    ) -> Receipt:
        return Receipt.of(
            envelope,
            at=at,
            attempt=attempt,
            application=lane.application,
            instance=lane.instance,
            actor=lane.actor_name,
            handler=lane.handlers[handler].injection.name.removesuffix("()"),
            bus=lane.connection.provider.address,
        )
