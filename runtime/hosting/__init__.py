"""Registered actors while the application is running: their lanes, work sources and timers.

It may import `handling` and below. Begin with `_actor_runner`, then `_lane`.
"""
