"""Running one process inside a mounted root: namespaces, id maps, the root's own /proc and /dev, the terminal.

It is given a function that mounts something on a directory, and knows nothing of unions or of FUSE.
"""
