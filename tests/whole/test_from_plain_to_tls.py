"""A program moves from a plain broker to TLS with a login by its document alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from spa_dat._pytest import require
from spa_dat.testing import Kafka, Mosquitto

PROGRAM = """
import os

from spa_dat import DistributedApplication, Socket

app = DistributedApplication(os.environ["DOCUMENT"], name=os.environ["NAME"])


@app.application("{name}/double", replies=True)
async def double(number: int) -> int:
    return 2 * number


@app.producer()
async def ask(socket: Socket) -> None:
    print(await socket.request("{name}/double", 21, reply=int, timeout=30), flush=True)
    app.stop()


app.run()
"""
PASSWORD = "hunter2-canary"
_PATIENCE = 90


async def run(program: Path, document: Path, name: str) -> str:
    """Run the program with a document; return what it prints."""

    def ended() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, program],
            env={**os.environ, "DOCUMENT": document.as_uri(), "NAME": name},
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )

    done = await asyncio.to_thread(ended)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return done.stdout.strip()


async def moves(tmp_path: Path, documents: Sequence[str]) -> None:
    name = f"moves{uuid.uuid4().hex[:8]}"
    program, document = tmp_path / "program.py", tmp_path / "plant.toml"
    program.write_text(PROGRAM.replace("{name}", name), encoding="utf-8")
    for text in documents:
        document.write_text(text, encoding="utf-8")
        assert await run(program, document, name) == "42", text


@pytest.mark.mosquitto
async def test_on_mqtt(own_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> None:
    plain = own_mosquitto()
    guarded = own_mosquitto(users={"ann": PASSWORD}, tls=True)
    await moves(
        tmp_path,
        [
            f'url = "{plain.url}"',
            f"""
            url = "mqtts://{guarded.host}:{guarded.tls_port}"
            username = "ann"
            password = "{PASSWORD}"
            tls_ca = "{guarded.ca_file}"
            """,
        ],
    )


@pytest.mark.kafka
@pytest.mark.slow
async def test_on_kafka(tmp_path: Path) -> None:
    require(Kafka)
    with Kafka(sasl_users={"ann": PASSWORD}, tls=True) as broker:
        anything: tuple[Any, ...] = ("ALL", "TOPIC", "*"), ("ALL", "GROUP", "*")
        for operation, kind, name in anything:
            broker.grant("ann", operation, kind, name)
        common = 'create_topics = "all"\n'
        await moves(
            tmp_path,
            [
                f'url = "kafka://{broker.server}"\n{common}',
                f"""
                url = "kafkas://{broker.host}:{broker.tls_port}"
                {common}
                sasl_mechanism = "SCRAM-SHA-256"
                username = "ann"
                password = "{PASSWORD}"
                tls_ca = "{broker.ca_file}"
                """,
            ],
        )
