"""Registered actors while the application runs: their mailboxes, lanes, timers and producers.

It may import `handling` and below. Begin with `_host`."""
