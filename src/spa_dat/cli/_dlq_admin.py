"""The dead letters of a running application, through its admin endpoint, for ``spa-dat dlq``."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import msgspec

from .._texts import escaped
from ..errors import ConfigurationError
from ..runtime.dead_letters._stored_letter import LetterFilter, StoredLetter
from ..transports import Envelope, MemoryConfig, SocketProviderFactory
from ._admin_client import AdminClient, Unanswered
from ._dlq_source import LetterSource

__all__ = ["UNANSWERED", "AdminLetters"]

UNANSWERED = "no answer for {:g} s; it may still be handled, and removed then"
"""What is told of a letter whose actor takes longer; with the seconds."""

_TIMEOUT = 30.0
_MOST = 10_000
_LONGEST_LINE = 1_900


class _Told(msgspec.Struct, kw_only=True):
    """A letter as it is listed."""

    letter: str
    stored: datetime | None
    size: int
    flaw: str | None
    obstacle: str | None
    application: str | None
    instance: str | None
    actor: str | None
    topic: str | None
    error: str | None
    text: str | None
    attempts: int | None
    replays: int | None

    def as_letter(self) -> StoredLetter:
        """Return it without its message."""
        return StoredLetter(
            name=self.letter,
            stored=None if self.stored is None else self.stored.timestamp(),
            size=self.size,
            envelope=Envelope(topic=""),
            flaw=self.flaw,
            obstacle=self.obstacle,
            application=self.application or "",
            instance=self.instance or "",
            actor=self.actor or "",
            topic=self.topic or "",
            error=self.error or "",
            text=self.text or "",
            attempts=self.attempts or 0,
            replays=self.replays or 0,
        )


class _Letters(msgspec.Struct, kw_only=True):
    application: str
    instance: str
    dead_letters: list[_Told]
    more: bool


class _Envelope(msgspec.Struct, kw_only=True):
    topic: str
    id: str | None
    source: str | None
    type: str | None
    time: float | None
    key: str | None
    content_type: str | None
    headers: dict[str, str]
    payload_base64: str


class _Shown(msgspec.Struct, kw_only=True):
    application: str
    envelope: _Envelope


class _Done(msgspec.Struct, kw_only=True):
    outcome: str
    why: str


class AdminLetters:
    """Asks an admin endpoint about dead letters, and what to do with them.

    Args:
        source: whose dead letters, and where; with an address to ask. The bus is that of its URL,
            or all of the application for ``memory://`` without a name.

    Raises:
        ConfigurationError: an argument is wrong, or another application answers there.
        ConnectFailed: nobody answers there.
        NotAuthorised: it asks for another token.
    """

    def __init__(self, source: LetterSource) -> None:
        assert source.admin is not None
        self._application = source.application
        self._client = AdminClient(source.admin, "--admin ")
        provider = SocketProviderFactory.from_url(source.url, name=source.name)
        self._bus: dict[str, str] = {}
        if not isinstance(provider.config, MemoryConfig) or "~" not in provider.address:
            # What has no name has another address in each program.
            self._bus["bus"] = provider.address
        found = self._asked("GET", "", {"limit": "1"}, _Letters)
        if found.application != source.application:
            raise ConfigurationError(
                f"application {found.application!r} answers at {source.admin}, not"
                f" {source.application!r}"
            )
        self.instance = found.instance

    def stored(self, wanted: LetterFilter) -> tuple[list[StoredLetter], bool]:
        """Return the first letters that are wanted, and whether there are more."""
        given = {"actor": wanted.actor, "error": wanted.error}
        options = {name: text for name, text in given.items() if text is not None}
        for name, moment in (("since", wanted.since), ("until", wanted.until)):
            if moment is not None:
                options[name] = repr(moment)
        found = self._asked("GET", "", {"limit": str(_MOST), **options}, _Letters)
        return [told.as_letter() for told in found.dead_letters], found.more

    def show(self, name: str) -> StoredLetter | None:
        """Return a letter with its message; None if there is none of that name."""
        try:
            found = self._asked("GET", f"/{name}", {}, _Shown)
        except _Missing:
            return None
        fields = msgspec.structs.asdict(found.envelope)
        payload = base64.b64decode(fields.pop("payload_base64"))
        return StoredLetter.of(self._application, Envelope(payload=payload, **fields))

    def change(
        self, name: str, what: str, *, anyway: bool = False, timeout: float = _TIMEOUT
    ) -> tuple[str, str]:
        """Replay or discard a letter; return the outcome, and why."""
        options = {"anyway": "1"} if anyway else {}
        try:
            done = self._asked("POST", f"/{name}/{what}", options, _Done, timeout)
        except Unanswered:
            # Its actor is slow, or nobody answers any more, which this finds out.
            self._asked("GET", "", {"limit": "1"}, _Letters)
            return "refused", UNANSWERED.format(timeout)
        return done.outcome, done.why

    def _asked(
        self,
        method: str,
        path: str,
        options: Mapping[str, str],
        kind: type[Any],
        timeout: float = _TIMEOUT,
    ) -> Any:
        query = urlencode({**self._bus, **options})
        line = f"/dead-letters{path}" + (f"?{query}" if query else "")
        if len(line) > _LONGEST_LINE or not line.isprintable() or " " in line:
            raise ConfigurationError(f"{escaped(path, 80)!r}: it is too long, or not a name")
        status, data = self._client.ask(method, line, timeout=timeout)
        if status == 404 and method == "GET" and path:
            raise _Missing
        if status != 200:
            raise self._client.refusal(status, data)
        try:
            return msgspec.convert(json.loads(data), kind)
        except (msgspec.ValidationError, ValueError, RecursionError) as error:
            raise self._client.misunderstanding(error) from error


class _Missing(Exception):
    """There is no such letter."""
