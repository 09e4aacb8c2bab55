"""podman with ``mount_program``: the same steps with its own driver and with ours must give the same tree."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients import root
from tests.support.mounts import ROOT
from tests.support.probes import requires
from tests.support.trees import Tree, assert_same_tree, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [requires("root", "fuse", "overlayfs", "podman", "runc"), pytest.mark.timeout(300)]

LIMIT_S = 120
BUILD = """\
FROM localhost/root
COPY --chown=5:6 tree /srv/tree
RUN chmod -R g+w /srv/tree && chmod 4755 /srv/tree/sub/one && chown 12:34 /srv/tree/sub/two
RUN mv /srv/tree/sub /srv/tree/moved && mv /srv/some /srv/other
RUN rm -r /srv/other/file1 /srv/tree/moved/three && ln -s nowhere /srv/other/link && mkfifo /srv/fifo
RUN mkdir /srv/some && touch /srv/some/new && chmod 2770 /srv/some
RUN chmod 604 /srv/other/file3 && ln /srv/other/file3 /srv/ln
RUN rm /srv/tree/moved/one && mkdir /srv/tree/moved/one && touch /srv/tree/moved/one/below && truncate -s 1M /srv/hole
COPY tree/sub/four /srv/other/file2
RUN mv /srv/tree/moved /srv/tree/again && mv /srv/tree /srv/final && rm -r /srv/other/link /srv/some && mkdir /srv/some
RUN chown 7:8 /srv/final && chmod 700 /srv/final && touch -d @-5 /srv/final/again/two && cp /bin/cat /srv/cat
CMD ["cat", "/srv/other/file2"]
"""


class Podman:
    """podman with a storage of its own below ``base``; ``program`` mounts, or podman itself."""

    def __init__(self, base: Path, program: Path | None) -> None:
        base.mkdir()
        self.base = base
        # In words, not in storage.conf: the podman that cleans up behind a container is told words alone, and without
        # them the one that has started it waits for it in vain, for 20 s.
        self._storage = [f"--root={base}/graph", f"--runroot={base}/r", "--storage-driver=overlay"]
        if program:
            self._storage.append(f"--storage-opt=overlay.mount_program={program}")
        limits = 'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]'  # by default more than root may have here
        containers = (
            f'[containers]\nnetns = "host"\nlog_driver = "k8s-file"\n{limits}\n[engine]\nevents_logger = "file"\n'
        )
        (base / "containers.conf").write_text(containers)
        self._environment = {**os.environ, "CONTAINERS_CONF": str(base / "containers.conf")}

    def __call__(self, *words: str | Path) -> str:
        """Run podman; return what it prints."""
        command = ["podman", "--cgroup-manager=cgroupfs", "--runtime=runc", *self._storage, *map(str, words)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=self._environment, cwd=self.base
        )
        assert done.returncode == 0, f"podman {words} exited with {done.returncode}: {done.stderr}"
        return done.stdout

    def tree(self, image: str) -> Tree:
        """Return what podman shows of an image."""
        point = self("image", "mount", image).strip()
        try:
            return snapshot(point)
        finally:
            self("image", "unmount", image)

    def mounts(self, kind: str) -> list[str]:
        """Return where something is mounted below this storage whose line in the table of mounts has ``kind`` in it."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if kind in line and str(self.base) in line]

    def wait_for_cleanup(self) -> None:
        """Wait for the podman that cleans up behind a container that has ended.

        In a user namespace that of version 4.3 often leaves the shared memory mounted, and then cannot remove it.
        """
        deadline = time.monotonic() + LIMIT_S
        while self.mounts("fuse.unionmount"):
            assert time.monotonic() < deadline, "a container's root stays mounted"
            time.sleep(0.05)
        for point in self.mounts("/userdata/shm"):
            subprocess.run(["umount", point], capture_output=True, timeout=LIMIT_S, check=False)

    def remove_all(self) -> None:
        """Remove every container and image, and what podman keeps mounted itself."""
        self("rm", "--all", "--force")
        self("rmi", "--all", "--force")
        subprocess.run(["umount", self.base / "graph/overlay"], capture_output=True, timeout=LIMIT_S, check=False)


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A directory for everything; the paths below it must be short: podman takes 50 characters for --runroot."""
    directory = Path(tempfile.mkdtemp(prefix="p"))
    (directory / "context/tree/sub").mkdir(parents=True)
    for name in ("one", "two", "three", "four"):
        (directory / "context/tree/sub" / name).write_text(name)
    (directory / "context/Containerfile").write_text(BUILD)
    root.write(directory / "root.tar")
    yield directory
    shutil.rmtree(directory)


def storage(base: Path, name: str, program: Path | None) -> Iterator[Podman]:
    podman = Podman(base / name, program)
    try:
        podman("import", base / "root.tar", "localhost/root")
    except AssertionError as error:
        pytest.skip(f"podman cannot work here: {error}")
    try:
        yield podman
    finally:
        podman.remove_all()


@pytest.fixture(scope="module")
def native(base: Path) -> Iterator[Podman]:
    """podman with the kernel's overlayfs."""
    yield from storage(base, "n", None)


@pytest.fixture(scope="module")
def ours(base: Path) -> Iterator[Podman]:
    """podman with ``unionmount``."""
    program = base / "unionmount"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m unionfs.cli.main "$@"\n')
    program.chmod(0o755)
    yield from storage(base, "o", program)


@pytest.fixture(scope="module")
def built(base: Path, native: Podman, ours: Podman) -> tuple[Podman, Podman]:
    """Both, each with an image that it has built."""
    try:
        native("run", "--rm", "localhost/root", "ls", "/")
    except AssertionError as error:
        pytest.skip(f"podman runs no container here: {error}")
    for podman in (native, ours):
        podman("build", "--layers", "--tag", "localhost/built", base / "context")
    return native, ours


def test_what_podman_is_told(ours: Podman) -> None:
    """It asks for the version, and takes no exit status but 0 for an answer."""
    assert "unionmount: version" in ours("info", "--format", "{{.Store.GraphOptions}}")


def test_an_imported_root(native: Podman, ours: Podman) -> None:
    trees = [podman.tree("localhost/root") for podman in (native, ours)]
    for tree in trees:
        tree[b""] = tree[b""]._replace(mtime_ns=0)  # podman makes this directory before it unpacks the archive
    assert_same_tree(*trees)


def test_a_built_image(built: tuple[Podman, Podman]) -> None:
    native, ours = built
    trees = [podman.tree("localhost/built") for podman in built]
    assert_same_tree(*trees, ignore=["mtime_ns"])
    assert native("run", "--rm", "localhost/built") == ours("run", "--rm", "localhost/built") == "four"


CHANGES = """
    rm -r /srv/final/again; mkdir /srv/final/again; mv /srv/other /srv/third; chmod 600 /srv/cat
    touch /srv/third/made; chown 4711:4712 /srv/third/made; rm /srv/fifo; mkdir /srv/fifo
"""


def test_run_commit_save_load_remove(built: tuple[Podman, Podman], base: Path) -> None:
    trees = []
    for podman in built:
        podman("run", "--name", "changer", "localhost/built", "sh", "-ec", CHANGES)
        podman("cp", base / "context/tree", "changer:/srv/copied")
        assert podman("diff", "changer").count("D /srv/other\n") == 1
        podman("commit", "--quiet", "changer", "localhost/changed")
        podman("rm", "changer")
        archive = podman.base / "changed.tar"
        podman("save", "--quiet", "--output", archive, "localhost/changed")
        podman("rmi", "localhost/changed")
        podman("load", "--quiet", "--input", archive)
        trees.append(podman.tree("localhost/changed"))
        shown = podman("run", "--rm", "localhost/changed", "ls", "/srv/final/again", "/srv/third/made")
        assert shown.split() == ["/srv/third/made", "/srv/final/again:"]
    assert_same_tree(*trees, ignore=["mtime_ns"])


def test_a_container_with_a_user_namespace(built: tuple[Podman, Podman]) -> None:
    """Layers hold the container's ids, whatever the namespace: what is committed is for everybody."""
    _native, ours = built
    script = "cd /srv; stat -c %u:%g /etc/passwd some final; touch x; chown 5:6 x final; stat -c %u:%g x"
    maps = ("--uidmap=0:100000:5000", "--gidmap=0:200000:5000")
    assert ours("run", "--name=mapped", *maps, "localhost/built", "sh", "-ec", script).split() == [
        "0:0", "0:0", "7:8", "5:6",
    ]  # fmt: skip
    ours.wait_for_cleanup()  # while the shifted mount stands, podman takes its owners for the layer's
    ours("commit", "--quiet", "mapped", "localhost/mapped")
    ours("rm", "mapped")
    tree = ours.tree("localhost/mapped")
    assert [(tree[name].uid, tree[name].gid) for name in (b"srv/x", b"srv/final", b"etc/passwd")] == [
        (5, 6),
        (5, 6),
        (0, 0),
    ]


def test_nothing_of_a_container_stays_mounted(ours: Podman) -> None:
    ours("rm", "--all", "--force")
    assert ours.mounts("fuse.unionmount") == []
    assert stat.S_ISDIR((ours.base / "graph/overlay").stat().st_mode)
