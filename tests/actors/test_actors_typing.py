"""What users write passes a strict type checker, and their mistakes do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.type_checking import check_types, errors

pytest.importorskip("mypy")

GOOD = """
from typing import Any
from spa_dat.actors import Actor, ActorRef, ActorSystem, on

class Boiler(Actor):
    topics = ("plant/boiler/temperature", "plant/boiler/limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit

    async def on_start(self) -> None: ...
    async def on_stop(self) -> None: ...
    async def on_receive(self, message: str) -> int:
        ref: ActorRef[Boiler] = self.actor_ref
        await ref.send(message)
        return len(message)
    async def on_failure(self, error: Exception) -> None: ...
    async def on_message(self, reading: float, machine: str) -> bool:
        return reading > self.limit

    @on("plant/boiler/limit")
    async def change(self, limit: float) -> None:
        self.limit = limit

class Machine(Actor):
    @on("machine/start")
    async def start(self, speed: float) -> bool:
        return speed > 0
    @on("machine/stop")
    def stop(self, hard: bool) -> None: ...

class Plain(Actor):
    topics = "plant/#"
    def on_start(self) -> None: ...
    def on_receive(self, message: Any) -> None: ...
    def on_message(self, payload: bytes) -> None: ...

async def use(system: ActorSystem) -> None:
    ref = system.spawn(lambda: Boiler(90.0), name="boiler")
    reveal_type(ref)
    general: ActorRef[Actor] = ref
    general.tell("x")
    reveal_type(Boiler.change)
"""

BAD = """
from spa_dat.actors import Actor, ActorRef, ActorSystem

class One(Actor): ...
class Two(Actor): ...

def use(system: ActorSystem) -> None:
    ref: ActorRef[Two] = system.spawn(One)
    ref.tell()
    system.spawn(int)
"""


@pytest.mark.slow
def test_plain_and_async_overrides_pass_and_mistakes_are_found(tmp_path: Path) -> None:
    good, bad = check_types(tmp_path, GOOD, BAD)
    assert errors(good) == [], good
    assert any('Revealed type is "spa_dat.actors._reference.ActorRef[Boiler]"' in x for x in good)
    assert any("limit: float" in line or "builtins.float" in line for line in good)
    assert errors(bad) == [8, 9, 10], bad
