"""Every ctypes call of the package, one typed function each, raising OSError with the path.

The lowest floor: it knows Linux and nothing of union file systems.
"""
