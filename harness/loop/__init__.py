"""The event loop of a harness: virtual time, and threads that it knows of.

It imports no other room of the harness. Begin with `_clock`.
"""
