"""How paths lead through a union: links and dots stay inside, errors name the path that was given."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

import unionfs

from .expect import fails

if TYPE_CHECKING:
    from tests.union.conftest import Layers


@pytest.fixture
def linked(layers: Layers) -> Layers:
    """Links that lead up, round, out, across layers and nowhere."""
    layers.write({"0/top": "top", "1/a/b/file": "file", "2/a/other": "other", "0/a/": ""})
    links = {
        "0/absolute": "/a/b/file",
        "0/a/relative": "b/file",
        "0/up": "../../../../a/other",
        "0/chain": "absolute",
        "0/directory": "a/b",
        "0/loop": "pool",
        "0/pool": "loop",
        "0/dangling": "/a/new",
        "0/outside": "/etc/passwd",
        "0/a/dots": "./../a/./b/../other",
        "0/through": "top/nothing",
    }
    for name, target in links.items():
        layer, _, path = name.partition("/")
        (layers.lowers[int(layer)] / path).symlink_to(target)
    return layers


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("top", "top"),
        ("/top", "top"),
        ("//./top", "top"),
        ("../top", "top"),
        ("a/../../top", "top"),
        ("absolute", "file"),
        ("a/relative", "file"),
        ("up", "other"),
        ("chain", "file"),
        ("directory/file", "file"),
        ("directory/../other", "other"),
        ("a/dots", "other"),
        (b"/a/b/file", "file"),
        (PurePosixPath("a", "other"), "other"),
    ],
)
def test_paths_lead_somewhere(linked: Layers, path: str | bytes | PurePosixPath, text: str) -> None:
    """Relative or absolute, str, bytes or path-like, through links into other layers."""
    with linked.union() as union:
        assert union.read_text(path) == text
        assert union.stat(path).st_size == len(text)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("", errno.ENOENT),
        ("nothing", errno.ENOENT),
        ("a/nothing/more", errno.ENOENT),
        ("dangling", errno.ENOENT),
        ("outside", errno.ENOENT),
        ("loop", errno.ELOOP),
        ("loop/x", errno.ELOOP),
        ("top/x", errno.ENOTDIR),
        ("top/", errno.ENOTDIR),
        ("top/.", errno.ENOTDIR),
        ("top/..", errno.ENOTDIR),
        ("through", errno.ENOTDIR),
        ("a/" + "n" * 256, errno.ENAMETOOLONG),
    ],
)
def test_errors_name_the_path_that_was_given(linked: Layers, path: str, number: int) -> None:
    """Not a name on the way, which the caller never heard of."""
    with linked.union() as union:
        for call in (union.stat, union.read_bytes, union.listdir, union.resolve):
            with fails(number) as caught:
                call(path)
            assert (caught.value.filename, caught.value.filename2) == (path, None)


def test_an_error_about_two_paths_names_both(linked: Layers) -> None:
    """As those of os do."""
    with linked.union() as union, pytest.raises(FileNotFoundError) as caught:
        union.rename("nothing", "a/b/c")
    assert (caught.value.filename, caught.value.filename2) == ("nothing", "a/b/c")


def test_forty_links_and_no_more(layers: Layers) -> None:
    """MAXSYMLINKS, as in the kernel."""
    layers.write({"0/link0": "end"})
    for number in range(1, 42):
        (layers.lowers[0] / f"link{number}").symlink_to(f"link{number - 1}")
    with layers.union() as union:
        assert union.read_text("link40") == "end"
        with fails(errno.ELOOP):
            union.read_text("link41")


def test_a_link_never_leads_out(layers: Layers, tmp_path: Path) -> None:
    """Neither for reading nor for writing, nor for removal."""
    (tmp_path / "secret").write_text("secret")
    up = "/".join([".."] * 30)
    (layers.lowers[0] / "leak").symlink_to(f"{up}{tmp_path}/secret")
    (layers.lowers[0] / "leaks").symlink_to(f"{up}{tmp_path}")
    with layers.union() as union:
        assert not union.exists("leak")
        for path in ("leak", "leaks/secret", f"{up}{tmp_path}/secret"):
            with pytest.raises(FileNotFoundError):
                union.read_text(path)
            with pytest.raises(FileNotFoundError):
                union.write_text(path, "spoiled")
        with pytest.raises(NotADirectoryError):
            union.rmtree("leaks")
    assert (tmp_path / "secret").read_text() == "secret", "THE OUTSIDE WAS CHANGED"


def test_a_file_made_through_a_dangling_link_stands_at_its_target(linked: Layers) -> None:
    """As open(2) does it; an exclusive open refuses."""
    with linked.union() as union:
        with pytest.raises(FileExistsError):
            union.open("dangling", "x")
        union.write_text("dangling", "new")
        assert union.read_text("a/new") == "new"
        assert union.is_symlink("dangling")


def test_resolve(linked: Layers) -> None:
    """The path within the union, whatever layer."""
    with linked.union() as union:
        assert union.resolve("chain") == PurePosixPath("/a/b/file")
        assert union.resolve("directory/..") == PurePosixPath("/a")
        assert union.resolve("/..") == PurePosixPath("/")


def test_names_of_any_bytes(layers: Layers) -> None:
    """Those that are no UTF-8 come back as they were, as str and as bytes; 255 bytes are allowed."""
    names = [b"\xff\xfe", b"new\nline", b" ", b"\xc3\xa9", b"n" * 255]
    with layers.union() as union:
        for name in names:
            union.write_bytes(b"/" + name, name)
        assert sorted(union.listdir(b"/")) == sorted(names)
        assert sorted(union.listdir("/")) == sorted(map(os.fsdecode, names))
        for path in union.iterdir("/"):
            assert union.read_bytes(path) == os.fsencode(path.name)


def test_paths_beyond_path_max(layers: Layers) -> None:
    """Depth has no limit of its own: 60 names of 200 bytes are three times PATH_MAX."""
    deep = "/".join(["d" * 200] * 60)
    with layers.union() as union:
        union.makedirs(deep)
        union.write_text(f"{deep}/file", "deep")
        assert union.read_text(f"{deep}/file") == "deep"
        assert sum(len(files) for _, _, files in union.walk("/")) == 1
        union.rename("d" * 200, "moved")
        assert union.read_text(f"moved/{deep[201:]}/file") == "deep"
        union.rmtree("moved")
        assert union.listdir("/") == []


def test_a_closed_union_says_so(layers: Layers) -> None:
    """As a closed file does."""
    layers.write({"0/file": "text"})
    union = layers.union()
    with union.open("file") as file:
        union.close()
        union.close()
        assert file.read() == "text"
    with pytest.raises(ValueError, match="closed"):
        union.stat("file")
    assert repr(union) == "<Union, closed>"


def test_an_unclosed_union_warns(layers: Layers) -> None:
    """And gives its locks back."""
    union = unionfs.Union(lower=layers.lowers, upper=layers.upper, workdir=layers.work)
    with pytest.warns(ResourceWarning, match="unclosed <Union"):
        del union
    layers.union().close()
