"""What a real Kafka broker needs on this machine."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["find_java", "find_kafka", "kafka_version", "require_kafka", "what_is_missing"]

_VERSION = "4.1.1"
_JAVA = 17


def kafka_version() -> str:
    """The version to test on: ``SPA_DAT_KAFKA_VERSION``, or the default."""
    return os.environ.get("SPA_DAT_KAFKA_VERSION", _VERSION)


def find_kafka() -> Path | None:
    """The folder with the broker's jars: ``SPA_DAT_KAFKA_JARS``, or the one that scripts/test
    fills, outside the repository."""
    named = os.environ.get("SPA_DAT_KAFKA_JARS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else cache / "spa-dat" / f"kafka-{kafka_version()}"
    return folder if any(folder.glob("kafka_*.jar")) else None


@functools.cache
def find_java() -> str | None:
    """A Java that is new enough."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        return None
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', told)
    return java if found and int(found[1]) >= _JAVA else None


def what_is_missing() -> str | None:
    """What a broker needs and this machine does not have, and how to get it."""
    if find_java() is None:
        return (
            f"no Java {_JAVA} or newer: apt-get install default-jre-headless, or run scripts/test"
        )
    if find_kafka() is None:
        return (
            f"the jars of Kafka {kafka_version()} are not here: run scripts/test, which fetches"
            " them with Maven, or name their folder in SPA_DAT_KAFKA_JARS"
        )
    return None


def require_kafka() -> None:
    """Skip the test where there is no Kafka; on CI fail it."""
    text = what_is_missing()
    if text is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)
