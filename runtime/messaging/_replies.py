"""Replies: answering requests with values, with errors, and with ``message.reply``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import describe, escaped, quoted, reason_of
from ...errors import MessageTooLarge, OutboxFull, ProcessCrashed, RemoteError, SpaDatError
from ...transports import DEFAULT_TYPE, REPLY_HEADER, Bus, Envelope, Surroundings
from ..diagnostics._unclean_stop import LostPosts
from ..options._retry_policy import Reject
from ..payloads._codec import TEXT, encode
from ._message import OutgoingMessage
from ._requests import ERROR_HEADER, LONGEST_CODE, LONGEST_TEXT
from ._turn import Turn, current_turn

if TYPE_CHECKING:
    from ._socket import Socket

__all__ = ["Replies", "error_answer", "reply"]

log = get_logger("spa_dat")


class Replies:
    """Sends the replies of an application to the requests that it gets from one bus.

    Args:
        bus: the connection.
        surroundings: environment and counters of the application.
        lost_posts: is told of replies that failed and that nobody is waiting for.
    """

    def __init__(self, bus: Bus, surroundings: Surroundings, lost_posts: LostPosts) -> None:
        self._bus = bus
        self._stats = surroundings.stats
        self._environment = surroundings.environment
        self._lost_posts = lost_posts
        self._log = LimitedLog(log)

    def send(self, turn: Turn, source: str, value: object) -> None:
        """Answer the turn's request with a value, unless it has been answered already.

        The request is not settled before the reply is confirmed.

        Raises:
            EncodeError: the value cannot be encoded; the request is not answered.
        """
        if turn.answered:
            return
        payload, content_type = encode(value)
        self._post(turn, source, payload, content_type, {REPLY_HEADER: "1"})
        turn.reply = turn.posts[-1]

    def send_error(self, turn: Turn, source: str, code: str, text: str) -> None:
        """Answer the turn's request with a `RemoteError`, unless not even that can be sent.

        Raises:
            OutboxFull: it can be sent later.
        """
        headers = {REPLY_HEADER: "1", ERROR_HEADER: escaped(str(code))[:LONGEST_CODE]}
        payload = str(text)[:LONGEST_TEXT].encode("utf-8", "replace")
        payload = payload[: self._bus.max_payload].decode("utf-8", "ignore").encode()
        try:
            self._post(turn, source, payload, TEXT, headers)
        except OutboxFull:
            raise
        except SpaDatError as refusal:
            # What the request contains makes it impossible to send even this answer.
            assert turn.request is not None
            self._stats["replies.refused"] += 1
            topic = quoted(turn.request.topic)
            self._log.error("the request on %s cannot be answered: %s", topic, describe(refusal))

    def refuse(self, request: Envelope, source: str, code: str, text: str) -> None:
        """Answer a request that no handler gets with a `RemoteError`, on a best-effort basis."""
        turn = Turn(request.id, source, request)
        try:
            self.send_error(turn, source, code, text)
        except OutboxFull:
            self._stats["replies.refused"] += 1
        for posted in turn.posts:
            posted.add_done_callback(self._lost_posts.report)

    def _post(
        self,
        turn: Turn,
        source: str,
        payload: bytes,
        content_type: str | None,
        headers: dict[str, str],
    ) -> None:
        request = turn.request
        assert request is not None
        assert request.response_topic is not None
        envelope = Envelope(
            topic=request.response_topic,
            payload=payload,
            content_type=content_type,
            id=turn.publish_id(request.response_topic) or self._environment.new_id(),
            source=source,
            type=DEFAULT_TYPE,
            time=self._environment.now(),
            headers=headers,
            correlation=request.correlation,
            expiry=request.expiry,
        )
        turn.posts.append(self._bus.post(envelope))
        turn.answered = True


async def reply(
    socket: Socket, turn: Turn, payload: object, headers: Mapping[str, str] | None
) -> None:
    """Answer the turn's request for ``message.reply``, and wait for the confirmation.

    Args:
        socket: of the actor that has got the request.
        turn: the attempt at the request.
        payload: as for `Socket.publish`.
        headers: names and values for the requester.
    """
    request = turn.request
    assert request is not None
    assert request.response_topic is not None
    message = OutgoingMessage(topic=request.response_topic, payload=payload, headers=headers or {})
    # A handler may keep a request and answer it while it handles another message.
    token = current_turn.set(turn)
    before = turn.answered
    try:
        await socket.publish(message)
    except MessageTooLarge:
        # The error can still be the answer.
        turn.answered = before
        raise
    finally:
        current_turn.reset(token)


def error_answer(error: BaseException) -> tuple[str, str]:
    """Return code and text of the answer to a request whose handler has raised ``error``."""
    if isinstance(error, RemoteError):
        return error.code, error.text
    if isinstance(error, Reject):
        return "rejected", describe(error)
    if isinstance(error, ProcessCrashed):
        return "crashed", describe(error)
    return "failed", reason_of(error)
