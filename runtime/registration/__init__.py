"""From a function or a class to the registration of an actor, with its resources.

It may import `injection` and below. Begin with `_registration`.
"""
