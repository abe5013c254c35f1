"""The event loop of a harness: virtual time, tasks and timers, and the threads it waits for.

It imports no other folder of the harness. Begin with `_virtual_time`.
"""
