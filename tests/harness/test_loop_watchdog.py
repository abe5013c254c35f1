"""The watchdog of the harness strikes what blocks a loop, and nothing that comes after it."""

from __future__ import annotations

import signal
import subprocess
import sys
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


TRACED_AFTERWARDS = """
import sys, threading
from spa_dat.harness.loop._loop_watchdog import Heartbeat, _interrupt, watched

def loop():
    beat = Heartbeat(60.0, lambda: False)
    with watched(beat):
        if sys.argv[1] == "interrupted":
            beat.blocked = "for long"
            _interrupt(beat.ident)

thread = threading.Thread(target=loop)
thread.start()
thread.join()
# What is still to be raised in a thread makes this endless on Python 3.11, whichever thread it is.
sys.settrace(lambda frame, event, argument: None)
(lambda: None)()
"""


@pytest.mark.parametrize("how", ["undisturbed", "interrupted"])
def test_a_loop_in_a_thread_leaves_nothing_to_be_raised(how: str) -> None:
    command = [sys.executable, "-c", TRACED_AFTERWARDS, how]
    subprocess.run(command, check=True, timeout=60, capture_output=True)


def test_what_a_thread_has_not_raised_yet_is_raised_in_its_loop() -> None:
    reached: list[str] = []

    def in_thread() -> None:
        _loop_watchdog._raise_what_is_left()
        reached.append("afterwards")

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join(60)
    assert reached == ["afterwards"]
