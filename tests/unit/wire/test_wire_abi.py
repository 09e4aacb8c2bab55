"""The layouts and constants are those of `<linux/fuse.h>`: a C compiler says what the header means.

What the machine's header is too old to know is left out, by name; everything it has is compared.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from unionfs.fuse.wire import abi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INCLUDE = (
    "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/fuse.h>\n"
)

LAYOUTS = {name: value for name, value in vars(abi).items() if isinstance(value, struct.Struct)}
CONSTANTS = {name: value for name, value in vars(abi).items() if isinstance(value, int)}

OTHER_STRUCTS = {"STATX_STAT": "fuse_statx", "SETXATTR_IN_COMPAT": "fuse_setxattr_in", "INIT_IN_COMPAT": "fuse_init_in"}
# Layouts that are only the beginning of the struct, and what they leave to another layout or another kernel.
BEGINNINGS = {
    "ENTRY_OUT": "attr",
    "ATTR_OUT": "attr",
    "STATX_OUT": "stat",
    "SETXATTR_IN_COMPAT": "setxattr_flags",
    "INIT_IN_COMPAT": "flags2",
}
OURS = {"MIN_READ_BUFFER", "UNIQUE_RESEND", "INVALID_UIDGID", "NOTIFY_REPLY"}


def offsets(layout: struct.Struct) -> Iterator[int]:
    codes = layout.format
    for match in re.finditer(r"(\d*)([a-zA-Z])", codes):
        if match[2] != "x":
            yield struct.calcsize(codes[: match.start()])


def c_struct(name: str) -> str:
    return OTHER_STRUCTS.get(name, "fuse_" + name.lower())


def c_constant(name: str) -> str:
    if name.startswith(("FATTR_", "FOPEN_", "FUSE_")):
        return name
    return "FUSE_" + name.removeprefix("INIT_")


class Header:
    """`<linux/fuse.h>` as the compiler of this machine sees it."""

    def __init__(self, compiler: str, directory: Path) -> None:
        self.compiler = compiler
        self.directory = directory
        self.text = self.run(["-E", "-"], INCLUDE)
        self.macros = set(re.findall(r"^#define (\w+)", self.run(["-E", "-dM", "-"], INCLUDE), re.MULTILINE))

    def run(self, arguments: list[str], source: str) -> str:
        command = [self.compiler, "-x", "c", *arguments]
        return subprocess.run(command, input=source, capture_output=True, text=True, check=True, timeout=60).stdout

    def has_struct(self, name: str) -> bool:
        return re.search(rf"struct {name} {{", self.text) is not None

    def has_member(self, name: str, member: str) -> bool:
        body = re.search(rf"struct {name} {{(.*?)\n}};", self.text, re.DOTALL)
        return body is not None and re.search(rf"\b{member.split('.')[0]}\b", body[1]) is not None

    def has_constant(self, name: str) -> bool:
        return name in self.macros or re.search(rf"\b{name}\s*=", self.text) is not None

    def values(self, expressions: list[str]) -> list[int]:
        prints = "".join(f'printf("%llu\\n", (unsigned long long)({expression}));\n' for expression in expressions)
        program = self.directory / "program"
        self.run(["-", "-o", str(program)], f"{INCLUDE}int main(void) {{\n{prints}return 0; }}\n")
        output = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout
        return [int(line) for line in output.split()]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: neither gcc nor cc is in PATH")
    try:
        return Header(compiler, tmp_path_factory.mktemp("abi"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"<linux/fuse.h> cannot be compiled: {error.stderr.splitlines()[0]}")


def test_sizes_are_those_of_the_header(header: Header) -> None:
    known = [name for name in LAYOUTS if header.has_struct(c_struct(name))]
    assert len(known) > 50
    expressions = [
        f"offsetof(struct {c_struct(name)}, {BEGINNINGS[name]})"
        if name in BEGINNINGS
        else f"sizeof(struct {c_struct(name)})"
        for name in known
    ]
    assert {name: LAYOUTS[name].size for name in known} == dict(zip(known, header.values(expressions), strict=True))


def test_fields_stand_where_the_header_puts_them(header: Header) -> None:
    ours = {
        f"offsetof(struct {c_struct(name)}, {field})": offset
        for name, layout in LAYOUTS.items()
        for field, offset in zip(abi.FIELDS[layout], offsets(layout), strict=True)
        if header.has_member(c_struct(name), field)
    }
    assert len(ours) > 180
    assert ours == dict(zip(ours, header.values(list(ours)), strict=True))


def test_constants_are_those_of_the_header(header: Header) -> None:
    ours = {
        c_constant(name): value
        for name, value in CONSTANTS.items()
        if name not in OURS and header.has_constant(c_constant(name))
    }
    assert len(ours) > 130
    minor = ours.pop("FUSE_KERNEL_MINOR_VERSION")
    assert ours == dict(zip(ours, header.values(list(ours)), strict=True))
    assert minor == 45


def test_a_layout_has_one_name_for_each_value() -> None:
    for layout in LAYOUTS.values():
        assert len(layout.unpack(bytes(layout.size))) == len(abi.FIELDS[layout])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("STATX_IN", 24),
        ("STATX_OUT", 32),
        ("STATX_STAT", 256),
        ("BACKING_MAP", 16),
        ("COPY_FILE_RANGE_OUT", 8),
        ("OPEN_OUT", 16),
        ("INIT_OUT", 64),
        ("ATTR", 88),
    ],
)
def test_sizes_that_older_headers_do_not_tell(name: str, size: int) -> None:
    assert LAYOUTS[name].size == size


def test_ioctl_numbers_follow_from_their_parts() -> None:
    def ioc(direction: int, number: int, size: int) -> int:
        return direction << 30 | size << 16 | 229 << 8 | number

    write, read = 1, 2  # _IOC_WRITE, _IOC_READ of <asm-generic/ioctl.h>
    assert ioc(read, 0, 4) == abi.FUSE_DEV_IOC_CLONE
    assert ioc(write, 1, abi.BACKING_MAP.size) == abi.FUSE_DEV_IOC_BACKING_OPEN
    assert ioc(write, 2, 4) == abi.FUSE_DEV_IOC_BACKING_CLOSE
    assert ioc(0, 3, 0) == abi.FUSE_DEV_IOC_SYNC_INIT
