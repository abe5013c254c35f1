"""Hosts as network namespaces, with a switch between them, and brokers on one of them."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from spa_dat.testing import Kafka, Mosquitto

__all__ = ["Host", "KafkaOnHost", "MosquittoOnHost", "Network"]

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
# Whatever runs in them ends with the namespaces, and those with the process that made them.
_CLEANER = """
read _
for name in "$@"; do
    for pid in $(ip netns pids "$name"); do kill -9 "$pid"; done
    ip netns del "$name"
done
"""


class Host:
    """A network namespace with an address of its own.

    Attributes:
        name: of the namespace.
        address: of the host.
        prefix: what makes a command run there, in front of it.
    """

    def __init__(self, switch: str, port: str, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.prefix = ("ip", "netns", "exec", name)
        self._switch = switch
        self._port = port

    def unplug(self) -> None:
        """Pull its cable out of the switch: packets vanish, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port, "nomaster")

    def plug(self) -> None:
        """Put it back."""
        _ip("-n", self._switch, "link", "set", self._port, "master", "switch")

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread whose sockets are those of this host; returns its result."""
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self.enter()
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def enter(self) -> None:
        """Move the calling thread, and it alone, to this host, for as long as it lives."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self.name}", "rb") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))


class Network:
    """Hosts on one switch; `broker` is one of them. All of it is gone at the end of the block.

    Args:
        names: of the other hosts.

    Attributes:
        broker: the host for the broker.
        hosts: the others, by name.
    """

    def __init__(self, *names: str) -> None:
        # Names and addresses are only seen in these namespaces and in the list of all of them.
        rng = random.SystemRandom()
        start = f"spa-dat-{rng.randrange(16**8):08x}"
        net = f"198.18.{rng.randrange(256)}"
        switch = f"{start}-broker"
        self.broker = Host(switch, "switch", switch, f"{net}.1")
        self.hosts = {
            name: Host(switch, name, f"{start}-{name}", f"{net}.{10 + number}")
            for number, name in enumerate(names)
        }

    @staticmethod
    def missing() -> str | None:
        """Say what this machine lacks to make one; None if nothing."""
        if shutil.which("ip") is None:
            return "there is no `ip`: apt-get install iproute2"
        if os.geteuid() != 0:
            return "only root makes network namespaces"
        try:
            with Network("probe"):
                return None
        except subprocess.CalledProcessError as error:
            return f"this machine makes no network namespaces: {error.stderr.strip()}"

    def __enter__(self) -> Self:
        names = [self.broker.name, *(host.name for host in self.hosts.values())]
        self._cleaner = subprocess.Popen(
            ["/bin/sh", "-c", _CLEANER, "cleaner", *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C at the terminal is for the tests.
            start_new_session=True,
        )
        try:
            self._make()
        except BaseException:
            self._clean()
            raise
        return self

    def _make(self) -> None:
        switch = self.broker.name
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "addr", "add", f"{self.broker.address}/24", "dev", "switch")
        _ip("-n", switch, "link", "set", "switch", "up")
        for name, host in self.hosts.items():
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
            # Made where they belong: nothing of it is ever on the machine's own network.
            peer = ("peer", "eth0", "netns", host.name)
            _ip("-n", switch, "link", "add", name, "type", "veth", *peer)
            _ip("-n", switch, "link", "set", name, "master", "switch", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")

    def _clean(self) -> None:
        self._cleaner.communicate()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clean()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class _OnHost:
    """Makes a broker run on one of these hosts; to stand before it among the bases."""

    def __init__(self, on: Host, **options: Any) -> None:
        self.host = on.address
        self._on = on
        super().__init__(**options)

    def _command(self) -> list[str]:
        return [*self._on.prefix, *super()._command()]  # type: ignore[misc]

    def _answers(self) -> bool:
        answers: bool = self._on.call(super()._answers)  # type: ignore[misc]
        return answers


class MosquittoOnHost(_OnHost, Mosquitto):
    """A Mosquitto on one of these hosts.

    Args:
        on: the host.
        options: as for `Mosquitto`.
    """


class KafkaOnHost(_OnHost, Kafka):
    """A Kafka on one of these hosts.

    Args:
        on: the host.
        options: as for `Kafka`.
    """
