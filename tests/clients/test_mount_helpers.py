"""mount(8), fstab(5) and the helpers of libfuse: every form in which they name a file system of type fuse."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import LIMIT_S, ROOT, prepare
from tests.support.probes import requires

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires("root", "fuse", "mount.fuse3")

#: ``{o}`` stands for the layers; "point" is the mountpoint, and ``unionmount`` is found where mount(8) looks for it.
FORMS = {
    "type": "mount -t fuse.unionmount -o {o} source point",
    "options last": "mount -t fuse.unionmount unionmount point -o {o}",
    "name in the source": "mount -t fuse unionmount#source point -o {o}",
    "name alone": "mount -t fuse unionmount# point -o {o}",
    "the helper": "mount.fuse3 unionmount#source point -o {o}",
    "the helper, by type": "mount.fuse3 source point -t fuse.unionmount -o {o}",
    "fstab": "echo unionmount $PWD/point fuse.unionmount {o},noauto,nofail,x-a.b 0 0 >t; mount -T t $PWD/point",
    "fstab, name in the source": "echo unionmount# $PWD/point fuse {o},noauto,_netdev 0 2 >t; mount -T t $PWD/point",
}
#: Words of fstab, and what the mount table must say.
WORDS = {
    "nosuid,nodev,noexec": "rw,nosuid,nodev,noexec",
    "user": "rw,nosuid,nodev,noexec",
    "ro": "ro",
    "noatime,lazytime": "rw,noatime",
    "defaults,dev,suid": "rw",
}


class Machine:
    """A shell in a mount namespace of its own, where ``unionmount`` is in /usr/local/bin."""

    def __init__(self, base: Path) -> None:
        (lower,), self.upper, work = prepare(base)
        (lower / "file").write_text("text\n")
        for name in ("point", "bin"):
            (base / name).mkdir()
        program = base / "bin/unionmount"
        program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m unionfs.cli.main "$@"\n')
        program.chmod(0o755)
        self.base = base
        self.layers = f"lowerdir={lower},upperdir={self.upper},workdir={work}"

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        bind = f"mount --bind {shlex.quote(str(self.base / 'bin'))} /usr/local/bin"
        command = ["unshare", "--mount", "sh", "-ec", f"{bind}\n{script}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=self.base)

    def output(self, script: str) -> str:
        done = self.run(script)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A stack and a place to mount it."""
    return Machine(tmp_path)


SHOW = 'grep " $PWD/point " /proc/self/mountinfo; cat point/file'
END = "unionmount umount point"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(machine: Machine, form: str) -> None:
    shown = machine.output("\n".join([form.format(o=machine.layers), SHOW, "touch point/made", END])).splitlines()
    assert f" - fuse.unionmount {'source' if 'source' in form else 'unionmount'} " in shown[0]
    assert shown[1] == "text"
    assert (machine.upper / "made").exists()


@pytest.mark.parametrize(("words", "options"), WORDS.items(), ids=WORDS)
def test_words_of_fstab_reach_the_kernel(machine: Machine, words: str, options: str) -> None:
    form = f"echo unionmount $PWD/point fuse.unionmount {machine.layers},{words} 0 0 >t; mount -T t $PWD/point"
    fields = machine.output("\n".join([form, SHOW, END])).splitlines()[0].split()
    assert fields[5].removesuffix(",relatime") == options
    assert ("lazytime" in fields[-1]) == ("lazytime" in words)


def test_umount_by_mount_point_and_by_fstab(machine: Machine) -> None:
    line = f"echo unionmount $PWD/point fuse.unionmount {machine.layers} 0 0 >t; mount -T t $PWD/point; umount point"
    assert machine.output("\n".join([line, line, "ls -A point"])) == ""


@pytest.mark.parametrize("source", ["unionmount", "/srv/changes"])
def test_mount_a_passes_over_what_is_mounted(machine: Machine, source: str) -> None:
    line = f"echo {source} $PWD/point fuse.unionmount {machine.layers} 0 0 >t; mount -a -T t; mount -a -T t"
    assert machine.output("\n".join([line, SHOW, END])).count(" fuse.unionmount ") == 1


def test_a_failure_is_the_helper_s_own(machine: Machine) -> None:
    done = machine.run("mount -t fuse.unionmount -o lowerdir=/nowhere source point")
    assert done.returncode != 0
    assert "unionmount: /nowhere: no such layer" in done.stderr
