"""A real Kafka broker for tests."""

from __future__ import annotations

import base64
import json
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from . import _kafka_tools as tools
from ._broker_process import BrokerProcess
from ._errors import BrokerFailed, BrokerUnavailable
from ._kafka_settings import SCRAM, SETTINGS, listener_settings, sasl_settings, tls_settings
from ._proxy import Proxy

__all__ = ["Acl", "Kafka"]

Acl: TypeAlias = tuple[str, str, str, str]
"""Who may do what: user, operation, kind of resource and its name, for example
``("ann", "READ", "TOPIC", "plant.*")``. A ``*`` at the end matches anything."""

_CLUSTER = "c3BhLWRhdC10ZXN0cy1rYQ"
_JVM = (
    # Starting fills the young generation once instead of collecting it several times.
    "-Xms128m",
    "-Xmn64m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
)
_ARCHIVING_TIMEOUT = 120.0
_RESOURCES = {"TOPIC": 2, "GROUP": 3, "CLUSTER": 4, "TRANSACTIONAL_ID": 5}
_OPERATIONS = {
    "ALL": 2,
    "READ": 3,
    "WRITE": 4,
    "CREATE": 5,
    "DELETE": 6,
    "ALTER": 7,
    "DESCRIBE": 8,
    "DESCRIBE_CONFIGS": 10,
    "IDEMPOTENT_WRITE": 12,
}
_METADATA, _DESCRIBE_ACLS, _CREATE_ACLS = 3, 29, 30
_PAUSE = 0.005
# Formatting takes as long as starting, and gives the same few small files for the same settings.
_formatted: dict[object, dict[str, bytes]] = {}


class Kafka(BrokerProcess):
    """A Kafka process on 127.0.0.1, one node, with its own ports and data folder.

    It needs Java 17 or newer, from ``JAVA_HOME`` or the ``PATH``, and the broker's jars, which
    `fetch` gets with Maven. Environment variables: ``SPA_DAT_KAFKA_VERSION`` selects another
    version, ``SPA_DAT_KAFKA_JARS`` a folder with existing jars. Starting takes some seconds.

    It has several listeners. The one at `port` lets everybody do everything, even if there are
    users: it is for the test's own clients. `proxy` stands in front of another listener, for which
    the broker advertises the address of the proxy, so that clients stay behind it.

    Args:
        auto_create: create topics when they are first used.
        sasl_users: passwords by user name, for another listener at `sasl_port` (SASL with PLAIN,
            SCRAM, or OAUTHBEARER, see `token`). The users may do what ``acls`` and `grant` allow,
            and nothing else.
        acls: granted at the first start.
        tls: add a listener with TLS at `tls_port`; its certificate authority is in `ca_file`. With
            ``sasl_users`` it also requires a login. Needs the package ``trustme``.
        client_certificates: with ``tls``, clients need a certificate; see `client_cert_file`.
        properties: further lines of configuration, which override the defaults.
        jvm: further options of Java, which override the defaults (chosen for a quick start).

    Attributes:
        port: the port of the plain listener.
        sasl_port: the port of the listener with logins.
        tls_port: the port of the listener with TLS.
        proxy_port: the port of `proxy`.
        ca_file: the certificate of the authority, PEM.
        client_cert_file: a client's certificate and key, PEM.

    Raises:
        BrokerUnavailable: ``tls`` needs a package that is not installed.
    """

    title = "Kafka"
    # On a machine that has much else to do, Java takes long.
    _start_timeout = 90.0
    _stop_timeout = 20.0

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
        super().__init__()
        self.ca_file: Path = self.folder / "ca.pem"
        self.client_cert_file: Path = self.folder / "client.pem"
        ports = self._ports.take(6)
        self.port: int
        self.proxy_port: int
        self.sasl_port: int
        self.tls_port: int
        self.port, self.proxy_port, behind, controller, self.sasl_port, self.tls_port = ports
        self._behind = behind
        self._acls = tuple(acls)
        self._jvm = (*_JVM, *jvm)
        self._new_archive: Path | None = None
        self._users = dict(sasl_users or {})
        self._properties = dict(properties or {})
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
                self.host, self.folder, client_certificates=client_certificates
            )
        settings |= listener_settings(self.host, listeners, self.proxy_port)
        settings |= self._properties
        ours = "listeners" not in self._properties
        asked = (self.port, controller)
        self._beside = [port for _, port in listeners.values() if ours and port not in asked]
        lines = "".join(f"{name}={value}\n" for name, value in settings.items())
        self._config_file = self._write("server.properties", lines)

    @classmethod
    def missing(cls) -> str | None:
        """See `BrokerProcess.missing`."""
        return tools.missing()

    @classmethod
    def version(cls) -> str:
        """Return the version in use: ``SPA_DAT_KAFKA_VERSION``, or the default."""
        return tools.version()

    @classmethod
    def fetch(cls) -> Path:
        """Fetch the broker's jars with Maven, unless they are there.

        About 50 MB go to ``SPA_DAT_KAFKA_JARS``, or to a folder for the version below
        ``XDG_CACHE_HOME`` (``~/.cache``). Maven's own settings say where they come from.

        Returns:
            The folder with the jars.

        Raises:
            BrokerUnavailable: there is no Maven.
            BrokerFailed: Maven fails; the text includes its output.
        """
        return tools.fetch()

    @classmethod
    def share_classes(cls) -> Path:
        """Keep the classes of a started broker in an archive, unless it is there.

        Later brokers then start with half the work. The archive is for this version, these jars and
        this Java; its 50 MB go to ``XDG_CACHE_HOME`` (``~/.cache``). If this Java cannot make one,
        there is none.

        Returns:
            The file of the archive.

        Raises:
            BrokerUnavailable: this machine lacks something; the text says how to get it.
            BrokerFailed: the broker does not start.
        """
        text = cls.missing()
        if text is not None:
            raise BrokerUnavailable(text)
        archive = tools.class_archive()
        if archive.exists():
            return archive
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f"{archive.name}.") as work:
            made = Path(work) / archive.name
            broker = cls(auto_create=True)
            broker._new_archive = made
            broker._stop_timeout = _ARCHIVING_TIMEOUT
            with broker:
                broker.stop()
            # Entirely or not at all.
            if made.exists():
                made.replace(archive)
        return archive

    @property
    def url(self) -> str:
        """The address of the plain listener."""
        return f"kafka://{self.server}"

    @property
    def server(self) -> str:
        """The plain listener as ``host:port``."""
        return f"{self.host}:{self.port}"

    @staticmethod
    def token(user: str, seconds: float = 300.0) -> str:
        """Return a token with which the user may log in for this long: unsigned, for tests only."""
        now = time.time()
        claims = {"sub": user, "iat": now, "exp": now + seconds}
        parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
        return "".join(base64.urlsafe_b64encode(part).decode().rstrip("=") + "." for part in parts)

    def proxy(self) -> Proxy:
        """Return a proxy in front of the broker, not started; only one can run at a time."""
        proxy = Proxy(self.host, self._behind)
        proxy.port = self.proxy_port
        return proxy

    def start(self) -> None:
        """See `BrokerProcess.start`."""
        first = not (self.folder / "data").exists()
        super().start()
        if first:
            for acl in self._acls:
                self.grant(*acl)

    def grant(self, user: str, operation: str, kind: str, name: str) -> None:
        """Grant a right, see `Acl`; it is in force when this returns.

        Raises:
            BrokerFailed: the broker refuses it.
        """
        prefixed = name.endswith("*") and name != "*"
        rule = (
            struct.pack(">b", _RESOURCES[kind])
            + _string(name[:-1] if prefixed else name)
            + struct.pack(">b", 4 if prefixed else 3)
            + _string(f"User:{user}")
            + _string("*")
            + struct.pack(">bb", _OPERATIONS[operation], 3)
        )
        answer = self._ask(_CREATE_ACLS, 1, struct.pack(">i", 1) + rule)
        _, _, error = struct.unpack_from(">iih", answer)
        if error:
            raise BrokerFailed(f"Kafka refused the ACL with error {error}; its log:\n{self.log}")
        # The controller has it; the broker follows.
        deadline = time.monotonic() + self._start_timeout
        while not self._has_rule(rule):
            if time.monotonic() > deadline:
                raise BrokerFailed(f"Kafka does not put the ACL into force; its log:\n{self.log}")
            time.sleep(_PAUSE)

    def _has_rule(self, rule: bytes) -> bool:
        answer = self._ask(_DESCRIBE_ACLS, 1, rule)
        _, _, error, length = struct.unpack_from(">iihh", answer)
        (found,) = struct.unpack_from(">i", answer, 12 + max(0, length))
        return not error and found > 0

    def _java(self, *options: str) -> list[str]:
        java = tools.find_java()
        if java is None:
            raise BrokerUnavailable(str(tools.missing()))
        archive = tools.class_archive()
        # Where one that is named is missing, Java does without its own, too.
        sharing = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
        return [java, *sharing, *self._jvm, *options, "-cp", tools.class_path()]

    def _command(self) -> list[str]:
        data = self.folder / "data"
        if not data.exists():
            decisive = (tools.jars_folder(), *self._users.items(), None, *self._properties.items())
            files = _formatted.get(decisive)
            if files is None:
                self._format()
                _formatted[decisive] = {path.name: path.read_bytes() for path in data.iterdir()}
            else:
                data.mkdir()
                for name, content in files.items():
                    (data / name).write_bytes(content)
        archiving = self._new_archive
        options = [] if archiving is None else [f"-XX:ArchiveClassesAtExit={archiving}"]
        return [*self._java(*options), "kafka.Kafka", str(self._config_file)]

    def _format(self) -> None:
        tool = [*self._java(), "kafka.tools.StorageTool", "format"]
        for mechanism in SCRAM:
            for name, password in self._users.items():
                tool += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        done = subprocess.run(  # noqa: S603
            [*tool, "-t", _CLUSTER, "-c", str(self._config_file)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BrokerFailed(f"Kafka's storage cannot be formatted:\n{done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        try:
            _, brokers = struct.unpack_from(">ii", self._ask(_METADATA, 0, struct.pack(">i", 0)))
        except struct.error:
            return False
        # It opens its listeners one after another: one that answers says nothing of the others.
        return bool(brokers == 1) and all(self._accepts(port) for port in self._beside)

    def _ask(self, api: int, version: int, body: bytes) -> bytes:
        """Send a request on a new connection; return the answer from its correlation id on."""
        request = struct.pack(">hhih", api, version, 1, -1) + body
        with socket.create_connection((self.host, self.port), timeout=10.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answers:
                size: int = struct.unpack(">i", answers.read(4))[0]
                return answers.read(size)


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()
