"""One Kafka for all processes of a test run: a broker for each costs as much as hundreds of tests.

The process that hands out the tests starts it when the first test asks for it, and ends it when all
other processes have ended.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from spa_dat.harness.brokers._broker_process import PortClaims
from spa_dat.testing import BrokerFailed, Kafka

__all__ = ["KafkaOfTheRun", "SharedKafka", "kafka_for_all"]

_WAIT = 50.0


def kafka_for_all() -> Kafka:
    """Make the broker that all tests share.

    It soon aborts transactions that have run out of time, and compacts soon. There is a user, ann,
    who may do everything with names that begin with ``may-``, and see those with ``not-``; her
    password is ``secret``.
    """
    return Kafka(
        sasl_users={"ann": "secret"},
        acls=[
            ("ann", "ALL", "TOPIC", "may-*"),
            ("ann", "DESCRIBE", "TOPIC", "not-*"),
            ("ann", "ALL", "GROUP", "may-*"),
            ("ann", "DESCRIBE", "GROUP", "not-*"),
            ("ann", "ALL", "TRANSACTIONAL_ID", "may-*"),
            ("ann", "DESCRIBE", "TRANSACTIONAL_ID", "not-*"),
        ],
        properties={
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "50",
            "log.cleaner.backoff.ms": "50",
            "log.initial.task.delay.ms": "0",
        },
    )


class SharedKafka(Kafka):
    """A broker that `KafkaOfTheRun` has started, for tests of another process.

    It serves several processes at the same time, so none of them can start, stop or pause it.

    Args:
        port: the port of the listener for everybody.
        sasl_port: the port of the listener with logins.
        proxy_port: the port of the only proxy that this process may run.
        behind: the port of the listener that is reached through this proxy.
    """

    def __init__(self, port: int, sasl_port: int, proxy_port: int, behind: int) -> None:
        # Not that of `Kafka`, which would choose other ports and make a folder.
        self.port, self.sasl_port = port, sasl_port
        self.proxy_port, self._behind = proxy_port, behind
        self._process = None

    @property
    def alive(self) -> bool:
        """Whether it runs: as long as the processes that use it."""
        return True

    def start(self) -> None:
        """Refuse: it is running."""
        raise BrokerFailed("the Kafka of all tests runs already")

    @classmethod
    def asked_for(cls, address: str, process: int) -> SharedKafka:
        """Ask the process that hands out the tests, see `KafkaOfTheRun`, and wait until it runs."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_WAIT)
            connection.connect(address)
            connection.sendall(b"%d\n" % process)
            with connection.makefile() as answers:
                answer = json.loads(answers.readline())
        if "error" in answer:
            raise BrokerFailed(answer["error"])
        return cls(**answer)


class KafkaOfTheRun:
    """The broker of a test run, started when it is asked for.

    Args:
        processes: how many ask. Each gets a listener of its own for a proxy, because brokers name
            to clients the address of the listener at which they came.

    Attributes:
        address: the path of the socket at which processes ask.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._broker: Kafka | None = None
        self._behind: list[int] = []
        self._in_front: list[int] = []
        self._ports = PortClaims()
        # A path in a folder of pytest would be too long for a socket.
        self._folder = Path(tempfile.mkdtemp(prefix="spa-dat-run-"))
        self.address = str(self._folder / "kafka")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(processes)
        self._thread = threading.Thread(target=self._answer, name="kafka-of-the-run", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the broker."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(_WAIT)
        self._listener.close()
        if self._broker is not None:
            self._broker.close()
        self._ports.release()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError), connection.makefile() as questions:
                answer = self._description(int(questions.readline()))
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _description(self, process: int) -> dict[str, object]:
        try:
            if self._broker is None:
                self._broker = self._start()
        except Exception as error:
            return {"error": str(error)}
        return {
            "port": self._broker.port,
            "sasl_port": self._broker.sasl_port,
            "proxy_port": self._in_front[process],
            "behind": self._behind[process],
        }

    def _start(self) -> Kafka:
        self._behind = self._ports.take(self._processes)
        self._in_front = self._ports.take(self._processes)
        broker = kafka_for_all()
        try:
            self._add_listeners(broker)
            broker.start()
        except BaseException:
            broker.close()
            raise
        return broker

    def _add_listeners(self, broker: Kafka) -> None:
        config = broker.folder / "server.properties"
        lines = dict(line.split("=", 1) for line in config.read_text().splitlines())
        for number, (behind, in_front) in enumerate(zip(self._behind, self._in_front, strict=True)):
            name = f"PROXIED{number}"
            lines["listeners"] += f",{name}://{broker.host}:{behind}"
            lines["advertised.listeners"] += f",{name}://{broker.host}:{in_front}"
            lines["listener.security.protocol.map"] += f",{name}:PLAINTEXT"
            lines[f"listener.name.{name.lower()}.num.network.threads"] = "1"
        config.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
