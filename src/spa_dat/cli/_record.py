"""``spa-dat record``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from ..errors import ConfigurationError
from ..runtime import DistributedApplication, run
from ..runtime.hosting._actor_observer import Receive
from ..runtime.hosting._lane import Lane
from ..runtime.recording._recorder import Recorder
from ..runtime.recording._recording_format import Receipt
from ..runtime.recording._recording_writer import RecordingWriter
from ..transports import Delivery, Envelope
from ._application import load_application
from ._broker_client import broker_at
from ._history import write_history
from ._standard_output import write_notice

__all__ = ["record"]


def record(
    source: str,
    output: str,
    *,
    actors: Sequence[str],
    topics: Sequence[str],
    limit: int | None,
    force: bool,
    since: datetime | None,
    until: datetime | None,
) -> int:
    """Run an application, or listen on a bus, and write messages down; returns the exit code.

    Args:
        source: names the application, or is the address of a bus.
        output: the file.
        actors: of the application; none for all.
        topics: of the bus.
        limit: the most messages that are recorded.
        force: replace a file that is there.
        since: read what topics of a cluster hold from this time on, instead of listening.
        until: read them up to this time.
    """
    existing: Literal["replace", "refuse"] = "replace" if force else "refuse"
    if since is not None or until is not None:
        return _record_history(source, output, topics, limit, existing, since, until, actors)
    recorder: Recorder
    if "://" in source:
        if actors:
            raise ConfigurationError(
                "--actor is for applications; for a bus give the topics with --topic"
            )
        application = _listener(source, topics)
        recorder = _Tap(application, output, limit=limit, existing=existing)
    else:
        if topics:
            raise ConfigurationError(
                "--topic is for listening on a bus; for an application give the actors with --actor"
            )
        application = load_application(source)
        recorder = Recorder(
            application, output, actors=actors or None, limit=limit, existing=existing
        )
    with _telling(recorder, output), recorder:
        run(application)
    return 0


def _record_history(
    source: str,
    output: str,
    topics: Sequence[str],
    limit: int | None,
    existing: Literal["replace", "refuse"],
    since: datetime | None,
    until: datetime | None,
    actors: Sequence[str],
) -> int:
    if since is None:
        raise ConfigurationError("--until needs --since: give the time from which on, too")
    if "://" not in source or actors:
        raise ConfigurationError(
            "--since and --until are for topics of a cluster: give the address of the cluster, and"
            " the topics with --topic"
        )
    writer = RecordingWriter(output, limit=limit, max_bytes=None, redact=None, existing=existing)
    with _telling(writer, output):
        write_history(source, topics, writer, since=since, until=until, limit=limit)
    return 0


def _listener(url: str, topics: Sequence[str]) -> DistributedApplication:
    if not topics:
        raise ConfigurationError(
            "listening on a bus needs topics: give for example --topic 'plant/#'"
        )
    # Without a name: the bus keeps no session or group for it.
    application = DistributedApplication(broker_at(url))

    @application.application(tuple(topics), deliver="all")
    async def listen() -> None:
        """Do nothing: the tap takes everything."""

    return application


class _Tap(Recorder):
    """A recorder whose application is only there to listen: it and its actor are not recorded.

    Who listens writes nothing to the bus. So no message is handled, for one that cannot be would
    become a dead letter there.
    """

    def __init__(
        self,
        application: DistributedApplication,
        file: str,
        *,
        limit: int | None,
        existing: Literal["replace", "refuse"],
    ) -> None:
        super().__init__(application, file, limit=limit, existing=existing)
        self._stop = application.stop
        self._left = limit

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        """See `Observer.receiving`."""

        async def taken(instance: Any, item: Any) -> None:
            if not isinstance(item, Delivery):
                await receive(instance, item)
                return
            self._take(lane, item)
            if not item.start():
                return
            item.settle()
            if self._left is not None and item.envelope.left_out is None:
                self._left -= 1
                if self._left <= 0:
                    self._stop()

        return taken

    def _receipt(
        self, lane: Lane, envelope: Envelope, handler: int, at: float, attempt: int
    ) -> Receipt:
        return Receipt.of(envelope, at=at, bus=lane.connection.provider.address)


class _Recorded(Protocol):
    @property
    def recorded(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def problem(self) -> object: ...


@contextlib.contextmanager
def _telling(recorded: _Recorded, output: str) -> Iterator[None]:
    """Report at the end of the block what the file contains; raise if it is not complete."""
    try:
        yield
    except BaseException:
        if recorded.recorded:
            _tell(recorded, output)
        raise
    _tell(recorded, output)
    if recorded.problem is not None:
        raise ConfigurationError(f"{output!r} is not complete: {recorded.problem}")


def _tell(recorded: _Recorded, output: str) -> None:
    missing = f", {recorded.skipped} are missing" if recorded.skipped else ""
    write_notice(f"messages in {output}: {recorded.recorded}{missing}")
