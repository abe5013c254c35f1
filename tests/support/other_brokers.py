"""MQTT brokers besides Mosquitto that the transport kit is run on; see ``scripts/test-brokers``.

``python -m support.other_brokers NAME`` fetches one of them into the user's cache.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from spa_dat.harness.brokers._broker_process import BrokerProcess

__all__ = ["Aedes", "HiveMq"]

_GLUE = Path(__file__).parent / "brokers"
_FETCH_TIMEOUT = 600.0
_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>spa-dat</groupId><artifactId>hivemq-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>com.hivemq</groupId>
      <artifactId>hivemq-community-edition-embedded</artifactId>
      <version>{version}</version>
    </dependency>
  </dependencies>
</project>
"""
_HIVEMQ_CONFIG = """\
<?xml version="1.0"?>
<hivemq>
  <listeners>
    <tcp-listener><port>{port}</port><bind-address>127.0.0.1</bind-address></tcp-listener>
  </listeners>
  <anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics>
</hivemq>
"""


def _cache(name: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spa-dat" / name


def _fetch(command: list[str], folder: Path, work: Path) -> None:
    """Run what fills a folder in ``work``, then move that to where it belongs, as a whole."""
    done = subprocess.run(
        command,
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_FETCH_TIMEOUT,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[0]} fails:\n{done.stdout}{done.stderr}")
    if not folder.exists():
        (work / "fetched").rename(folder)


class HiveMq(BrokerProcess):
    """HiveMQ Community Edition on 127.0.0.1; ready after some seconds."""

    title = "HiveMQ CE"
    version = os.environ.get("SPA_DAT_HIVEMQ_VERSION", "2025.1")
    _start_timeout = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.port, self._forget_port = self._ports.take(2)
        for name in ("conf", "data", "extensions"):
            (self.folder / name).mkdir()
        (self.folder / "conf" / "config.xml").write_text(_HIVEMQ_CONFIG.format(port=self.port))

    @classmethod
    def jars(cls) -> Path:
        """Where the jars are, or are to be."""
        return _cache(f"hivemq-{cls.version}")

    @classmethod
    def missing(cls) -> str | None:
        """See `BrokerProcess.missing`."""
        if shutil.which("javac") is None:
            return "there is no Java compiler for HiveMQ: apt-get install default-jdk-headless"
        if not cls.jars().exists():
            return f"the jars of HiveMQ are not in {cls.jars()}: scripts/test-brokers fetches them"
        return None

    @classmethod
    def fetch(cls) -> None:
        """Fetch the jars with Maven, some 100 MB."""
        maven = shutil.which("mvn") or sys.exit("no Maven: apt-get install maven")
        with tempfile.TemporaryDirectory(dir=cls.jars().parent) as work:
            (Path(work) / "pom.xml").write_text(_POM.format(version=cls.version))
            goal = ("dependency:copy-dependencies", "-DincludeScope=runtime")
            command = [maven, "-q", "-B", *goal, "-DoutputDirectory=fetched"]
            _fetch(command, cls.jars(), Path(work))

    @property
    def url(self) -> str:
        """Address of the listener."""
        return f"mqtt://{self.host}:{self.port}"

    def forget(self) -> None:
        """End all sessions and remove all retained messages."""
        with socket.create_connection((self.host, self._forget_port), timeout=30) as control:
            assert control.recv(1) == b".", f"the broker could not forget; its log:\n{self.log}"

    def _command(self) -> list[str]:
        options = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        program = (str(_GLUE / "HiveMq.java"), str(self.folder), str(self._forget_port))
        return ["java", *options, "-cp", f"{self.jars()}/*", *program]

    def _answers(self) -> bool:
        return self._accepts(self.port) and self._accepts(self._forget_port)


class Aedes(BrokerProcess):
    """aedes on 127.0.0.1, in memory."""

    title = "aedes"
    version = os.environ.get("SPA_DAT_AEDES_VERSION", "2.0.0-beta.1")

    def __init__(self) -> None:
        super().__init__()
        (self.port,) = self._ports.take(1)

    @classmethod
    def package(cls) -> Path:
        """Where the package is, or is to be."""
        return _cache(f"aedes-{cls.version}")

    @classmethod
    def missing(cls) -> str | None:
        """See `BrokerProcess.missing`."""
        if shutil.which("node") is None:
            return "there is no Node.js for aedes: apt-get install nodejs npm"
        if not cls.package().exists():
            return f"aedes is not in {cls.package()}: scripts/test-brokers fetches it"
        return None

    @classmethod
    def fetch(cls) -> None:
        """Fetch the package with npm."""
        npm = shutil.which("npm") or sys.exit("no npm: apt-get install npm")
        with tempfile.TemporaryDirectory(dir=cls.package().parent) as work:
            (Path(work) / "fetched").mkdir()
            options = ("--no-fund", "--no-audit", "--ignore-scripts", "--prefix", "fetched")
            _fetch([npm, "install", *options, f"aedes@{cls.version}"], cls.package(), Path(work))

    @property
    def url(self) -> str:
        """Address of the listener."""
        return f"mqtt://{self.host}:{self.port}"

    def _command(self) -> list[str]:
        modules = self.package() / "node_modules"
        node = shutil.which("node") or "node"
        program = (str(_GLUE / "aedes.js"), str(self.port))
        return [shutil.which("env") or "env", f"NODE_PATH={modules}", node, *program]

    def _answers(self) -> bool:
        return self._accepts(self.port)


if __name__ == "__main__":
    brokers: dict[str, type[HiveMq] | type[Aedes]] = {"hivemq": HiveMq, "aedes": Aedes}
    broker = brokers[sys.argv[1]]
    _cache("").mkdir(parents=True, exist_ok=True)
    if broker.missing() is not None:
        broker.fetch()
    print(broker.missing() or "")
