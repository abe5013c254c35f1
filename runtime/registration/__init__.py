"""Registration: from a function or a class to an actor's specification, and its resources.

It may import `injection` and below. Begin with `_registration`.
"""
