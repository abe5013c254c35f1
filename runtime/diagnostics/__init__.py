"""An application's reports about itself: stacks, problems, and what was given up.

The lowest room of the runtime: it imports none of the others. Begin with `_problems`.
"""
