"""Applications under test on real brokers, in real time.

Begin with `_live`."""
