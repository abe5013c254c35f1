"""A real Mosquitto broker for tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ._broker_process import BrokerProcess
from ._certificates import make_certificates
from ._errors import BrokerUnavailable

__all__ = ["Mosquitto"]

_DURABLE = (
    "persistence true",
    "autosave_on_changes true",
    "autosave_interval 1",
    "max_queued_messages 0",
)


class Mosquitto(BrokerProcess):
    """A Mosquitto process on 127.0.0.1 with its own port and data folder.

    It runs the ``mosquitto`` on the ``PATH`` or in ``/usr/sbin``. Starting takes some tens of
    milliseconds.

    Args:
        durable: drop or lose nothing that is queued, even if the broker is killed (except for
            messages that arrived at the last moment).
        users: passwords by user name; anonymous clients are then refused.
        acl: the text of an access control file.
        tls: add a listener with TLS at `tls_port`; its certificate authority is in `ca_file`. Needs
            the package ``trustme``.
        client_certificates: with ``tls``, clients need a certificate; see `client_cert_file`.
        websockets: add a listener for websockets at `websocket_port`, and with ``tls`` another one
            with TLS at `websocket_tls_port`.
        unix_socket: add a listener at the Unix socket `socket_file`.
        extra: further lines of configuration.

    Attributes:
        port: the port of the plain listener.
        tls_port: the port of the listener with TLS; 0 without.
        websocket_port: the port of the listener for websockets; 0 without.
        websocket_tls_port: the port of the listener for websockets with TLS; 0 without.
        socket_file: the Unix socket; it exists with ``unix_socket``.
        ca_file: the certificate of the authority, PEM.
        client_cert_file: a client's certificate and key, PEM.

    Raises:
        BrokerUnavailable: ``users`` or ``tls`` need something that is not installed.
    """

    title = "mosquitto"

    def __init__(
        self,
        *,
        durable: bool = False,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: bool = False,
        client_certificates: bool = False,
        websockets: bool = False,
        unix_socket: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.port: int
        self.tls_port: int
        self.websocket_port: int
        self.websocket_tls_port: int
        self.port, *others = self._ports.take(4)
        wanted = (tls, websockets, tls and websockets)
        self.tls_port, self.websocket_port, self.websocket_tls_port = (
            port if is_wanted else 0 for port, is_wanted in zip(others, wanted, strict=True)
        )
        self.socket_file: Path = self.folder / "socket"
        self.ca_file: Path = self.folder / "ca.pem"
        self.client_cert_file: Path = self.folder / "client.pem"
        lines = ["log_dest stderr", "log_type all", "connection_messages true", "user root"]
        lines += [f"listener {self.port} {self.host}"]
        encrypted = self._tls_lines(client_certificates) if tls else []
        if tls:
            lines += [f"listener {self.tls_port} {self.host}", *encrypted]
        if websockets:
            lines += [f"listener {self.websocket_port} {self.host}", "protocol websockets"]
        if self.websocket_tls_port:
            lines += [f"listener {self.websocket_tls_port} {self.host}", "protocol websockets"]
            lines += encrypted
        if unix_socket:
            lines += [f"listener 0 {self.socket_file}"]
        lines += [f"allow_anonymous {'false' if users else 'true'}"]
        if users:
            lines += [f"password_file {self._write_users(users)}"]
        if acl is not None:
            lines += [f"acl_file {self._write('acl', acl)}"]
        lines += [f"persistence_location {self.folder}/"]
        lines += _DURABLE if durable else ()
        lines += extra
        self._config_file = self._write("mosquitto.conf", "\n".join(lines) + "\n")

    @classmethod
    def missing(cls) -> str | None:
        """See `BrokerProcess.missing`."""
        if _find("mosquitto") is not None:
            return None
        return "mosquitto is not installed: apt-get install mosquitto, or put it on the PATH"

    @property
    def url(self) -> str:
        """The address of the plain listener."""
        return f"mqtt://{self.host}:{self.port}"

    def reload(self, *, users: Mapping[str, str] | None = None, acl: str | None = None) -> None:
        """Write new users or access rules, and make the running broker read them (SIGHUP).

        Only what the broker was created with can be changed. It is in force soon after: wait for
        ``Reloading config`` in `log`.
        """
        if users is not None:
            self._write_users(users)
        if acl is not None:
            self._write("acl", acl)
        self._running().send_signal(signal.SIGHUP)

    def _command(self) -> list[str]:
        return [_find("mosquitto") or "mosquitto", "-c", str(self._config_file)]

    def _answers(self) -> bool:
        ports = (self.port, self.tls_port, self.websocket_port, self.websocket_tls_port)
        return all(self._accepts(port) for port in ports if port)

    def _write_users(self, users: Mapping[str, str]) -> Path:
        text = "".join(f"{name}:{password}\n" for name, password in users.items())
        path = self._write("users", text)
        tool = _find("mosquitto_passwd")
        if tool is None:
            raise BrokerUnavailable(
                "mosquitto_passwd is not installed, which users= needs: apt-get install mosquitto"
            )
        subprocess.run([tool, "-U", str(path)], check=True, stdin=subprocess.DEVNULL)  # noqa: S603
        return path

    def _tls_lines(self, client_certificates: bool) -> list[str]:
        server = make_certificates(self.host, self.folder)
        return [
            f"cafile {self.ca_file}",
            f"certfile {server}",
            f"keyfile {server}",
            f"require_certificate {'true' if client_certificates else 'false'}",
        ]


def _find(name: str) -> str | None:
    """Return the path of the broker or a tool; Debian keeps it out of ordinary users' PATH."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
