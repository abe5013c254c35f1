"""What importing the package costs: modules are counted, since seconds depend on the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.unmeasured import unmeasured_environment

_CLIENT_LIBRARIES = frozenset(
    {
        "aiokafka",
        "aiomqtt",
        "click",
        "cloudpickle",
        "cramjam",
        "msgspec",
        "opentelemetry",
        "paho",
        "prometheus_client",
        "pydantic",
        "pykka",
        "rich",
        "watchfiles",
    }
)
# What actors and envelopes are made of.
_OF_ALL_APPLICATIONS = {"msgspec", "pykka"}

_APPLICATION = """
from spa_dat import DistributedApplication

app = DistributedApplication({url!r})

@app.application("plant/temperature")
async def temperature(celsius: float) -> None:
    ...
"""
_RUN = """
import asyncio

async def main() -> None:
    async with app:
        pass

asyncio.run(main())
"""


def loaded(program: str) -> set[str]:
    """Return the modules that a program loads beyond those of an interpreter without packages.

    What an interpreter loads at its start depends on how the packages are installed.
    """
    return _modules(program) - _modules("", "-S")


def _modules(program: str, *options: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, *options, "-c", f"import sys\n{program}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=unmeasured_environment(),
    )
    return set(done.stdout.split())


def libraries(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules} & _CLIENT_LIBRARIES


def test_the_package_alone_loads_nothing_but_itself() -> None:
    modules = loaded("import spa_dat")
    assert {module for module in modules if module.startswith("spa_dat")} == {"spa_dat"}
    assert not libraries(modules)
    assert "asyncio" not in modules
    assert len(modules) <= 60


@pytest.mark.parametrize("url", ["memory://", "mqtt://localhost", "kafka://localhost"])
def test_an_application_that_is_not_started_loads_no_library_of_a_broker(url: str) -> None:
    modules = loaded(_APPLICATION.format(url=url))
    assert libraries(modules) == _OF_ALL_APPLICATIONS
    assert len({module for module in modules if module.startswith("spa_dat")}) <= 155
    # These take long, and there is nothing for them to do yet.
    assert modules.isdisjoint({"email", "importlib.metadata", "urllib.request", "zipfile"})
    assert len(modules) <= 340


def test_an_application_that_runs_on_memory_loads_no_library_of_a_broker() -> None:
    assert libraries(loaded(_APPLICATION.format(url="memory://") + _RUN)) == _OF_ALL_APPLICATIONS
