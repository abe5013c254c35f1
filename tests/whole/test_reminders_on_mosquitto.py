"""Reminders have their effects once although the process is killed, and the broker with it."""

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
from support import reminder_counter_path
from support.waiting import eventually

KILLS = int(os.environ.get("SPA_DAT_TEST_KILLS", "4"))
KEYS = 10
TICKS = 60


@pytest.mark.mosquitto
@pytest.mark.slow
@pytest.mark.deadline(120 + 10 * KILLS)
async def test_every_tick_is_there_once_whenever_the_process_is_killed(
    own_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    url = own_mosquitto(durable=True).url
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    contents: dict[str | None, set[str]] = defaultdict(set)
    numbers: dict[str, list[list[int]]] = defaultdict(list)
    reader = DistributedApplication(url, name="reader")

    @reader.application("ticked/{key}")
    async def note(payload: list[int], key: str, message: Message[bytes]) -> None:
        contents[message.id].add(f"{key} {payload}")
        numbers[key].append(payload)

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, reminder_counter_path, url, str(tmp_path / "states"), str(TICKS)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    async with reader:
        process = start()
        try:
            # Its subscription has to be there before the first message.
            await eventually(lambda: _sent_one(reader, contents))
            for key in range(KEYS):
                await reader.socket().publish(f"start/{key}")
            for _ in range(KILLS):
                least = len(contents) + dice.randrange(1, KEYS * TICKS // (2 * KILLS))
                await eventually(lambda n=least: len(contents) >= n)  # type: ignore[misc]
                process.kill()
                await asyncio.to_thread(process.wait)
                process = start()
            await eventually(
                lambda: all(_last(numbers[str(key)]) == TICKS for key in range(KEYS)), 60
            )
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
    assert all(len(content) == 1 for content in contents.values())
    for key in range(KEYS):
        firsts = list(dict.fromkeys(map(tuple, numbers[str(key)])))
        assert firsts == [(n, n) for n in range(1, TICKS + 1)]


def _last(ticks: list[list[int]]) -> int:
    return max((number for number, _ in ticks), default=0)


def _sent_one(reader: DistributedApplication, contents: dict[str | None, set[str]]) -> bool:
    if not contents:
        reader.socket().post("start/first")
    return bool(contents)
