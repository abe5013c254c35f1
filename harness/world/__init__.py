"""The worlds of a harness: applications under test, their buses, faults, and what is observed.

It may import `loop` and `simulated`, and the errors, faults and trace of the harness. Begin with
`_world`.
"""
