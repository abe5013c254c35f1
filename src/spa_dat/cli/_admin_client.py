"""A client of the admin endpoint of a running application, for commands."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
from collections.abc import Iterator, Mapping

from .._texts import bracketed, escaped
from ..errors import ConfigurationError, ConnectFailed, NotAuthorised
from ..runtime.options._admin_address import TOKEN_VARIABLE, AdminAddress

__all__ = ["AdminClient", "Unanswered", "connected"]

_LONGEST = 100_000_000
_LONGEST_TEXT = 500


class Unanswered(ConnectFailed):
    """Somebody is there, and has not answered in time."""


class AdminClient:
    """Asks one admin endpoint, with the token that is in the environment.

    Args:
        admin: its address.
        whose: what gave the address, for errors.

    Attributes:
        where: host and port.

    Raises:
        ConfigurationError: it is not such an address, or it needs a token.
    """

    def __init__(self, admin: str, whose: str) -> None:
        token = os.environ.get(TOKEN_VARIABLE) or None
        address = AdminAddress(admin, token, whose)
        self._host, self._port = str(address.ip), address.port
        self.where = f"{bracketed(self._host)}:{self._port}"
        self._headers: Mapping[str, str] = {
            "Content-Type": "application/json",
            **({} if token is None else {"Authorization": f"Bearer {token}"}),
        }

    def ask(
        self,
        method: str,
        line: str,
        body: bytes | None = None,
        *,
        timeout: float,
        most: int = _LONGEST,
    ) -> tuple[int, bytes]:
        """Return the status of the answer and its body.

        Args:
            method: of HTTP.
            line: path and query.
            body: JSON, if there is anything to be sent.
            timeout: seconds to wait for the whole of it.
            most: bytes that the body may have.

        Raises:
            ConfigurationError: the body is larger; no more than that is read.
            ConnectFailed: nobody answers there.
            Unanswered: not in time.
            NotAuthorised: it asks for another token.
        """
        try:
            with connected(self._host, self._port, timeout) as connection:
                connection.request(method, line, body, headers=dict(self._headers))
                answer = connection.getresponse()
                data = answer.read(most + 1)
        except TimeoutError as error:
            raise Unanswered(f"{self.where} has not answered for {timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectFailed(
                f"no application answers at {self.where}: {escaped(str(error), 200)}; start it with"
                f" --admin {self.where}"
            ) from error
        if answer.status == 401:
            raise NotAuthorised(
                f"{self.where} requires a token: set {TOKEN_VARIABLE} to the application's"
            )
        if len(data) > most:
            raise ConfigurationError(
                f"{self.where} answers {escaped(line, 100)} with more than {most // 1_000_000} MB,"
                " which is too large and is not read"
            )
        return answer.status, data

    def refusal(self, status: int, data: bytes) -> ConfigurationError:
        """Return the error for an answer with another status than the request is meant to get."""
        text = data[: 2 * _LONGEST_TEXT].decode("utf-8", "replace").strip()
        return ConfigurationError(
            f"{self.where} answers with {status}: {escaped(text, _LONGEST_TEXT)}"
        )

    def misunderstanding(self, error: Exception) -> ConfigurationError:
        """Return the error for an answer that cannot be read.

        Args:
            error: what reading it has raised.
        """
        text = escaped(str(error), 200)
        return ConfigurationError(
            f"{self.where} answers what this version does not understand: {text}"
        )


@contextlib.contextmanager
def connected(host: str, port: int, timeout: float) -> Iterator[http.client.HTTPConnection]:
    """Connect to a server for one request; what takes longer than the timeout is ended.

    The timeout of a socket begins anew with each byte, so without this a server could drip its
    answer for ever.

    Raises:
        TimeoutError: it took too long.
        OSError: it cannot be reached, or ends the connection.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    is_over = threading.Event()
    try:
        connection.connect()
        sock: socket.socket = connection.sock

        def end() -> None:
            is_over.set()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(min(timeout, threading.TIMEOUT_MAX), end)
        timer.daemon = True
        timer.start()
        try:
            yield connection
        except (OSError, http.client.HTTPException):
            if not is_over.is_set():
                raise
        finally:
            timer.cancel()
        if is_over.is_set():
            # What was read until then may look like all of it.
            raise TimeoutError(f"no whole answer within {timeout:g} s")
    finally:
        connection.close()
