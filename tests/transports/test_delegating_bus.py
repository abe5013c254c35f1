"""The bus that leaves everything to another one."""

from __future__ import annotations

from spa_dat.transports import Bus
from spa_dat.transports._delegating_bus import DelegatingBus


def test_it_leaves_nothing_to_the_defaults_of_a_bus() -> None:
    # The other one may do something else.
    public = {name for name in vars(Bus) if not name.startswith("_")}
    assert public <= vars(DelegatingBus).keys()
