"""Group 3: git. clone, status, checkout of an old commit and gc of a repository with a history."""

from __future__ import annotations

from benchmarks.registry import Row, workload
from benchmarks.site import Site

# No settings of the machine or the user; no repacking in the background while something else is measured.
SETTINGS = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "gc.auto",
    "GIT_CONFIG_VALUE_0": "0",
    "GIT_CONFIG_KEY_1": "advice.detachedHead",
    "GIT_CONFIG_VALUE_1": "false",
}


@workload(
    "git",
    "git",
    Row("git-clone", "meta"),
    Row("git-status", "warm"),
    Row("git-checkout", "meta"),
    Row("git-gc", "meta"),
)
def git(site: Site) -> None:
    """The four steps in one clone."""
    program, source = site.assets.program("git"), f"file://{site.assets.repository}"
    site.step("mkdir", str(site.new))
    clone = site.new / "clone"
    site.measure("git-clone", program, "clone", "-q", source, str(clone), env=SETTINGS)
    site.measure("git-status", program, "status", "--porcelain", cwd=clone, env=SETTINGS, lines=0)
    site.measure("git-checkout", program, "checkout", "-q", "c0", cwd=clone, env=SETTINGS)
    site.measure("git-gc", program, "gc", "-q", cwd=clone, env=SETTINGS)
    site.step(program, "fsck", cwd=clone, env=SETTINGS)
