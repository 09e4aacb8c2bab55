"""The FUSE side of the package: the kernel's protocol, the device, mounting.

Nothing outside of this package knows what a kernel request looks like; within it only `dispatch` knows both the
protocol and the union.
"""
