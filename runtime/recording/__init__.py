"""Recording the messages that reach the actors of an application, and reading recordings.

It may import every other folder of the runtime. Begin with `_recorder`.
"""
