"""A real Mosquitto broker for a test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest
import trustme

__all__ = ["Mosquitto", "find_mosquitto", "require_mosquitto"]

_DURABLE = (
    "persistence true",
    "autosave_on_changes true",
    "autosave_interval 1",
    "max_queued_messages 0",
)
_START_TIMEOUT = 15.0
_STOP_TIMEOUT = 10.0


def find_mosquitto(name: str = "mosquitto") -> str | None:
    """Path of the broker or one of its tools; Debian keeps it out of ordinary users' PATH."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))


def require_mosquitto() -> None:
    """Skip the test where there is no Mosquitto; on CI fail it."""
    if find_mosquitto() is not None:
        return
    text = "mosquitto is not installed: apt-get install mosquitto, or run scripts/test"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


class Mosquitto:
    """A Mosquitto process on 127.0.0.1 with a port and a data folder of its own.

    Used as a context manager, ``with`` or ``async with``, or by `start` and `close`. All methods
    block for some tens of milliseconds at most, except for a broker that does not start.

    Args:
        durable: nothing queued is dropped or lost, also when the broker is killed (except what
            came in the last moment).
        users: name to password; anonymous clients are refused then.
        acl: text of an access control file.
        tls: another listener with TLS, at `tls_port`; its authority is in `ca_file`.
        client_certificates: with ``tls``, clients need a certificate; see `client_cert_file`.
        extra: more lines of configuration.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *,
        durable: bool = False,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: bool = False,
        client_certificates: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mosquitto-"))
        self.port = _free_port()
        self.tls_port = _free_port() if tls else 0
        self.ca_file = self.folder / "ca.pem"
        self.client_cert_file = self.folder / "client.pem"
        self._log_file = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        lines = ["log_dest stderr", "log_type all", "connection_messages true", "user root"]
        lines += [f"listener {self.port} {self.host}"]
        if tls:
            lines += self._tls_lines(client_certificates)
        lines += [f"allow_anonymous {'false' if users else 'true'}"]
        if users:
            lines += [f"password_file {self._write_users(users)}"]
        if acl is not None:
            lines += [f"acl_file {self._write('acl', acl)}"]
        lines += [f"persistence_location {self.folder}/"]
        lines += _DURABLE if durable else ()
        lines += extra
        self._config_file = self._write("mosquitto.conf", "\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        """Address of the plain listener."""
        return f"mqtt://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running broker."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether the process runs (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that the broker has logged, over all restarts."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        binary = find_mosquitto()
        if binary is None:
            raise RuntimeError("mosquitto is not installed: apt-get install mosquitto")
        if self.alive:
            raise RuntimeError("this broker already runs")
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "-c", str(self._config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for port in filter(None, (self.port, self.tls_port)):
            self._wait_until_accepting(port)

    def stop(self) -> None:
        """SIGTERM, and wait until it has saved its data and ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: nothing is saved any more."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) it and start it again: same port, same data."""
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self._running().pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self._running().pid, signal.SIGCONT)
        self._paused = False

    def reload(self, *, users: Mapping[str, str] | None = None, acl: str | None = None) -> None:
        """Write new users or access rules and have the running broker read them (SIGHUP).

        Only what the broker was made with can be changed. It is in force soon after: wait for
        ``Reloading config`` in `log`.
        """
        if users is not None:
            self._write_users(users)
        if acl is not None:
            self._write("acl", acl)
        os.kill(self._running().pid, signal.SIGHUP)

    def close(self) -> None:
        """End it if it runs and remove its folder."""
        if self.alive:
            self._end(signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Mosquitto:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Mosquitto:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"this broker does not run; its log:\n{self.log}")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        process.send_signal(how)
        if self._paused:
            self.resume()
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"mosquitto did not end after {how.name}:\n{self.log}") from None

    def _wait_until_accepting(self, port: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            process = self._running()
            try:
                socket.create_connection((self.host, port), timeout=1.0).close()
            except OSError:
                if time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    raise RuntimeError(f"mosquitto does not accept:\n{self.log}") from None
                time.sleep(0.005)
            else:
                return

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def _write_users(self, users: Mapping[str, str]) -> Path:
        text = "".join(f"{name}:{password}\n" for name, password in users.items())
        path = self._write("users", text)
        tool = find_mosquitto("mosquitto_passwd")
        if tool is None:
            raise RuntimeError("mosquitto_passwd is not installed: apt-get install mosquitto")
        subprocess.run([tool, "-U", str(path)], check=True, stdin=subprocess.DEVNULL)
        return path

    def _tls_lines(self, client_certificates: bool) -> list[str]:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        server = authority.issue_cert(self.host, "localhost")
        server.private_key_and_cert_chain_pem.write_to_path(str(self.folder / "server.pem"))
        client = authority.issue_cert("client@example.org")
        client.private_key_and_cert_chain_pem.write_to_path(str(self.client_cert_file))
        return [
            f"listener {self.tls_port} {self.host}",
            f"cafile {self.ca_file}",
            f"certfile {self.folder / 'server.pem'}",
            f"keyfile {self.folder / 'server.pem'}",
            f"require_certificate {'true' if client_certificates else 'false'}",
        ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
