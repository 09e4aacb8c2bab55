"""The kernel's FUSE protocol as bytes, from version 7.31 to 7.45 (`<linux/fuse.h>`).

Sans-IO: everything here is a function from bytes to values or from values to bytes. Nothing in this package knows a
device, a file descriptor, a union or a system call, so all of it is tested without a kernel.

`abi` holds constants and struct layouts, `requests` decodes, `replies` and `notify` encode, `negotiate` answers INIT,
`render` prints messages for the debug log.
"""
