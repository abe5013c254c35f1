"""The watchdog of the harness strikes what blocks a loop, and nothing that comes after it."""

from __future__ import annotations

import signal
import threading

import pytest

from spa_dat.harness.loop import _loop_watchdog
from spa_dat.harness.loop._loop_watchdog import Heartbeat, LoopBlocked, watched


def heartbeat(grace: float = 60.0) -> Heartbeat:
    return Heartbeat(grace, lambda: False)


def test_what_blocks_a_loop_is_interrupted() -> None:
    blocked = heartbeat(0.05)
    with pytest.raises(LoopBlocked), watched(blocked):
        threading.Event().wait(60)
    assert "blocked for 0.05 real seconds" in str(blocked.blocked)


def test_time_in_which_the_loop_does_not_run_blocks_nothing() -> None:
    beat = heartbeat(5.0)
    with watched(beat):
        pass
    beat.look(0.0)
    beat.begin()
    beat.look(1_000.0)
    assert beat.blocked is None


@pytest.mark.skipif(_loop_watchdog._SIGNAL is None, reason="there is no such signal here")
def test_an_interrupt_that_comes_too_late_strikes_nobody() -> None:
    assert _loop_watchdog._SIGNAL is not None
    late = heartbeat()
    with watched(late):
        late.is_over = True
        signal.raise_signal(_loop_watchdog._SIGNAL)


def test_a_loop_that_is_interrupted_at_its_very_end_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(self: object, heartbeat: Heartbeat) -> None:
        raise LoopBlocked("at the last moment")

    over = heartbeat(0.05)
    with monkeypatch.context() as patch:
        patch.setattr(_loop_watchdog._LoopWatchdog, "remove", interrupted)
        with pytest.raises(LoopBlocked, match="at the last moment"), watched(over):
            pass
    looked = threading.Event()

    def is_waiting() -> bool:
        looked.set()
        return True

    with watched(Heartbeat(0.05, is_waiting)):
        assert looked.wait(60)
    with _loop_watchdog._watchdog._lock:
        assert over not in _loop_watchdog._watchdog._heartbeats
