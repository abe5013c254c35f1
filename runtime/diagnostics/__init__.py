"""An application's reports about itself: stacks, problems, and what was given up.

The lowest folder of the runtime: it imports none of the others. Begin with `_problems`.
"""
