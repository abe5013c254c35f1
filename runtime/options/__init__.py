"""Options of actors and applications: their checks, retry policies, state.

It may import `diagnostics`. Begin with `_checks`.
"""
