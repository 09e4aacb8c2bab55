"""A union file system in Python: layers merged by a FUSE server, and processes run on top of them."""

__version__ = "0.1.0"
