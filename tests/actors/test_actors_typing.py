"""What users write passes a strict type checker, and their mistakes do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.type_checking import check_types

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
def test_plain_and_async_overrides_pass(tmp_path: Path) -> None:
    out, status = check_types(GOOD, tmp_path / "good.py")
    assert status == 0, out
    assert 'Revealed type is "spa_dat.actors._reference.ActorRef[good.Boiler]"' in out
    assert "limit: float" in out or "builtins.float" in out


@pytest.mark.slow
def test_mistakes_are_found(tmp_path: Path) -> None:
    out, status = check_types(BAD, tmp_path / "bad.py")
    assert status == 1
    lines = [line for line in out.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in lines] == ["8", "9", "10"], out
