"""The address of an admin endpoint: checked, and who may know details there."""

from __future__ import annotations

import errno
import hmac
import os
import socket
from ipaddress import IPv4Address, IPv6Address

from ..._texts import bracketed, ip_and_port, quoted
from ...errors import ConfigurationError

__all__ = ["TOKEN_VARIABLE", "AdminAddress"]

TOKEN_VARIABLE = "SPA_DAT_ADMIN_TOKEN"  # noqa: S105 (its name)
"""The environment variable with the token, for applications and for those who ask them."""

_ADDRESS = "SPA_DAT_ADMIN"
_FROM_ENVIRONMENT = f"{_ADDRESS}="
_LEAST_TOKEN = 16
_MOST_WAITING = 64


class AdminAddress:
    """The address of an admin endpoint, and the token that it asks for.

    Args:
        text: ``HOST:PORT`` with an IP address, in brackets for version 6, or ``localhost``; port 0
            for any that is free.
        token: what those who want details have to know; None for nothing.
        whose: what gave the text, for errors.

    Raises:
        ConfigurationError: it is no such address, or others can reach it and there is no token.
    """

    def __init__(self, text: str, token: str | None, whose: str = "admin=") -> None:
        wrong = f"{whose}{quoted(text) if isinstance(text, str) else repr(text)}"
        self.ip: IPv4Address | IPv6Address
        self.port: int
        try:
            self.ip, self.port = ip_and_port(text if isinstance(text, str) else "")
        except ValueError:
            raise ConfigurationError(
                f"{wrong}: give HOST:PORT with an IP address and a port up to 65535, for example"
                " 127.0.0.1:8085 or [::1]:8085"
            ) from None
        if token is not None and not _is_token(token):
            raise ConfigurationError(
                f"the token for {wrong} has to be at least {_LEAST_TOKEN} printable ASCII"
                " characters long, without white space at its beginning or end"
            )
        if token is None and not self.ip.is_loopback:
            raise ConfigurationError(
                f"{wrong}: others can reach that address, so it needs a token: set"
                f" {TOKEN_VARIABLE}, or give 127.0.0.1"
            )
        self._token = token
        self._whose = whose

    @classmethod
    def given(
        cls, text: str | None, token: str | None, whose: str = "admin="
    ) -> AdminAddress | None:
        """Return the address from what was given, or else the environment; None without one.

        An empty text is none.
        """
        if text is None:
            text, whose = os.environ.get(_ADDRESS), _FROM_ENVIRONMENT
        token = token if token is not None else os.environ.get(TOKEN_VARIABLE)
        return cls(text, token or None, whose) if text else None

    @property
    def is_everybodys(self) -> bool:
        """Whether it is from the environment, which all applications of a process share."""
        return self._whose == _FROM_ENVIRONMENT

    def moved(self, places: int) -> AdminAddress:
        """Return the address with a port so many places higher; port 0 stays."""
        port = self.port + places if self.port else 0
        return AdminAddress(f"{bracketed(str(self.ip))}:{port}", self._token, self._whose)

    def allows(self, authorization: str | None) -> bool:
        """Return whether somebody who sends this header may know details."""
        if self._token is None:
            return True
        given = (authorization or "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, f"Bearer {self._token}".encode())

    def bound(self) -> socket.socket:
        """Return a socket that listens there.

        Raises:
            ConfigurationError: it cannot.
        """
        v6 = self.ip.version == 6
        listening = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((str(self.ip), self.port))
            listening.listen(_MOST_WAITING)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            why = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                why = "the port is in use by another program or application; give another one"
            raise ConfigurationError(f"{self}: {why}") from error
        return listening

    def __str__(self) -> str:
        return f"{self._whose}{bracketed(str(self.ip))}:{self.port}"


def _is_token(text: str) -> bool:
    # No other one arrives as it was sent: whoever reads a header takes off white space at its ends.
    is_sent = text.isascii() and text.isprintable() and text == text.strip()
    return is_sent and len(text) >= _LEAST_TOKEN
