"""The application: registration, starting, stopping, signals and exit codes.

It may import `hosting` and below. Begin with `_application`.
"""
