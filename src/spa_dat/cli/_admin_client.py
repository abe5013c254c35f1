"""A client of the admin endpoint of a running application, for commands."""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping

from .._texts import bracketed, escaped
from ..errors import ConnectFailed, NotAuthorised
from ..runtime.options._admin_address import AdminAddress

__all__ = ["AdminClient", "Unanswered"]

_TOKEN = "SPA_DAT_ADMIN_TOKEN"  # noqa: S105 (its name)
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
        ConfigurationError: it is no such address, or it needs a token.
    """

    def __init__(self, admin: str, whose: str) -> None:
        token = os.environ.get(_TOKEN) or None
        address = AdminAddress(admin, token, whose)
        self._host, self._port = str(address.ip), address.port
        self.where = f"{bracketed(self._host)}:{self._port}"
        self._headers: Mapping[str, str] = {
            "Content-Type": "application/json",
            **({} if token is None else {"Authorization": f"Bearer {token}"}),
        }

    def ask(
        self, method: str, line: str, body: bytes | None = None, *, timeout: float
    ) -> tuple[int, bytes]:
        """Return the status of the answer and its body, of at most 100 MB.

        Args:
            method: of HTTP.
            line: path and query.
            body: JSON, if there is anything to be sent.
            timeout: seconds for each step of it.

        Raises:
            ConnectFailed: nobody answers there.
            Unanswered: not in time.
            NotAuthorised: it asks for another token.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.request(method, line, body, headers=dict(self._headers))
            answer = connection.getresponse()
            data = answer.read(_LONGEST)
        except TimeoutError as error:
            raise Unanswered(f"{self.where} has not answered for {timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectFailed(
                f"no application answers at {self.where}: {escaped(str(error), 200)}; start it with"
                f" --admin {self.where}"
            ) from error
        finally:
            connection.close()
        if answer.status == 401:
            raise NotAuthorised(
                f"{self.where} asks for a token: set {_TOKEN} to that of the application"
            )
        return answer.status, data

    @staticmethod
    def shown(data: bytes) -> str:
        """Return what an answer says, in one line."""
        return escaped(data[: 2 * _LONGEST_TEXT].decode("utf-8", "replace").strip(), _LONGEST_TEXT)
