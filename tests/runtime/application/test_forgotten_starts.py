"""Whoever forgets to start an application is told at the end of the program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import multiprocessing, sys
from spa_dat import DistributedApplication
from spa_dat.testing import Harness

plant = DistributedApplication("memory://", name="mill")
other = DistributedApplication("memory://", name="other")

if len(sys.argv) > 1:
    @plant.application("a")
    async def handle(x: int) -> None: ...
"""
_TOLD = (
    "spa_dat: application 'mill' has actors, but was never started: to run it, end the program with"
    " plant.run()\n"
)


def errors_of(folder: Path, *arguments: str, end: str = "") -> str:
    path = folder / "script.py"
    path.write_text(_SCRIPT + end)
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


def test_a_script_that_registers_actors_and_ends_is_told_what_it_lacks(tmp_path: Path) -> None:
    assert errors_of(tmp_path, "actors") == _TOLD
    assert errors_of(tmp_path, "actors", end="# plant.run()") == _TOLD
    assert errors_of(tmp_path, "actors", end="print('to start: plant.run()')") == _TOLD
    assert errors_of(tmp_path, "actors", end="other.run; print(plant)") == _TOLD
    # One without actors may have been made for something else.
    assert errors_of(tmp_path) == ""


@pytest.mark.parametrize(
    "end",
    [
        "plant.remove('handle')\n@plant.producer()\nasync def once() -> None: ...\nplant.run()",
        "with Harness(plant) as harness: harness.settle()",
        "del plant",
        "sys.exit()\nplant.run()",
        "sys.exit()\nspa_dat.run(other, plant)",
        "sys.exit()\nwith plant: pass",
        "sys.exit()\nspa_dat.run(\n    other,\n    plant,\n)",
        "sys.exit()\nstack.enter_context(plant)",
        "sys.exit()\nasync def main():\n    async with other, plant:\n        pass",
        "with plant: pass",
    ],
)
def test_others_are_told_nothing(tmp_path: Path, end: str) -> None:
    assert errors_of(tmp_path, "actors", end=end) == ""


def test_who_imports_an_application_is_told_nothing(tmp_path: Path) -> None:
    (tmp_path / "mill.py").write_text(_SCRIPT)
    script = tmp_path / "other.py"
    script.write_text("from mill import plant\nprint(plant)")
    command = [sys.executable, str(script), "actors"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "mill" in ended.stdout
    assert ended.stderr == ""


def test_a_script_that_fails_has_said_enough(tmp_path: Path) -> None:
    assert "never started" not in errors_of(tmp_path, "actors", end="1 / 0")


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_the_processes_that_it_starts_are_told_nothing(tmp_path: Path, method: str) -> None:
    end = f"""
if __name__ == "__main__":
    process = multiprocessing.get_context({method!r}).Process(target=int)
    process.start()
    process.join()
"""
    assert errors_of(tmp_path, "actors", end=end) == _TOLD


def test_a_start_whose_event_loop_ends_with_it_is_told_what_to_wait_for(tmp_path: Path) -> None:
    told = errors_of(tmp_path, "actors", end="import asyncio\nasyncio.run(plant.start())")
    assert "asyncio.run(), which cancels all tasks" in told
    assert "await app.wait()" in told


def test_a_forked_process_that_leaves_the_application_is_told_what_it_is(tmp_path: Path) -> None:
    end = """
import asyncio, os
async def main():
    async with plant:
        child = os.fork()
        if child == 0:
            return
        os.waitpid(child, 0)
asyncio.run(main())
"""
    told = errors_of(tmp_path, "actors", end=end)
    assert "aclose() of application 'mill' was awaited where no event loop is running" in told
