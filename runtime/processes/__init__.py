"""Child processes of actors: what is sent to them and back, how they are started and watched.

It may import `handling` and below. Begin with `_child_process`.
"""
