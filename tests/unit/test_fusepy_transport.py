"""The parts of the transport through libfuse that need neither libfuse nor a mount."""

from __future__ import annotations

import errno
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tests.support.probes import requires
from unionfs import errors
from unionfs.fuse import fusepy_adapter, fusepy_library, fusepy_paths
from unionfs.fuse.fusepy_operations import Operations
from unionfs.fuse.fusepy_paths import Paths
from unionfs.fuse.mounting import parse_options
from unionfs.union.mutate import Mutations
from unionfs.union.stack import Config, open_stack
from unionfs.union.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from unionfs.fuse.fusepy_library import FileInfo, Library
    from unionfs.union.stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Two lower layers under a writable one."""
    for name in ("upper", "work", "lower0/dir", "lower1/dir"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(100):
        (tmp_path / f"lower{number % 2}/dir/{number}").touch()
    lowers = [os.fsencode(tmp_path / f"lower{number}") for number in range(2)]
    config = Config(lowers, os.fsencode(tmp_path / "upper"), os.fsencode(tmp_path / "work"))
    opened = open_stack(config, own_process=False)
    yield opened
    opened.close()


# -- paths and nodes -------------------------------------------------------------------------------------------------


def test_the_memory_of_nodes_is_bounded(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that were looked up are forgotten in the end, and their directories with them."""
    monkeypatch.setattr(fusepy_paths, "_REMEMBERED_NODES", 10)
    paths = Paths(stack.view)
    for number in range(100):
        paths.node(f"/dir/{number}")
        paths.trim()
    assert len(stack.view.nodes.by_id) <= 10 + 2, "the remembered ones, their directory and the root"
    monkeypatch.setattr(fusepy_paths, "_REMEMBERED_NODES", 0)
    paths.trim()
    assert list(stack.view.nodes.by_id) == [1]


def test_paths_lead_to_nodes(stack: Stack) -> None:
    """As path_resolution(7) has it; a path that libfuse does not have is stale."""
    paths = Paths(stack.view)
    assert paths.node("/") is stack.view.nodes.root
    assert paths.node("/dir") is paths.node("/dir")
    assert paths.entry("/dir/new") == (paths.node("/dir"), b"new")
    for path, number in (
        ("/absent", errno.ENOENT),
        ("/dir/0/below", errno.ENOTDIR),
        ("/absent/below", errno.ENOENT),
        (None, errno.ESTALE),
    ):
        with pytest.raises(OSError, match=os.strerror(number)):
            paths.node(path)


def test_a_name_that_goes_counts_no_longer(stack: Stack) -> None:
    """What nobody has open leaves the table with its name; a removal that fails leaves all as it was."""
    paths, edit = Paths(stack.view), stack.writable()
    node, place = paths.node("/dir/5"), paths.entry("/dir/5")

    def fail() -> None:
        raise OSError(errno.EPERM, "")

    with pytest.raises(PermissionError):
        paths.removing(node, fail)
    assert (paths.node("/dir/5"), node.lookups) == (node, 1)
    paths.removing(node, lambda: edit.unlink(*place))
    assert node.id not in stack.view.nodes.by_id
    with pytest.raises(FileNotFoundError):
        paths.node("/dir/5")


# -- callbacks -------------------------------------------------------------------------------------------------------


def _operations(stack: Stack) -> Operations:
    stranger = os.geteuid() + 1
    return Operations(stack, lambda: (stranger, stranger, 0, os.getpid()), lambda _name: None, lambda: None)


def _info(flags: int, handle: int = 0) -> FileInfo:
    return cast("FileInfo", SimpleNamespace(flags=flags, fh=handle, keep_cache=0, writepage=0))


@requires("root", "trusted-xattrs")
def test_syncing_a_file_syncs_the_attributes_that_were_copied_alone(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lower0/file").write_bytes(bytes(10_000))
    stack.writable().copyup.metacopy = True
    operations, info, synced = _operations(stack), _info(os.O_RDONLY), []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.stat(descriptor).st_ino))
    operations.open("/file", info)
    operations.fsync(None, 0, info)
    assert synced == [], "the lower file"
    operations.chmod("/file", 0o600)
    operations.fsync(None, 0, info)
    assert synced == [(tmp_path / "upper/file").stat().st_ino]
    operations.release(None, info)


def test_who_may_read_a_directory_and_not_search_it_sees_its_names(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = _operations(stack)
    handle = operations.opendir("/")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(View, "lookup", refuse)
    assert "dir" in [entry[0] for entry in operations.readdir_with_offset("/", 0, handle)]
    operations.releasedir("/", handle)


def test_an_open_that_fails_late_leaves_nothing_open(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = _operations(stack)
    node = operations._paths.file("/dir/1")
    stack.writable().chmod(node, 0o4755)
    before = os.listdir("/proc/self/fd")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(Mutations, "chmod", refuse)
    with pytest.raises(PermissionError):
        operations.open("/dir/1", _info(os.O_WRONLY | os.O_TRUNC))
    assert node.opened is None
    assert os.listdir("/proc/self/fd") == before


# -- errors ----------------------------------------------------------------------------------------------------------


def _call(operation: Callable[..., object]) -> tuple[int, list[str]]:
    """Return the errno that a callback ends with, and what was reported."""
    reported: list[str] = []
    operations = SimpleNamespace(read=operation, between=lambda: None)
    callbacks = fusepy_adapter._Callbacks(cast("Operations", operations), frozenset({"statfs"}), reported.append)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is asked for
        vars(callbacks)["read"]("/path", 1)
    return caught.value.errno or 0, reported


def test_an_error_keeps_its_number() -> None:
    """fusepy can do nothing with an OSError that has no errno, or a wrong one."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "full")

    def fail(*_: object) -> None:
        raise OSError("no number")

    assert _call(refuse) == (errno.ENOTEMPTY, [])
    assert _call(fail) == (errno.EIO, [])


def test_a_bug_is_reported_with_its_request() -> None:
    """Whoever asked gets EIO, the log gets the rest, and the mount lives on."""

    def read(*_: object) -> None:
        raise KeyError("a bug")

    number, reported = _call(read)
    assert number == errno.EIO
    assert "read('/path', 1)" in reported[0]
    assert "KeyError" in reported[0]


# -- the packages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType | OSError | None]:
    """What is found under the names of the packages: a module, an error when it is imported, or nothing."""
    found: dict[str, ModuleType | OSError | None] = {}

    def load(name: str) -> ModuleType:
        package = found.get(name)
        if package is None:
            raise ModuleNotFoundError(name)
        if isinstance(package, OSError):
            raise package
        return package

    monkeypatch.setattr(fusepy_library, "import_module", load)
    return found


def _package(version: int, name: str = "fuse") -> ModuleType:
    module = ModuleType(name)
    vars(module).update(fuse_operations=object, _libfuse=SimpleNamespace(fuse_version=lambda: version))
    return module


def test_what_is_missing(packages: dict[str, ModuleType | OSError | None]) -> None:
    """The package, or the library that it speaks to; another package has the name of fusepy as well."""
    with pytest.raises(errors.FusepyMissing):
        fusepy_adapter.probe()
    packages["fuse"] = sys
    with pytest.raises(errors.FusepyMissing):
        fusepy_adapter.probe()
    packages["fuse"] = OSError("Unable to find libfuse")
    with pytest.raises(errors.LibfuseMissing):
        fusepy_adapter.probe()
    packages["mfusepy"] = OSError("Unable to find libfuse")
    with pytest.raises(errors.LibfuseMissing):
        fusepy_adapter.probe()


@pytest.mark.parametrize(("number", "version"), [(28, 2), (35, 3), (310, 3), (317, 3)])
def test_versions_of_libfuse(packages: dict[str, ModuleType | OSError | None], number: int, version: int) -> None:
    """fuse_version() is ten times the major version, or a hundred times."""
    packages["mfusepy"] = _package(number, "mfusepy")
    assert fusepy_library.load().version == version


def _words(version: int, *options: str, read_only: bool = False) -> dict[str, str | int | bool]:
    library = cast("Library", SimpleNamespace(version=version))
    return fusepy_adapter._words(library, b"/mnt", parse_options(options)[0], read_only=read_only)


def test_words_for_libfuse() -> None:
    """What has a word reaches libfuse, values with what its parser minds escaped."""
    words = _words(2, "noexec", "noatime", "max_read=4096", 'context="a:b:s0:c1,c2"', "fsname=a\\b,c", "nodiratime")
    for name in ("noexec", "noatime", "default_permissions", "use_ino", "nonempty", "rw"):
        assert words[name] is True
    assert words["max_read"] == 4096
    assert words["context"] == '"a:b:s0:c1\\,c2"'
    assert words["fsname"] == "a\\\\b\\,c"
    assert not words.keys() & {"ro", "exec", "nodiratime", "blksize", "hard_remove"}


def test_words_that_depend() -> None:
    """libfuse 3 does not know ``nonempty``, a stack without an upper is read-only, and some words are refused."""
    assert not _words(3)["nonempty"]
    assert (_words(2)["rw"], _words(2)["attr_timeout"]) == (True, 0), "attributes of hard links would not agree"
    assert (_words(2, read_only=True)["ro"], _words(2, read_only=True)["attr_timeout"]) == (True, 1 << 31)
    with pytest.raises(errors.MountError, match="nosymfollow"):
        _words(2, "nosymfollow")
