"""The tools that a real Kafka broker needs on this machine: Java, and the broker's jars."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

from ._errors import BrokerFailed, BrokerUnavailable

__all__ = [
    "class_archive",
    "class_path",
    "fetch",
    "find_java",
    "jars_folder",
    "missing",
    "version",
]

_VERSION = "4.1.1"
_JAVA = 17
_FETCH_TIMEOUT = 600.0
_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>spa-dat</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{version}</version>
    </dependency>
    <!-- Without it the broker logs nothing. -->
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


def version() -> str:
    """Return the version in use: ``SPA_DAT_KAFKA_VERSION``, or the default."""
    return os.environ.get("SPA_DAT_KAFKA_VERSION", _VERSION)


def jars_folder() -> Path:
    """Return where the broker's jars are, or will be.

    That is ``SPA_DAT_KAFKA_JARS``, or a folder for this version in the user's cache
    (``XDG_CACHE_HOME``).
    """
    named = os.environ.get("SPA_DAT_KAFKA_JARS")
    return Path(named) if named else _cache() / f"kafka-{version()}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "spa-dat")


def find_java() -> str | None:
    """Find a Java that is new enough, in ``JAVA_HOME`` or on the ``PATH``."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    return java if java is not None and _is_new_enough(java) else None


def class_path() -> str:
    """Return the jars in a lasting order, without which no archive of classes fits."""
    return ":".join(str(jar) for jar in sorted(jars_folder().glob("*.jar")))


def class_archive() -> Path:
    """Return the file with the broker's classes, as this Java wants them, or where it is to be."""
    decisive = "\n".join((_told_version(str(find_java())), class_path()))
    return _cache() / f"kafka-{version()}-{zlib.crc32(decisive.encode()):08x}.jsa"


@functools.cache
def _told_version(java: str) -> str:
    return subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603


def _is_new_enough(java: str) -> bool:
    found = re.search(r'version "(\d+)', _told_version(java))
    return found is not None and int(found[1]) >= _JAVA


def missing() -> str | None:
    """Say what this machine lacks to run the broker, and how to get it; None if nothing."""
    if find_java() is None:
        return f"there is no Java {_JAVA} or newer for Kafka: apt-get install default-jre-headless"
    folder = jars_folder()
    if not _has_jars(folder):
        return (
            f"the jars of Kafka {version()} are not in {folder}: fetch them with Maven,"
            " python -c 'from spa_dat.testing import Kafka; Kafka.fetch()',"
            " or name their folder in SPA_DAT_KAFKA_JARS"
        )
    return None


def fetch() -> Path:
    """See `Kafka.fetch`."""
    folder = jars_folder()
    if _has_jars(folder):
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerUnavailable("there is no Maven to fetch Kafka with: apt-get install maven")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as work:
        pom, jars = Path(work) / "pom.xml", Path(work) / "jars"
        pom.write_text(_POM.format(version=version()))
        done = subprocess.run(  # noqa: S603
            [
                *(maven, "-q", "-B", "-Dstyle.color=never", "-f", str(pom)),
                *("dependency:copy-dependencies", "-DincludeScope=runtime"),
                f"-DoutputDirectory={jars}",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise BrokerFailed(
                f"Maven could not fetch Kafka {version()}:\n{done.stdout}{done.stderr}"
            )
        # All or nothing; and another process may have been quicker.
        if not _has_jars(folder):
            jars.rename(folder)
    return folder


def _has_jars(folder: Path) -> bool:
    return any(folder.glob("kafka_*.jar"))
