"""What the options of actors and applications may be: checks, retry policies, state.

It may import `diagnostics`. Begin with `_checks`.
"""
