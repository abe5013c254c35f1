"""The command line.

It may import everything. Begin with `_main`.
"""
