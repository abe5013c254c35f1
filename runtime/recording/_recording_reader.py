"""Reading the file of a recording."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import msgspec

from ..._logs import get_logger
from ..._texts import escaped
from ...errors import ConfigurationError
from ...transports import check_topic
from ._recording_format import FORMAT, Receipt

__all__ = ["read_recording"]

log = get_logger("spa_dat")

_LONGEST_TOPIC = 65_535


class _Version(msgspec.Struct):
    version: int


_decoder = msgspec.json.Decoder(Receipt)
_version_decoder = msgspec.json.Decoder(_Version)


def read_recording(file: str | PathLike[str]) -> Iterator[tuple[int, Receipt]]:
    """Yield the line number and the message of each line of a recording, in order.

    An incomplete last line, as a killed process leaves it, is skipped.

    Raises:
        ConfigurationError: the file cannot be read, or a line is not a message; says which.
    """
    path = Path(file)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                # Editors on Windows add one.
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    receipt = _read(path, number, line)
                    if receipt is not None:
                        yield number, receipt
    except OSError as error:
        raise ConfigurationError(
            f"recording {str(path)!r} cannot be read: {error.strerror or error}"
        ) from error


def _read(path: Path, number: int, line: bytes) -> Receipt | None:
    try:
        # First, because in another version everything else may be different.
        version = _version_decoder.decode(line).version
        if version != FORMAT:
            raise ValueError(
                f"it has version {version}, but this program reads version {FORMAT}; a newer"
                " program may be able to read it"
            )
        receipt = _decoder.decode(line)
        # Topics of the brokers themselves begin with $. Whatever a broker has delivered is read;
        # whether a simulated broker accepts it is checked when it is published there.
        check_topic(escaped(receipt.topic.removeprefix("$"), _LONGEST_TOPIC))
        if receipt.qos not in (0, 1, 2):
            raise ValueError(f"qos is {receipt.qos}, but must be 0, 1 or 2")
    except RecursionError as error:
        raise ConfigurationError(
            f"recording {str(path)!r}, line {number}: it is nested too deeply; remove the line"
        ) from error
    except (ValueError, ConfigurationError) as error:
        if not line.endswith(b"\n") and _is_cut_short(error):
            log.warning("recording %s: its last line, %d, is incomplete", path, number)
            return None
        raise ConfigurationError(
            f"recording {str(path)!r}, line {number}: {error}; fix the line or remove it"
        ) from error
    return receipt


def _is_cut_short(error: Exception) -> bool:
    """Return whether a line is not JSON at all, rather than JSON with wrong content."""
    return isinstance(error, msgspec.DecodeError | UnicodeDecodeError) and not isinstance(
        error, msgspec.ValidationError
    )
