"""Texts that come from anywhere, made fit to be shown and sent."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = [
    "describe",
    "error_name",
    "escaped",
    "inspectable",
    "quoted",
    "showable",
    "unfit_character",
]

_PLANES = range(1, 17)
_NON_CHARACTERS = "\ufdd0-\ufdef\ufffe\uffff" + "".join(
    f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in _PLANES
)
_CONTROLS = "\x00-\x1f\x7f-\x9f"
_SURROGATES = "\ud800-\udfff"
# They break lines too, or turn what follows around.
_DECEPTIVE = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_UNFIT = re.compile(f"[{_CONTROLS}{_SURROGATES}{_NON_CHARACTERS}]")
_UNSHOWABLE = re.compile(f"[{_CONTROLS}{_SURROGATES}{_NON_CHARACTERS}{_DECEPTIVE}]")
_CUT = "..."
_LONGEST_SHOWN = 4_000
_LONGEST_NAME = 200
_MOST_SHOWN = 50


def unfit_character(text: str) -> str | None:
    """Which character of the text brokers may end the connection over, in words, if one is.

    These are control characters, halves of surrogate pairs, and code points that are no characters
    (MQTT 5, section 1.5.4).
    """
    # None of them is printable, and this is several times as fast.
    if text.isprintable():
        return None
    found = _UNFIT.search(text)
    if found is None:
        return None
    number = ord(found[0])
    if number == 0:
        return "a null character"
    if 0xD800 <= number <= 0xDFFF:
        return "half of a surrogate pair, which UTF-8 can not carry"
    kind = "the control character" if number < 0xA0 else "no character but"
    return f"{kind} U+{number:04X}"


def escaped(text: str, longest: int = 1_000) -> str:
    """The text in one line, for logs and for the runtime's own headers; every bus can carry it.

    Line breaks, control characters and what is no character become escapes such as ``\\n`` and
    ``\\x1b``; a text longer than ``longest`` characters is cut off and ends in ``...``.
    """
    if len(text) <= longest and text.isprintable():
        return text
    result = _UNSHOWABLE.sub(_escape, text[: longest + 1])
    return result if len(result) <= longest else result[: max(longest - len(_CUT), 0)] + _CUT


def _escape(found: re.Match[str]) -> str:
    return "\\0" if found[0] == "\0" else repr(found[0])[1:-1]


def quoted(text: object, longest: int = 120) -> str:
    """The value as it would be written in a program, in one line; cut off after ``longest``
    characters of it.

    Anything but a str shows as its ``repr``, if it has one.
    """
    if isinstance(text, str):
        return repr(text) if len(text) <= longest else f"{text[:longest]!r}{_CUT}"
    try:
        shown = repr(text)
    except BaseException:  # noqa: BLE001 (the class may be anybody's)
        shown = f"<{type(text).__name__}>"
    return escaped(shown, longest)


def describe(error: BaseException) -> str:
    """The error's text, in one line that every bus can carry and every log can show."""
    try:
        text = str(error)
    except BaseException as broken:  # noqa: BLE001 (the class may be anybody's)
        text = f"(its text can not be had: {error_name(broken)})"
    return escaped(text.encode("utf-8", "replace").decode())


def error_name(error: BaseException) -> str:
    """The name of the error's class, likewise."""
    return escaped(type(error).__name__, _LONGEST_NAME)


def reason_of(error: BaseException) -> str:
    """The error's class and text, likewise, as in ``ValueError: no sensor``."""
    return f"{error_name(error)}: {describe(error)}"


def inspectable(error: BaseException) -> BaseException:
    """The error, or a RuntimeError in its place when looking at it raises.

    A class of one's own may compute what every handler of errors asks for, and fail at it.
    """
    try:
        isinstance(error, _Nobody)
        bool(error)
        for name in _LOOKED_AT:
            getattr(error, name)
    except BaseException:  # noqa: BLE001 (the class may be anybody's)
        return RuntimeError(f"{error_name(error)}, at which nobody can look: that raises, too")
    return error


class _Nobody(Exception): ...


_LOOKED_AT = ("__traceback__", "__cause__", "__context__", "__suppress_context__")


def showable(error: BaseException) -> BaseException:
    """The error as a log may show it with its traceback.

    It is the error itself unless a text in it, or in what led to it, could forge lines of the log
    or control a terminal, or is very long; then it is one of the same name, with the texts escaped
    and cut off.
    """
    return error if all(map(_is_showable, _chain(error))) else _stand_in(error, {})


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: dict[int, BaseException] = {}
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen[id(one)] = one
        yield one
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def _is_showable(error: BaseException) -> bool:
    texts = (_text_of(error), type(error).__name__, *getattr(error, "__notes__", ()))
    return not any(
        len(text) > _LONGEST_SHOWN or _UNSHOWABLE.search(text) for text in map(str, texts)
    )


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 (the class may be anybody's)
        return ""


def _stand_in(error: BaseException, made: dict[int, BaseException]) -> BaseException:
    text = escaped(_text_of(error), _LONGEST_SHOWN)
    stand_in: BaseException
    if isinstance(error, BaseExceptionGroup):
        parts = [_stand_in(one, made) for one in error.exceptions[:_MOST_SHOWN]]
        stand_in = BaseExceptionGroup(escaped(error.message), parts)
    else:
        kind = type(error)
        names = {"__module__": kind.__module__, "__qualname__": escaped(kind.__qualname__)}
        stand_in = type(escaped(kind.__name__), (Exception,), names)(text)
    made[id(error)] = stand_in
    stand_in.__traceback__ = error.__traceback__
    stand_in.__suppress_context__ = error.__suppress_context__
    for link in ("__cause__", "__context__"):
        linked = getattr(error, link)
        if linked is not None:
            known = made.get(id(linked))
            if known is None and len(made) < _MOST_SHOWN:
                known = _stand_in(linked, made)
            setattr(stand_in, link, known)
    stand_in.__suppress_context__ = error.__suppress_context__
    for note in getattr(error, "__notes__", ()):
        stand_in.add_note(escaped(str(note)))
    return stand_in
