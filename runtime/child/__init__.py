"""The child process of an actor: the runtime again, with the pipe to the parent as its bus.

It may import `application` and below. Begin with `_main`.
"""
