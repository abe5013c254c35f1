"""Texts and errors that come from anywhere: escaped and shortened, safe to show and to send."""

from __future__ import annotations

import re
import signal
import sys
import time
import traceback
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Any

__all__ = [
    "LONGEST_REMEMBERED",
    "bracketed",
    "describe",
    "describe_exit",
    "encodable",
    "error_name",
    "escaped",
    "forget_earlier",
    "inspectable",
    "is_cut",
    "quoted",
    "reason_of",
    "showable",
    "summary",
    "text_advice",
    "unfit_character",
]

_PLANES = range(1, 17)
_NON_CHARACTERS = "\ufdd0-\ufdef\ufffe\uffff" + "".join(
    f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in _PLANES
)
_CONTROLS = "\x00-\x1f\x7f-\x9f"
_SURROGATES = "\ud800-\udfff"
# These break lines, too, or reverse what follows.
_DECEPTIVE = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_UNFIT = re.compile(f"[{_CONTROLS}{_SURROGATES}{_NON_CHARACTERS}]")
_UNSHOWABLE = re.compile(f"[{_CONTROLS}{_SURROGATES}{_NON_CHARACTERS}{_DECEPTIVE}]")
LONGEST_REMEMBERED = 256
"""The length up to which texts from anywhere may be cached; longer ones would fill the cache."""
_CUT = "..."
_LONGEST_SHOWN = 4_000
_LONGEST_TOGETHER = 40_000
_LONGEST_NAME = 200
_MOST_SHOWN = 50
_MOST_NOTES = 20
_MOST_PROBLEMS = 1_000


def text_advice(value: object) -> str | None:
    """Return what to do about the value of an option that has to be a text; None if it is one."""
    if not isinstance(value, str) or not value:
        return "give a non-empty string, or leave it out"
    # Neither the operating system nor a broker takes it.
    return "leave out the character U+0000" if "\0" in value else None


def unfit_character(text: str) -> str | None:
    """Describe the first character that brokers may close the connection over; None without one.

    These are control characters, halves of surrogate pairs, and code points that are not characters
    (MQTT 5, section 1.5.4).
    """
    # None of them is printable, and this check is several times as fast.
    if text.isprintable():
        return None
    found = _UNFIT.search(text)
    if found is None:
        return None
    number = ord(found[0])
    if number == 0:
        return "a null character"
    if 0xD800 <= number <= 0xDFFF:
        return "half of a surrogate pair, which UTF-8 cannot carry"
    kind = "the control character" if number < 0xA0 else "no character but"
    return f"{kind} U+{number:04X}"


def escaped(text: str, longest: int = 1_000) -> str:
    r"""Return the text on one line, for logs and for headers; every bus can carry it.

    Line breaks, control characters and code points that are not characters become escapes such as
    ``\n`` and ``\x1b``; a text longer than ``longest`` characters is cut off and ends in ``...``.
    """
    if len(text) <= longest and text.isprintable():
        return text
    result = _UNSHOWABLE.sub(_escape, text[: longest + 1])
    return result if len(result) <= longest else result[: max(longest - len(_CUT), 0)] + _CUT


def is_cut(text: str) -> bool:
    """Return whether a text looks like one that `escaped` has cut off."""
    return text.endswith(_CUT)


def _escape(found: re.Match[str]) -> str:
    return "\\0" if found[0] == "\0" else repr(found[0])[1:-1]


def quoted(text: object, longest: int = 120) -> str:
    """Return the value as it would be written in a program, on one line.

    It is cut off after ``longest`` characters. Anything but a str is shown as its ``repr``, if that
    works.
    """
    if isinstance(text, str):
        return repr(text) if len(text) <= longest else f"{text[:longest]!r}{_CUT}"
    try:
        shown = repr(text)
    except BaseException:  # noqa: BLE001 (the class may be anybody's)
        shown = f"<{type(text).__name__}>"
    return escaped(shown, longest)


def bracketed(host: str) -> str:
    """Return a host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def ip_and_port(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    """Return the two parts of ``HOST:PORT``; ``localhost`` stands for 127.0.0.1.

    Raises:
        ValueError: the host is no IP address, version 6 in brackets; or the port is no number up to
            65535.
    """
    host, _, port = text.rpartition(":")
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    ip = ip_address("127.0.0.1" if plain == "localhost" else plain)
    if ip.version != (6 if plain != host else 4):
        raise ValueError(text)
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not 0 <= number <= 65535:
        raise ValueError(text)
    return ip, number


def encodable(text: str) -> str:
    """Return the text as UTF-8 can encode it, with ``?`` for halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def describe(error: BaseException) -> str:
    """Return the error's text, on one line that every bus can carry and every log can show."""
    text = _text_of(error)
    if isinstance(text, BaseException):
        text = f"(its text is not available: {error_name(text)})"
    return escaped(encodable(text))


def describe_exit(code: int) -> str:
    """Return in words how a process has ended, as in "was killed by SIGSEGV".

    Args:
        code: its exit code; negative the signal that has killed it.
    """
    if code >= 0:
        return f"has ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def error_name(error: BaseException) -> str:
    """Return the name of the error's class, on one line like `describe`."""
    return escaped(_name_of(type(error)), _LONGEST_NAME)


def reason_of(error: BaseException) -> str:
    """Return the error's class and text, as in ``ValueError: no sensor``; see `describe`."""
    return f"{error_name(error)}: {describe(error)}"


def inspectable(error: BaseException) -> BaseException:
    """Return the error, or a RuntimeError in its place if inspecting it raises.

    A class of the user's may compute what every error handler reads, and fail.
    """
    try:
        # It has been raised anew, perhaps with another text.
        _attributes(error).pop(_SLOW_TEXT, None)
        isinstance(error, _Nobody)
        bool(error)
        for name in _LOOKED_AT:
            getattr(error, name)
    except BaseException:  # noqa: BLE001 (the class may be anybody's)
        return RuntimeError(f"{error_name(error)}, which cannot be inspected: that raises, too")
    return error


def summary(error: object) -> str | None:
    """Return a substitute for the text of a pydantic error with very many problems, else None.

    Pydantic lists every problem, and a stranger can cause half a million with a message of 1 MiB:
    building the text takes seconds, and 100 times as much memory.
    """
    pydantic = sys.modules.get("pydantic_core")
    if pydantic is None or type(error) is not pydantic.ValidationError:
        return None
    count: int = error.error_count()  # type: ignore[attr-defined]
    return f"{count} problems, too many to list" if count > _MOST_PROBLEMS else None


def forget_earlier(error: BaseException, *, by_frame: bool = False) -> None:
    """Remove from the traceback what stems from earlier times that the same error was raised.

    An error object that is raised again and again keeps all frames that it has passed through, and
    what their variables refer to: messages, above all.

    Args:
        error: the error, just caught.
        by_frame: whether the code that catches it has the same frame each time, or only is the same
            code.
    """
    newest = error.__traceback__
    if not isinstance(newest, TracebackType):
        return
    frame, last = newest.tb_frame, newest
    while (entry := last.tb_next) is not None:
        if entry.tb_frame is frame or (not by_frame and entry.tb_frame.f_code is frame.f_code):
            last.tb_next = None
            return
        last = entry


class _Nobody(Exception): ...


_LOOKED_AT = ("__traceback__", "__cause__", "__context__", "__suppress_context__")


def showable(error: BaseException) -> BaseException:
    """Return the error as a log may show it with its traceback.

    That is the error itself, unless a text in it, or in what led to it, could forge lines of the
    log or control a terminal, is very long, or cannot be shown; then it is an error of the same
    name with the texts escaped and cut off, and no more groups and causes than anybody reads.
    """
    try:
        if _is_showable(error):
            return error
        stand_in = _StandIns().of(error)
        assert stand_in is not None
        traceback.TracebackException.from_exception(stand_in)
    except BaseException:  # noqa: BLE001 (the class may be anybody's)
        return RuntimeError(f"{error_name(error)}, which cannot be shown")
    return stand_in


def _is_showable(error: BaseException) -> bool:
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    count = size = 0
    while left:
        one = left.pop()
        if one is None:
            continue
        # An error is shown once for each group that contains it.
        count += 1
        if count > _MOST_SHOWN:
            return False
        texts = _texts_of(one)
        if texts is None:
            return False
        size += sum(map(len, texts))
        if size > _LONGEST_TOGETHER or any(
            len(text) > _LONGEST_SHOWN or _UNSHOWABLE.search(text) for text in texts
        ):
            return False
        for linked in (one.__cause__, one.__context__):
            if linked is not None and id(linked) not in seen:
                seen.add(id(linked))
                left.append(linked)
        if isinstance(one, BaseExceptionGroup):
            if len(one.exceptions) > _MOST_SHOWN:
                return False
            left += one.exceptions
    # Other parts may raise, too: suggested names, the line of a SyntaxError.
    try:
        traceback.TracebackException.from_exception(error)
    except BaseException:  # noqa: BLE001
        return False
    return True


def _texts_of(error: BaseException) -> list[str] | None:
    """Return all texts that a traceback shows of the error; None if they are too many."""
    if summary(error) is not None:
        return None
    kind = type(error)
    notes = getattr(error, "__notes__", ())
    text = _text_of(error)
    if _slow_text_of(error) is not None:
        # The traceback would put it into words again, and again.
        return None
    texts: list[Any] = [
        text if isinstance(text, str) else "",
        _name_of(kind),
        kind.__module__,
        kind.__qualname__,
    ]
    if isinstance(error, SyntaxError):
        texts += [text for text in (error.filename, error.text) if text is not None]
    if not isinstance(notes, list | tuple) or len(notes) > _MOST_NOTES:
        return None
    texts += notes
    return texts if all(type(text) is str for text in texts) else None


def _text_of(error: object) -> str | BaseException:
    """Return its text; what was raised instead, if it has none."""
    if (short := summary(error)) is not None:
        return short
    if (known := _slow_text_of(error)) is not None:
        return known
    began = time.perf_counter()
    text: str | BaseException
    try:
        # Not one of a subclass, whose methods may do anything.
        text = str.__str__(str(error))
    except BaseException as broken:  # noqa: BLE001 (the class may be anybody's)
        text = BaseException.with_traceback(broken, None)
    if isinstance(error, BaseException) and time.perf_counter() - began > _SLOW:
        _attributes(error)[_SLOW_TEXT] = text
    return text


# Seconds. A text that takes longer is made once for each time that the error is raised: logs, dead
# letters and replies all want it, and the event loop waits.
_SLOW = 0.02
_SLOW_TEXT = "_spa_dat_slow_text"


def _slow_text_of(error: object) -> str | BaseException | None:
    """Return a text that is remembered because it takes long; None for others."""
    if not isinstance(error, BaseException):
        return None
    text: str | BaseException | None = _attributes(error).get(_SLOW_TEXT)
    return text


def _attributes(error: BaseException) -> dict[str, Any]:
    # What a class of one's own says of its attributes is not looked at.
    attributes: dict[str, Any] = object.__getattribute__(error, "__dict__")
    return attributes


def _name_of(kind: type) -> str:
    # A metaclass might override the name.
    name: str = vars(type)["__name__"].__get__(kind)
    return name


class _StandIns:
    """Makes harmless errors that show what others show; a limited number of them."""

    def __init__(self) -> None:
        # None for a stand-in that is being made.
        self._made: dict[int, BaseException | None] = {}

    def of(self, error: BaseException) -> BaseException | None:
        """Return the stand-in; None if it is still being made, or if there are enough."""
        if id(error) in self._made:
            return self._made[id(error)]
        if len(self._made) >= _MOST_SHOWN:
            return None
        self._made[id(error)] = None
        stand_in = self._made[id(error)] = self._make(error)
        stand_in.__traceback__ = error.__traceback__
        if (cause := error.__cause__) is not None:
            stand_in.__cause__ = self.of(cause)
        if (context := error.__context__) is not None:
            stand_in.__context__ = self.of(context)
        stand_in.__suppress_context__ = error.__suppress_context__
        notes = getattr(error, "__notes__", ())
        for note in notes[:_MOST_NOTES] if isinstance(notes, list | tuple) else ():
            stand_in.add_note(_shown(note))
        return stand_in

    def _make(self, error: BaseException) -> BaseException:
        if isinstance(error, BaseExceptionGroup):
            parts: list[BaseException] = []
            for part in error.exceptions:
                # Each only once: groups of groups could take forever to show.
                known = None if id(part) in self._made else self.of(part)
                if known is not None:
                    parts.append(known)
            if len(parts) < len(error.exceptions):
                parts.append(Exception(f"{len(error.exceptions) - len(parts)} more"))
            return BaseExceptionGroup(_shown(error.message), parts)
        kind = type(error)
        module = kind.__module__
        names = {
            "__module__": escaped(module, _LONGEST_NAME) if isinstance(module, str) else "?",
            "__qualname__": escaped(kind.__qualname__, _LONGEST_NAME),
        }
        made: BaseException = type(error_name(error), (Exception,), names)(_shown(error))
        return made


def _shown(value: object) -> str:
    text = _text_of(value)
    return escaped(text) if isinstance(text, str) else ""
