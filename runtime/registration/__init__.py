"""Registration: from a function or a class to an actor's specification.

It may import `injection` and below. Begin with `_specs_from_code`.
"""
