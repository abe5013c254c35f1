"""A PostgreSQL server for tests, as a process of its own."""

from __future__ import annotations

import os
import pwd
import runpy
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Postgres", "postgres_folder", "postgres_states"]

_DEADLINE = 60.0
_UNSAFE_AND_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


def postgres_folder() -> Path:
    """Return where the server's programs are; skips the test if they are nowhere."""
    found = shutil.which("postgres")
    if found is not None and (Path(found).parent / "initdb").exists():
        return Path(found).parent
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    reason = "there is no PostgreSQL: apt-get install postgresql"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def postgres_states() -> Any:
    """Return the class of the example that keeps states in a database."""
    path = Path(__file__).parent.parent.parent / "examples" / "postgres_states.py"
    return runpy.run_path(str(path))["PostgresStates"]


class Postgres:
    """A server that listens at a socket in a folder of its own, and nowhere else.

    It refuses to be started as root, so then another user starts it.

    Attributes:
        address: of its database.
    """

    def __init__(self) -> None:
        programs = postgres_folder()
        self._folder = Path(tempfile.mkdtemp(prefix="spa-dat-pg-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = _user()
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._program = str(programs / "postgres")
        self._data = str(self._folder / "data")
        self.address = f"postgresql://tests@/postgres?host={self._folder}"
        self._process: subprocess.Popen[bytes] | None = None
        make = [str(programs / "initdb"), "-D", self._data, "-U", "tests", "-A", "trust", "-N"]
        subprocess.run(
            [*make, "-E", "UTF8", "--locale=C"],
            check=True,
            capture_output=True,
            cwd=self._folder,
            timeout=_DEADLINE,
            **self._as,
        )
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ("listen_addresses=", *_UNSAFE_AND_FAST)
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [
                self._program,
                *("-D", self._data, "-k", str(self._folder)),
                *(part for option in options for part in ("-c", option)),
            ],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **self._as,
        )
        log.close()
        import psycopg

        until = time.monotonic() + _DEADLINE
        while True:
            try:
                psycopg.connect(self.address).close()
            except psycopg.OperationalError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise AssertionError((self._folder / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop it: connections end, and what was committed stays."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(_DEADLINE)

    def close(self) -> None:
        """Stop it for good, and remove its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
