"""``spa-dat replay``."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ..errors import ConfigurationError, DecodeError
from ..harness._harness_core import plain
from ..runtime import DistributedApplication, Message
from ..runtime.recording._recording_writer import RecordingWriter
from ..testing import DeadLetter, Harness, NotSettled
from ..transports import Envelope
from ._application import load_application
from ._history import write_history
from ._one_line import one_line
from ._standard_output import printing, write_notice, write_text
from ._terminal import BAD, LABEL, styled

__all__ = ["replay"]

_FAILED = 1
_LONGEST = 200
_GOOD = ("published", "replayed")


def replay(
    source: str,
    to: str,
    *,
    actor: str | None,
    topics: Sequence[str],
    since: datetime | None,
    until: datetime | None,
    keep_times: bool,
    keep_own: bool,
    seed: int,
) -> int:
    """Put a recording into an application, and tell what comes of it; returns the exit code.

    Args:
        source: the file with the recording, or the address of a cluster.
        to: names the application.
        actor: only what this one got; None for all.
        topics: of the cluster.
        since: the time from which on its topics are read.
        until: the time up to which they are; None for all that they hold.
        keep_times: with the time between messages that there was.
        keep_own: also what the application itself has sent.
        seed: of everything random.
    """
    application = load_application(to)
    if "://" in source:
        if since is None:
            raise ConfigurationError(
                "replaying topics of a cluster needs the time from which on: give --since"
            )
        with tempfile.TemporaryDirectory(prefix="spa-dat-") as folder:
            file = str(Path(folder) / "history.jsonl")
            writer = RecordingWriter(
                file, limit=None, max_bytes=None, redact=None, existing="refuse"
            )
            write_history(source, topics, writer, since=since, until=until)
            if writer.problem is not None:
                raise ConfigurationError(f"{file!r} cannot be written: {writer.problem}")
            if writer.skipped:
                write_notice(f"messages that are missing: {writer.skipped}")
            return _replay(application, file, actor, keep_times, keep_own, seed)
    if topics or since is not None or until is not None:
        raise ConfigurationError(
            "--topic, --since and --until are for topics of a cluster: give its address in place of"
            f" the file {source!r}"
        )
    return _replay(application, source, actor, keep_times, keep_own, seed)


def _replay(
    application: DistributedApplication,
    file: str,
    actor: str | None,
    keep_times: bool,
    keep_own: bool,
    seed: int,
) -> int:
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
    write_text(f"{styled(f'{what:<12}', LABEL if what in _GOOD else BAD)} {short}\n")
