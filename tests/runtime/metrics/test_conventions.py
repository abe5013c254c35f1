"""The names that the conventions have for buses, by their addresses."""

from __future__ import annotations

import pytest

from spa_dat.runtime.metrics._conventions import system_of
from spa_dat.transports import SocketProviderFactory


@pytest.mark.parametrize(
    ("url", "system"),
    [
        ("memory://", "memory"),
        ("mqtt://host", "mqtt"),
        ("mqtts://host", "mqtt"),
        ("ws://host/path", "mqtt"),
        ("wss://host/path", "mqtt"),
        ("mqtt+unix:///run/broker.sock", "mqtt"),
        ("kafka://host", "kafka"),
        ("kafkas://host", "kafka"),
    ],
)
def test_a_bus_is_of_the_system_that_the_conventions_know(url: str, system: str) -> None:
    assert system_of(SocketProviderFactory.from_url(url).address) == system
