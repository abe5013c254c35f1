"""What an admin endpoint answers about dead letters, and does to them when asked."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from ..._texts import quoted
from ...errors import ConfigurationError, SpaDatError
from ...transports import Envelope
from ..dead_letters._stored_letter import LetterFilter, StoredLetter
from ._dead_letter_search import TooManyReaders

if TYPE_CHECKING:
    from ._administered_run import AdministeredRun

__all__ = ["LETTERS", "LetterPages", "PageRefused"]

LETTERS = "/dead-letters"
"""The path of the list, and the beginning of all others."""
_MOST = 10_000
_SHOWN = 1_000
# Characters of a list. Whoever stores letters may make them large, but not the answer.
_MOST_TEXT = 16_000_000
_OPTIONS = ("actor", "error", "since", "until", "bus", "limit", "anyway")


class PageRefused(Exception):
    """A request that is not answered as it was meant.

    Attributes:
        status: of the answer, in HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class LetterPages:
    """The dead letters of a run over HTTP, whatever the server is.

    `answer` is for those who may know details, and not for pages of other sites.

    Args:
        run: the run of the application.
    """

    def __init__(self, run: AdministeredRun) -> None:
        self._run = run

    async def answer(self, method: str, path: str, query: str) -> dict[str, Any]:
        """Return what is answered, for JSON.

        ``GET /dead-letters`` lists, ``GET /dead-letters/NAME`` shows,
        ``POST /dead-letters/NAME/replay`` and ``.../discard`` change. Names are percent-encoded as
        they are listed.

        Args:
            method: of the request.
            path: undecoded.
            query: undecoded.

        Raises:
            PageRefused: with the status, and why.
        """
        told = _told(query)
        _, _, rest = path.partition(LETTERS)
        parts = rest.removeprefix("/").split("/") if rest else []
        wanted: Callable[[], Awaitable[dict[str, Any]]]
        if method == "GET" and not parts:
            wanted = partial(self._list, told)
        elif method == "GET" and len(parts) == 1:
            wanted = partial(self._show, parts[0], told)
        elif method == "POST" and len(parts) == 2 and parts[1] in ("replay", "discard"):
            wanted = partial(self._change, parts[0], parts[1], told)
        elif len(parts) in (1, 2):
            raise PageRefused(405, "GET, or POST to .../replay or .../discard")
        else:
            raise PageRefused(404, f"there are {LETTERS} and {LETTERS}/NAME")
        if not self._run.is_running:
            raise PageRefused(503, "the application is not running")
        try:
            return await wanted()
        except TooManyReaders as error:
            raise PageRefused(503, str(error)) from error
        except ConfigurationError as error:
            raise PageRefused(400, str(error)) from error
        except SpaDatError as error:
            raise PageRefused(502, str(error)) from error

    async def _list(self, told: dict[str, str]) -> dict[str, Any]:
        wanted = LetterFilter(
            actor=told.get("actor"),
            error=told.get("error"),
            since=_number(told, "since"),
            until=_number(told, "until"),
        )
        limit = int(_number(told, "limit") or _SHOWN)
        shown: list[dict[str, Any]] = []
        more = False
        room = _MOST_TEXT
        found = self._run.dead_letters.search.stored(wanted, bus=told.get("bus"))
        async with contextlib.aclosing(found):
            async for bus, letter in found:
                if len(shown) >= min(limit, _MOST) or room < 0:
                    more = True
                    break
                room -= _text_of(letter)
                shown.append(letter.as_dict() | {"bus": bus})
        return self._about() | {"dead_letters": shown, "more": more}

    async def _show(self, name: str, told: dict[str, str]) -> dict[str, Any]:
        found = await self._run.dead_letters.search.show(name, bus=told.get("bus"))
        if found is None:
            raise PageRefused(404, f"there is no dead letter {quoted(name, 80)}")
        bus, letter = found
        return self._about() | {
            "dead_letter": letter.as_dict() | {"bus": bus},
            "envelope": _as_it_is(letter.envelope),
            "message": None if letter.message is None else _as_it_is(letter.message),
        }

    async def _change(self, name: str, what: str, told: dict[str, str]) -> dict[str, Any]:
        letters, bus = self._run.dead_letters, told.get("bus")
        if what == "replay":
            done = await letters.replay(name, bus=bus, anyway=told.get("anyway") == "1")
        else:
            done = await letters.discard(name, bus=bus)
        return self._about() | {"letter": done.letter, "outcome": done.outcome, "why": done.why}

    def _about(self) -> dict[str, Any]:
        identity = self._run.settings.identity
        return {"application": identity.application, "instance": identity.instance}


def _told(query: str) -> dict[str, str]:
    try:
        told = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=len(_OPTIONS)))
    except ValueError:
        raise PageRefused(400, f"there are only {', '.join(_OPTIONS)}") from None
    for name in told:
        if name not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise PageRefused(400, f"there is no {quoted(name, 40)}; there are {known}")
    return told


def _text_of(letter: StoredLetter) -> int:
    """Return how many characters of it are listed, which strangers may have chosen."""
    texts = (letter.name, letter.flaw, letter.topic, letter.source, letter.error, letter.text)
    return sum(len(text) for text in texts if text is not None)


def _number(told: dict[str, str], name: str) -> float | None:
    text = told.get(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e15:
        raise PageRefused(400, f"{name}={quoted(text, 40)}: give a number, 0 or more")
    return number


def _as_it_is(envelope: Envelope) -> dict[str, Any]:
    """Return a message with its payload in base64."""
    return {
        "topic": envelope.topic,
        "id": envelope.id,
        "source": envelope.source,
        "type": envelope.type,
        "time": envelope.time,
        "key": envelope.key,
        "content_type": envelope.content_type,
        "headers": dict(envelope.headers),
        "payload_base64": base64.b64encode(envelope.payload).decode(),
    }
