"""``spa-dat replay``."""

from __future__ import annotations

from collections import Counter

from ..errors import DecodeError
from ..harness._harness_core import plain
from ..runtime import Message
from ..testing import DeadLetter, Harness, NotSettled
from ..transports import Envelope
from ._application import load_application
from ._one_line import one_line
from ._standard_output import printing, write_text

__all__ = ["replay"]

_FAILED = 1
_LONGEST = 200


def replay(
    file: str, to: str, *, actor: str | None, keep_times: bool, keep_own: bool, seed: int
) -> int:
    """Put a recording into an application, and tell what comes of it; returns the exit code.

    Args:
        file: the recording.
        to: names the application.
        actor: only what this one got; None for all.
        keep_times: with the time between messages that there was.
        keep_own: also what the application itself has sent.
        seed: of everything random.
    """
    application = load_application(to)
    harness = Harness(application, seed=seed, allow_failures=BaseException)
    try:
        with harness:
            count = harness.replay(file, actor=actor, keep_times=keep_times, keep_own=keep_own)
    except NotSettled as error:
        _say("not settled", str(error), longest=None)
        return _FAILED
    with printing():
        _tell(harness, count)
    return _FAILED if harness.failures or harness.dead_letters() else 0


def _tell(harness: Harness, count: int) -> None:
    for message in harness.messages(type=bytes):
        _say("published", f"{message.topic}: {_payload(message)!r}")
    for text, times in Counter(str(failure) for failure in harness.failures).items():
        _say("failed", text if times == 1 else f"{times} times: {text}")
    letters = harness.dead_letters()
    for letter in letters:
        _say("dead letter", _described(letter))
    failures = len(harness.failures)
    _say("replayed", f"messages: {count}, failures: {failures}, dead letters: {len(letters)}")


def _payload(message: Message[bytes]) -> object:
    raw = message.payload
    try:
        return plain(Envelope(topic=message.topic, payload=raw, content_type=message.content_type))
    except DecodeError:
        return raw


def _described(letter: DeadLetter) -> str:
    return (
        f"{letter.topic} of {letter.actor} after {letter.attempts} attempts:"
        f" {letter.error}: {letter.text}"
    )


def _say(what: str, text: str, *, longest: int | None = _LONGEST) -> None:
    line = one_line(text)
    short = line if longest is None or len(line) <= longest else f"{line[:longest]}..."
    write_text(f"{what:<12} {short}\n")
