"""Recording the messages that reach an application's actors.

with Recorder(app, "incident.jsonl"):
    app.run()

`spa_dat.testing.Harness.replay` replays a recording in a test.
"""

from __future__ import annotations

from .runtime.recording._recorder import Recorder
from .runtime.recording._recording_format import Receipt
from .runtime.recording._recording_reader import read_recording

__all__ = ["Receipt", "Recorder", "read_recording"]
