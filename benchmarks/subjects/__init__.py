"""What is measured.

Each module runs in a process of its own, some without this package's own dependencies: see
`benchmarks._children`.
"""
