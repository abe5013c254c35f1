"""What starting, looking at and stopping thousands of actors costs grows no faster than they do."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from spa_dat import DistributedApplication


class Steps:
    """Counts the lines that run in the package: the same in each run, whatever the machine does."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Steps:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *args: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if "spa_dat" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.count += 1
        return self._trace


def application(actors: int) -> DistributedApplication:
    app = DistributedApplication("memory://", name="plant", stop_timeout=60)

    async def handle(payload: bytes) -> None:
        pass

    for number in range(actors):
        app.application(f"machine/{number}", name=f"a{number}")(handle)
    return app


async def steps(actors: int, what: str) -> int:
    app, counted = application(actors), Steps()
    if what == "start":
        with counted:
            await app.__aenter__()
        await app.__aexit__(None, None, None)
        return counted.count
    await app.__aenter__()
    with counted:
        if what == "problems":
            assert app.problems == {}
        else:
            await app.__aexit__(None, None, None)
    if what != "stop":
        await app.__aexit__(None, None, None)
    return counted.count


@pytest.mark.parametrize("what", ["start", "problems", "stop"])
async def test_four_times_the_actors_take_four_times_the_steps(what: str) -> None:
    few, many = await steps(50, what), await steps(200, what)

    # What is done for each pair of actors would make it up to 16 times.
    assert many < 4.5 * few
