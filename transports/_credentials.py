"""Secrets in configurations, which never show in logs, errors or representations."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from ..errors import ConfigurationError

__all__ = ["PasswordFile", "Secret", "as_secret", "password_from"]

_LONGEST = 65_535


class Secret:
    """A password or key that never shows itself.

    Its ``repr``, its ``str`` and whatever is formatted from it are ``***``. Two secrets are equal
    if their values are. It cannot be pickled.

    Args:
        value: what to hide; a Secret is used as it is.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str | Secret) -> None:
        self._value: str = value._value if isinstance(value, Secret) else value

    def reveal(self) -> str:
        """Return the value. Only for the call that passes it to the broker's client."""
        return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_encoded(self._value), _encoded(other._value))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret cannot be pickled: pass the password in another way")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class PasswordFile(Secret):
    """A password in the first line of a file, where it may be changed at any time.

    Args:
        owner: the configuration that names the file, for errors.
        file: its path.

    Raises:
        ConfigurationError: it cannot be read; so does `reveal`.
    """

    __slots__ = ("_owner", "file")

    def __init__(self, owner: str, file: str) -> None:
        super().__init__(_read_password(owner, file))
        self._owner = owner
        self.file = file

    def reveal(self) -> str:
        """Return what the file contains now; what a pipe, which can be read once, had contained."""
        path = Path(self.file)
        # Waiting for the writer of a pipe would block the event loop.
        if not path.is_fifo() and not path.is_char_device():
            self._value = _read_password(self._owner, self.file)
        return self._value

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PasswordFile):
            return self.file == other.file
        return super().__eq__(other)

    def __hash__(self) -> int:
        return hash((PasswordFile, self.file))


def as_secret(config: object, option: str, value: Secret | str | None) -> Secret | None:
    """Return the value of a secret option, however it was given.

    Raises:
        ConfigurationError: it is neither a string nor a `Secret`; shows only its type.
    """
    if value is None:
        return None
    if isinstance(value, Secret):
        return value
    if isinstance(value, str):
        return Secret(value)
    raise ConfigurationError(
        f"option {option} of {type(config).__name__} is a {type(value).__name__}:"
        " give a string or a Secret"
    )


def password_from(
    config: object, password: Secret | str | None, variable: str | None, file: str | None
) -> Secret | None:
    """Return the password: given as it is, in an environment variable, or as a file's first line.

    A file is read again each time its password is revealed.

    Raises:
        ConfigurationError: more than one was given, or it is not found where it should be.
    """
    owner = type(config).__name__
    given = [
        option
        for option, value in (
            ("password", password),
            ("password_env", variable),
            ("password_file", file),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigurationError(
            f"options {' and '.join(given)} of {owner} are mutually exclusive: give one of them"
        )
    if variable is not None:
        value = os.environ.get(variable)
        if value is None:
            raise ConfigurationError(
                f"option password_env={variable!r} of {owner}:"
                " there is no such environment variable; set it, or name another"
            )
        return Secret(value)
    if file is not None:
        return PasswordFile(owner, file)
    return as_secret(config, "password", password)


def _read_password(owner: str, file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            line = opened.readline(_LONGEST + 2)
        # Some editors put a byte order mark in front of UTF-8.
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(
            f"option password_file={file!r} of {owner} cannot be read: {reason}"
        ) from None
    if len(line) > _LONGEST + 1:
        raise ConfigurationError(
            f"option password_file={file!r} of {owner}: the first line has more than {_LONGEST}"
            " bytes, so it is not a password"
        )
    return text
