"""Options of actors and applications: defaults, checks, codecs, retry policies, state, resources.

It may import `diagnostics`. Begin with `_actor_options`.
"""
