"""Constants and struct layouts of `<linux/fuse.h>`, version 7.45, as data.

Names are the kernel's without `FUSE_` (layouts: without `fuse_`, in upper case); the flags of INIT begin with `INIT_`.
Integers have the size the header gives them and the machine's byte order; there is no implicit padding, since the
kernel pads by hand. Fields the header calls padding, dummy, unused or spare are pad bytes: they are not unpacked, and
are written as zero. `FIELDS` names the others in order, which is the order of `Request.args`.
"""

from __future__ import annotations

import struct

KERNEL_VERSION = 7
KERNEL_MINOR_VERSION = 45
ROOT_ID = 1
MIN_READ_BUFFER = 8192  # read(2) on the device fails with EINVAL below this
UNIQUE_RESEND = 1 << 63  # set in `unique` when the kernel repeats a request after NOTIFY_RESEND
INVALID_UIDGID = 0xFFFFFFFF  # uid and gid of a request on an idmapped mount that creates nothing

# Opcodes
LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
SYMLINK = 6
MKNOD = 8
MKDIR = 9
UNLINK = 10
RMDIR = 11
RENAME = 12
LINK = 13
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
SETXATTR = 21
GETXATTR = 22
LISTXATTR = 23
REMOVEXATTR = 24
FLUSH = 25
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
FSYNCDIR = 30
GETLK = 31
SETLK = 32
SETLKW = 33
ACCESS = 34
CREATE = 35
INTERRUPT = 36
BMAP = 37
DESTROY = 38
IOCTL = 39
POLL = 40
NOTIFY_REPLY = 41
BATCH_FORGET = 42
FALLOCATE = 43
READDIRPLUS = 44
RENAME2 = 45
LSEEK = 46
COPY_FILE_RANGE = 47
SETUPMAPPING = 48
REMOVEMAPPING = 49
SYNCFS = 50
TMPFILE = 51
STATX = 52
COPY_FILE_RANGE_64 = 53

# Flags of INIT, both ways; bits 32 and above travel in `flags2`
INIT_ASYNC_READ = 1 << 0
INIT_POSIX_LOCKS = 1 << 1
INIT_FILE_OPS = 1 << 2
INIT_ATOMIC_O_TRUNC = 1 << 3
INIT_EXPORT_SUPPORT = 1 << 4
INIT_BIG_WRITES = 1 << 5
INIT_DONT_MASK = 1 << 6
INIT_SPLICE_WRITE = 1 << 7
INIT_SPLICE_MOVE = 1 << 8
INIT_SPLICE_READ = 1 << 9
INIT_FLOCK_LOCKS = 1 << 10
INIT_HAS_IOCTL_DIR = 1 << 11
INIT_AUTO_INVAL_DATA = 1 << 12
INIT_DO_READDIRPLUS = 1 << 13
INIT_READDIRPLUS_AUTO = 1 << 14
INIT_ASYNC_DIO = 1 << 15
INIT_WRITEBACK_CACHE = 1 << 16
INIT_NO_OPEN_SUPPORT = 1 << 17
INIT_PARALLEL_DIROPS = 1 << 18
INIT_HANDLE_KILLPRIV = 1 << 19
INIT_POSIX_ACL = 1 << 20
INIT_ABORT_ERROR = 1 << 21
INIT_MAX_PAGES = 1 << 22
INIT_CACHE_SYMLINKS = 1 << 23
INIT_NO_OPENDIR_SUPPORT = 1 << 24
INIT_EXPLICIT_INVAL_DATA = 1 << 25
INIT_MAP_ALIGNMENT = 1 << 26
INIT_SUBMOUNTS = 1 << 27
INIT_HANDLE_KILLPRIV_V2 = 1 << 28
INIT_SETXATTR_EXT = 1 << 29
INIT_INIT_EXT = 1 << 30
INIT_SECURITY_CTX = 1 << 32
INIT_HAS_INODE_DAX = 1 << 33
INIT_CREATE_SUPP_GROUP = 1 << 34
INIT_HAS_EXPIRE_ONLY = 1 << 35
INIT_DIRECT_IO_ALLOW_MMAP = 1 << 36
INIT_PASSTHROUGH = 1 << 37
INIT_NO_EXPORT_SUPPORT = 1 << 38
INIT_HAS_RESEND = 1 << 39
INIT_ALLOW_IDMAP = 1 << 40
INIT_OVER_IO_URING = 1 << 41
INIT_REQUEST_TIMEOUT = 1 << 42

# Which fields of SETATTR_IN are meant
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

# Answers to OPEN, OPENDIR, CREATE
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7

# Flags inside requests and replies
GETATTR_FH = 1 << 0
OPEN_KILL_SUIDGID = 1 << 0
READ_LOCKOWNER = 1 << 1
WRITE_CACHE = 1 << 0
WRITE_LOCKOWNER = 1 << 1
WRITE_KILL_SUIDGID = 1 << 2
RELEASE_FLUSH = 1 << 0
RELEASE_FLOCK_UNLOCK = 1 << 1
FSYNC_FDATASYNC = 1 << 0
LK_FLOCK = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
IOCTL_COMPAT = 1 << 0
IOCTL_UNRESTRICTED = 1 << 1
IOCTL_RETRY = 1 << 2
IOCTL_32BIT = 1 << 3
IOCTL_DIR = 1 << 4
IOCTL_COMPAT_X32 = 1 << 5
POLL_SCHEDULE_NOTIFY = 1 << 0
ATTR_SUBMOUNT = 1 << 0
ATTR_DAX = 1 << 1
EXPIRE_ONLY = 1 << 0  # of NOTIFY_INVAL_ENTRY
EXT_GROUPS = 32  # type of an extension header; below it, the count of security contexts

# Notifications, sent in place of the error of a reply to request 0
NOTIFY_POLL = 1
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_STORE = 4
NOTIFY_RETRIEVE = 5
NOTIFY_DELETE = 6
NOTIFY_RESEND = 7
NOTIFY_INC_EPOCH = 8
NOTIFY_PRUNE = 9

# ioctl(2) requests of the device: _IOC(direction, 229, number, size)
FUSE_DEV_IOC_CLONE = 0x8004E500
FUSE_DEV_IOC_BACKING_OPEN = 0x4010E501  # with a BACKING_MAP; returns the backing id
FUSE_DEV_IOC_BACKING_CLOSE = 0x4004E502
FUSE_DEV_IOC_SYNC_INIT = 0xE503

FIELDS: dict[struct.Struct, tuple[str, ...]] = {}


def _layout(codes: str, fields: str) -> struct.Struct:
    layout = struct.Struct("=" + codes)
    FIELDS[layout] = tuple(fields.split())
    return layout


IN_HEADER = _layout("IIQQIIIH2x", "len opcode unique nodeid uid gid pid total_extlen")
OUT_HEADER = _layout("IiQ", "len error unique")

# What requests carry. Times are signed in spite of the header: the kernel copies a time64_t into them.
FORGET_IN = _layout("Q", "nlookup")
FORGET_ONE = _layout("QQ", "nodeid nlookup")
BATCH_FORGET_IN = _layout("I4x", "count")
GETATTR_IN = _layout("I4xQ", "getattr_flags fh")
SETATTR_IN = _layout(
    "I4xQQQqqqIIII4xII4x",
    "valid fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode uid gid",
)
STATX_IN = _layout("I4xQII", "getattr_flags fh sx_flags sx_mask")
MKNOD_IN = _layout("III4x", "mode rdev umask")
MKDIR_IN = _layout("II", "mode umask")
RENAME_IN = _layout("Q", "newdir")
RENAME2_IN = _layout("QI4x", "newdir flags")
LINK_IN = _layout("Q", "oldnodeid")
OPEN_IN = _layout("II", "flags open_flags")
CREATE_IN = _layout("IIII", "flags mode umask open_flags")
RELEASE_IN = _layout("QIIQ", "fh flags release_flags lock_owner")
FLUSH_IN = _layout("Q8xQ", "fh lock_owner")
READ_IN = _layout("QQIIQI4x", "fh offset size read_flags lock_owner flags")
WRITE_IN = _layout("QQIIQI4x", "fh offset size write_flags lock_owner flags")
FSYNC_IN = _layout("QI4x", "fh fsync_flags")
SETXATTR_IN = _layout("III4x", "size flags setxattr_flags")
SETXATTR_IN_COMPAT = _layout("II", "size flags")  # without INIT_SETXATTR_EXT
GETXATTR_IN = _layout("I4x", "size")
LK_IN = _layout("QQQQIII4x", "fh owner lk.start lk.end lk.type lk.pid lk_flags")
ACCESS_IN = _layout("I4x", "mask")
INIT_IN = _layout("IIIII44x", "major minor max_readahead flags flags2")
INIT_IN_COMPAT = _layout("IIII", "major minor max_readahead flags")  # before 7.36
INTERRUPT_IN = _layout("Q", "unique")
BMAP_IN = _layout("QI4x", "block blocksize")
IOCTL_IN = _layout("QIIQII", "fh flags cmd arg in_size out_size")
POLL_IN = _layout("QQII", "fh kh flags events")
FALLOCATE_IN = _layout("QQQI4x", "fh offset length mode")
LSEEK_IN = _layout("QqI4x", "fh offset whence")
COPY_FILE_RANGE_IN = _layout("QQQQQQQ", "fh_in off_in nodeid_out fh_out off_out len flags")
SETUPMAPPING_IN = _layout("QQQQQ", "fh foffset len flags moffset")
REMOVEMAPPING_IN = _layout("I", "count")
REMOVEMAPPING_ONE = _layout("QQ", "moffset len")
SYNCFS_IN = _layout("8x", "")
NOTIFY_RETRIEVE_IN = _layout("8xQI20x", "offset size")
SECCTX_HEADER = _layout("II", "size nr_secctx")
SECCTX = _layout("I4x", "size")
EXT_HEADER = _layout("II", "size type")

# What replies carry. An entry, or the answer to GETATTR, is the layout here followed by ATTR.
ATTR = _layout(
    "QQQqqqIIIIIIIIII",
    "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags",
)
ENTRY_OUT = _layout("QQQQII", "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec")
ATTR_OUT = _layout("QI4x", "attr_valid attr_valid_nsec")
STATX_OUT = _layout("QII16x", "attr_valid attr_valid_nsec flags")
SX_TIME = _layout("qI4x", "tv_sec tv_nsec")
STATX_STAT = _layout(  # struct fuse_statx: STATX names the opcode
    "IIQIIIH2xQQQQ" + 4 * "qI4x" + "IIII112x",
    "mask blksize attributes nlink uid gid mode ino size blocks attributes_mask"
    " atime.tv_sec atime.tv_nsec btime.tv_sec btime.tv_nsec ctime.tv_sec ctime.tv_nsec mtime.tv_sec mtime.tv_nsec"
    " rdev_major rdev_minor dev_major dev_minor",
)
OPEN_OUT = _layout("QIi", "fh open_flags backing_id")
WRITE_OUT = _layout("I4x", "size")
KSTATFS = _layout("QQQQQIII28x", "blocks bfree bavail files ffree bsize namelen frsize")
GETXATTR_OUT = _layout("I4x", "size")
FILE_LOCK = _layout("QQII", "start end type pid")
INIT_OUT = _layout(
    "IIIIHHIIHHIIH22x",
    "major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment"
    " flags2 max_stack_depth request_timeout",
)
BMAP_OUT = _layout("Q", "block")
IOCTL_OUT = _layout("iIII", "result flags in_iovs out_iovs")
POLL_OUT = _layout("I4x", "revents")
LSEEK_OUT = _layout("q", "offset")
COPY_FILE_RANGE_OUT = _layout("Q", "bytes_copied")  # of COPY_FILE_RANGE_64 alone
DIRENT = _layout("QQII", "ino off namelen type")

# Notifications, and the argument of FUSE_DEV_IOC_BACKING_OPEN
NOTIFY_INVAL_INODE_OUT = _layout("Qqq", "ino off len")
NOTIFY_INVAL_ENTRY_OUT = _layout("QII", "parent namelen flags")
NOTIFY_DELETE_OUT = _layout("QQI4x", "parent child namelen")
NOTIFY_STORE_OUT = _layout("QQI4x", "nodeid offset size")
BACKING_MAP = _layout("iI8x", "fd flags")
