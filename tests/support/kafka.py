"""A real Kafka broker for a test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from support.kafka_jars import find_java, find_kafka, kafka_version, require_kafka, what_is_missing
from support.kafka_settings import (
    SCRAM,
    SETTINGS,
    free_ports,
    listener_settings,
    sasl_settings,
    tls_settings,
)
from support.proxy import Proxy

__all__ = ["Acl", "Kafka", "find_kafka", "kafka_version", "require_kafka"]

Acl = tuple[str, str, str, str]
"""Who may do what with what: user, operation, kind of resource and its name, for example
``("ann", "READ", "TOPIC", "plant.*")``. A ``*`` at the end stands for any rest."""

_START_TIMEOUT = 40.0
_STOP_TIMEOUT = 20.0
_CLUSTER = "c3BhLWRhdC10ZXN0cy1rYQ"
_JVM = (
    "-Xms64m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)
_RESOURCES = {"TOPIC": 2, "GROUP": 3, "CLUSTER": 4, "TRANSACTIONAL_ID": 5}
_OPERATIONS = {
    "ALL": 2,
    "READ": 3,
    "WRITE": 4,
    "CREATE": 5,
    "DELETE": 6,
    "ALTER": 7,
    "DESCRIBE": 8,
    "IDEMPOTENT_WRITE": 12,
}
_METADATA, _CREATE_ACLS = 3, 30


class Kafka:
    """A Kafka process on 127.0.0.1, one node, with ports and a data folder of its own.

    Used as a context manager, ``with`` or ``async with``, or by `start` and `close`. Starting
    blocks for some seconds, everything else for less. It ends with the process that started it,
    however that ends.

    It has several listeners. The one at `port` lets everybody do everything, also where there
    are users: it is for the test's own clients. `proxy` stands in front of another one, whose
    address the broker gives as the proxy's, so that clients that start there stay there.

    Args:
        auto_create: topics come into being when they are first used.
        sasl_users: name to password, for another listener at `sasl_port` (SASL, PLAIN and SCRAM).
            What they may do is what ``acls`` and `grant` say, and nothing else.
        acls: granted at the first start.
        tls: another listener with TLS, at `tls_port`; its authority is in `ca_file`. With
            ``sasl_users`` it also wants a login.
        client_certificates: with ``tls``, clients need a certificate; see `client_cert_file`.
        properties: more lines of configuration, or other values.
        jvm: more options of Java, or other values; they are chosen for a quick start.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *,
        auto_create: bool = False,
        sasl_users: Mapping[str, str] | None = None,
        acls: Sequence[Acl] = (),
        tls: bool = False,
        client_certificates: bool = False,
        properties: Mapping[str, str] | None = None,
        jvm: Sequence[str] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kafka-"))
        self.ca_file = self.folder / "ca.pem"
        self.client_cert_file = self.folder / "client.pem"
        self.port, self.proxy_port, behind, controller, self.sasl_port, self.tls_port = free_ports()
        self._log_file = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._behind = behind
        self._paused = False
        self._acls = tuple(acls)
        self._jvm = (*_JVM, *jvm)
        self._users = dict(sasl_users or {})
        listeners = {
            "PLAIN": ("PLAINTEXT", self.port),
            "PROXIED": ("PLAINTEXT", behind),
            "CONTROLLER": ("PLAINTEXT", controller),
        }
        settings = {
            **SETTINGS,
            "controller.quorum.voters": f"1@{self.host}:{controller}",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": str(auto_create).lower(),
        }
        if sasl_users is not None:
            listeners["SASL"] = ("SASL_PLAINTEXT", self.sasl_port)
            settings |= sasl_settings(sasl_users)
        if tls:
            listeners["TLS"] = ("SSL" if sasl_users is None else "SASL_SSL", self.tls_port)
            settings |= tls_settings(
                self.host,
                self.ca_file,
                self.client_cert_file,
                client_certificates=client_certificates,
            )
        settings |= listener_settings(self.host, listeners, self.proxy_port)
        settings |= properties or {}
        self._config_file = self.folder / "server.properties"
        self._config_file.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))

    @property
    def url(self) -> str:
        """Address of the plain listener."""
        return f"kafka://{self.server}"

    @property
    def server(self) -> str:
        """The plain listener as ``host:port``."""
        return f"{self.host}:{self.port}"

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

    def proxy(self) -> Proxy:
        """A proxy, not started, in front of the broker. Only one at a time can be started."""
        proxy = Proxy(self.host, self._behind)
        proxy.port = self.proxy_port
        return proxy

    def start(self) -> None:
        """Start it and wait until it answers."""
        if self.alive:
            raise RuntimeError("this broker already runs")
        self._end_watchdog()
        first = not (self.folder / "data").exists()
        if first:
            self._format()
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(self._config_file)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A ^C at the terminal is for the tests, which then end the broker.
                start_new_session=True,
            )
        self._watch()
        self._wait_until_answering()
        if first:
            for acl in self._acls:
                self.grant(*acl)

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: nothing is said to anybody any more."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) it and start it again: same ports, same data."""
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

    def grant(self, user: str, operation: str, kind: str, name: str) -> None:
        """Allow something; see `Acl`. It is in force when this returns."""
        prefixed = name.endswith("*") and name != "*"
        answer = self._ask(
            _CREATE_ACLS,
            1,
            struct.pack(">ib", 1, _RESOURCES[kind])
            + _string(name[:-1] if prefixed else name)
            + struct.pack(">b", 4 if prefixed else 3)
            + _string(f"User:{user}")
            + _string("*")
            + struct.pack(">bb", _OPERATIONS[operation], 3),
        )
        _, _, error = struct.unpack_from(">iih", answer)
        if error:
            raise RuntimeError(f"Kafka refused the ACL with error {error}:\n{self.log}")

    def close(self) -> None:
        """End it if it runs and remove its folder."""
        # What it would save on SIGTERM is removed anyway.
        if self.alive:
            self._end(signal.SIGKILL)
        self._end_watchdog()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Kafka:
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

    async def __aenter__(self) -> Kafka:
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

    def _java(self) -> list[str]:
        java, jars = find_java(), find_kafka()
        if java is None or jars is None:
            raise RuntimeError(what_is_missing())
        return [java, *self._jvm, "-cp", f"{jars}/*"]

    def _format(self) -> None:
        tool = [*self._java(), "kafka.tools.StorageTool", "format"]
        for mechanism in SCRAM:
            for name, password in self._users.items():
                tool += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        done = subprocess.run(
            [*tool, "-t", _CLUSTER, "-c", str(self._config_file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"kafka storage can not be formatted:\n{done.stdout}{done.stderr}")

    def _watch(self) -> None:
        """A shell that waits for the end of its input, which comes with the end of this process."""
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", f"read _; kill -9 {self._running().pid}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

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
            raise RuntimeError(f"Kafka did not end after {how.name}:\n{self.log}") from None
        finally:
            self._end_watchdog()

    def _end_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
            self._watchdog = None

    def _wait_until_answering(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                self._running()
                _, brokers = struct.unpack_from(
                    ">ii", self._ask(_METADATA, 0, struct.pack(">i", 0))
                )
                if brokers == 1:
                    return
            except (OSError, struct.error):
                pass
            except RuntimeError:
                self._end_watchdog()
                raise
            if time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise RuntimeError(f"Kafka does not answer:\n{self.log}")
            time.sleep(0.05)

    def _ask(self, api: int, version: int, body: bytes) -> bytes:
        """One request on a connection of its own; the answer, from its correlation id on."""
        request = struct.pack(">hhih", api, version, 1, -1) + body
        with socket.create_connection((self.host, self.port), timeout=10.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answers:
                size: int = struct.unpack(">i", answers.read(4))[0]
                return answers.read(size)


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()
