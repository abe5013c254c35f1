"""Registered actors while the application runs: their lanes, timers and producers.

It may import `handling` and below. Begin with `_actor_runner`, then `_lane`.
"""
