"""The benchmark of the project: the same work on every union file system there is. ``python -m benchmarks --help``."""
