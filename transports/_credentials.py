"""Secrets in configurations, which never show in logs, errors or representations."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import inspect
import json
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self, TypeAlias
from weakref import WeakKeyDictionary

from .._environment import Environment
from .._texts import quoted, text_advice
from ..errors import ConfigurationError

__all__ = [
    "AskForPassword",
    "PasswordFile",
    "PasswordFunction",
    "PasswordUnavailable",
    "Secret",
    "as_secret",
    "password_from",
]

AskForPassword: TypeAlias = Callable[[], str | Awaitable[str]]
"""A function, ``async`` or not, that returns the password or token to log in with now."""

_LONGEST = 65_535
_LONGEST_REASON = 300
# A token is used for this part of the time that it had left when it came.
_USED = 0.8
_PARTS_OF_A_TOKEN = 3
_LONGEST_PATH = 4_096


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

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        # What holds it may be copied: dataclasses.asdict does so.
        return self

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


class PasswordUnavailable(OSError):
    """A function did not return a password: as if the broker could not be reached."""


class PasswordFunction(Secret):
    """A password, usually a token, that a function returns whenever somebody logs in.

    A JSON Web Token that says when it ends is kept until 80 % of its time is over or it is refused,
    so that many connections ask for one once. Anything else is asked for each time.

    Args:
        owner: the configuration that has the function, for errors.
        function: is called on the event loop if it is ``async``, otherwise in a thread.
        environment: tells the time.

    Raises:
        ConfigurationError: it cannot be called.
    """

    __slots__ = ("_calls", "_environment", "_function", "_kept_until", "_owner")

    def __init__(
        self, owner: str, function: AskForPassword, environment: Environment | None = None
    ) -> None:
        if not callable(function):
            raise ConfigurationError(
                f"option password_function of {owner} is a {type(function).__name__}:"
                " give a function without parameters that returns the password"
            )
        super().__init__("")
        self._owner = owner
        self._function = function
        self._environment = environment or Environment()
        self._kept_until = 0.0
        self._calls: WeakKeyDictionary[asyncio.AbstractEventLoop, _PasswordCall] = (
            WeakKeyDictionary()
        )

    async def ask(self, timeout: float) -> str:
        """Return the password to log in with now, within ``timeout`` seconds.

        Raises:
            PasswordUnavailable: the function raised something, or takes too long.
            ConfigurationError: it returned something that is not a password.
        """
        if self._value and self._environment.now() < self._kept_until:
            return self._value
        loop = asyncio.get_running_loop()
        call = self._calls.get(loop)
        if call is None:
            call = self._calls[loop] = _PasswordCall(self._function)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                given = await call.result()
        except Exception as error:
            if limit.expired():
                raise PasswordUnavailable(
                    f"{self._name} has not returned within {timeout:g} s"
                ) from None
            raise self._failed(error) from error
        finally:
            if call.over and self._calls.get(loop) is call:
                del self._calls[loop]
        self._value = self._checked(given)
        now = self._environment.now()
        ends = _end_of_token(self._value)
        self._kept_until = 0.0 if ends is None else now + (ends - now) * _USED
        return self._value

    def forget(self) -> None:
        """Ask again next time, however much time the token has left: it was refused."""
        self._kept_until = 0.0

    def _failed(self, error: Exception) -> PasswordUnavailable:
        said = f": {quoted(str(error), _LONGEST_REASON)}" if str(error) else ""
        return PasswordUnavailable(f"{self._name} raised {type(error).__name__}{said}")

    def _checked(self, given: object) -> str:
        if inspect.iscoroutine(given):
            given.close()
            raise ConfigurationError(
                f"{self._name} returned a coroutine: define it with 'async def'"
            )
        value = given.reveal() if isinstance(given, Secret) else given
        if not isinstance(value, str) or not value:
            what = "an empty string" if value == "" else f"a {type(value).__name__}"
            raise ConfigurationError(
                f"{self._name} returned {what}: it must return the password as a str"
            )
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise ConfigurationError(f"{self._name} returned half of a surrogate pair") from None
        if size > _LONGEST:
            raise ConfigurationError(f"{self._name} returned more than {_LONGEST} bytes")
        return value

    @property
    def _name(self) -> str:
        name = getattr(self._function, "__qualname__", type(self._function).__qualname__)
        return f"the function {name!r} of option password_function of {self._owner}"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PasswordFunction):
            return self._function == other._function
        return False

    def __hash__(self) -> int:
        return hash((PasswordFunction, self._function))


class _PasswordCall:
    """A call of a function that several wait for.

    One that is ``async`` is cancelled when nobody waits any more. A thread cannot be ended: who
    asks next waits for the same call, so that a function that hangs has one thread at most.
    """

    def __init__(self, function: AskForPassword) -> None:
        self._waiting = 0
        self._ends_unheard = is_async = _is_async(function)
        self._future: asyncio.Future[object] = (
            asyncio.ensure_future(function()) if is_async else _in_a_thread(function)  # type: ignore[arg-type]
        )

    @property
    def over(self) -> bool:
        return self._future.done() or (self._ends_unheard and not self._waiting)

    async def result(self) -> object:
        self._waiting += 1
        try:
            return await asyncio.shield(self._future)
        finally:
            self._waiting -= 1
            if self._ends_unheard and not self._waiting:
                self._future.cancel()


def _is_async(function: AskForPassword) -> bool:
    called = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


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
    config: object,
    password: Secret | str | None,
    variable: str | None,
    file: str | None,
    function: AskForPassword | None = None,
) -> Secret | None:
    """Return the password: given as it is, or where it can be found.

    That is an environment variable, the first line of a file, which is read again each time the
    password is revealed, or a function.

    Raises:
        ConfigurationError: more than one was given, or it is not found where it should be.
    """
    owner = type(config).__name__
    for option, name in (("password_env", variable), ("password_file", file)):
        advice = None if name is None else text_advice(name)
        if advice is not None:
            raise ConfigurationError(f"option {option}={quoted(name)} of {owner}: {advice}")
    given = [
        option
        for option, value in (
            ("password", password),
            ("password_env", variable),
            ("password_file", file),
            ("password_function", function),
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
                f"option password_env={quoted(variable)} of {owner}:"
                " there is no such environment variable; set it, or name another"
            )
        return Secret(value)
    if file is not None:
        return PasswordFile(owner, file)
    if function is not None:
        return PasswordFunction(owner, function)
    return as_secret(config, "password", password)


def _in_a_thread(function: Callable[[], object]) -> asyncio.Future[object]:
    """Call a function in a thread of its own, for which neither a stop nor the program's end waits.

    Threads of the loop's executor are waited for, and a function that asks a server may hang.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[object] = loop.create_future()

    def finish(result: object, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def call() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:  # noqa: BLE001
            error = raised
        # Nobody waits any more once the loop is closed.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=call, name="spa_dat password", daemon=True).start()
    return done


def _end_of_token(token: str) -> float | None:
    """Return when a JSON Web Token ends, in seconds since 1970; None for anything else."""
    parts = token.split(".")
    if len(parts) != _PARTS_OF_A_TOKEN:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        ends = float(claims["exp"])
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return None
    return ends


def _read_password(owner: str, file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            line = opened.readline(_LONGEST + 2)
        # Some editors put a byte order mark in front of UTF-8.
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(
            f"option password_file={quoted(file, _LONGEST_PATH)} of {owner} cannot be"
            f" read: {reason}; check that it is there, and who may read it"
        ) from None
    if len(line) > _LONGEST + 1:
        raise ConfigurationError(
            f"option password_file={quoted(file, _LONGEST_PATH)} of {owner}: the first line"
            f" has more than {_LONGEST} bytes, so it is not a password"
        )
    return text
