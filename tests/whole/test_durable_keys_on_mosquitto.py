"""What durable keys have counted and published is right although the process is killed."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from spa_dat import DistributedApplication, Message
from spa_dat.testing import Mosquitto
from support import durable_counter_path
from support.waiting import eventually

KILLS = int(os.environ.get("SPA_DAT_TEST_KILLS", "4"))
KEYS = 20
PER_KILL = 500


@pytest.mark.mosquitto
@pytest.mark.slow
@pytest.mark.deadline(120 + 10 * KILLS)
async def test_every_number_is_there_once_whenever_the_process_is_killed(
    own_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    url = own_mosquitto(durable=True).url
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    contents: dict[str | None, set[str]] = defaultdict(set)
    numbers: dict[str, list[list[int]]] = defaultdict(list)
    arrived = 0
    reader = DistributedApplication(url, name="reader")

    @reader.application("done/{key}")
    async def note(payload: list[int], key: str, message: Message[bytes]) -> None:
        nonlocal arrived
        arrived += 1
        contents[message.id].add(f"{key} {payload}")
        numbers[key].append(payload)

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, durable_counter_path, url, str(tmp_path / "states")]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    sent = 0
    async with reader:
        process = start()
        try:
            # Its subscription has to be there before the first message.
            await eventually(lambda: _sent_one(reader, contents))
            for _ in range(KILLS):
                for _ in range(PER_KILL):
                    reader.socket().post(f"work/{sent % KEYS}", sent)
                    sent += 1
                before = arrived
                least = dice.randrange(1, PER_KILL // 2)
                await eventually(lambda b=before, n=least: arrived >= b + n)  # type: ignore[misc]
                process.kill()
                await asyncio.to_thread(process.wait)
                process = start()
            await eventually(
                lambda: sum(len({n for _, n in numbers[str(key)]}) for key in range(KEYS)) >= sent
            )
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
    numbers.pop("first", None)
    assert all(len(content) == 1 for content in contents.values())
    for key in range(KEYS):
        firsts = list(dict.fromkeys(map(tuple, numbers[str(key)])))
        expected = range(key, sent, KEYS)
        assert [n for _, n in firsts] == list(range(1, len(expected) + 1))
        assert [number for number, _ in firsts] == list(expected)
    print(f"{sent} messages, {KILLS} kills, {arrived - len(contents)} outputs came twice")


def _sent_one(reader: DistributedApplication, contents: dict[str | None, set[str]]) -> bool:
    if not contents:
        reader.socket().post("work/first", 0)
    return bool(contents)
