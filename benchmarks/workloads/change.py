"""Group 2: changing many files. tar, cp and rm over new files and over files of the layers."""

from __future__ import annotations

from benchmarks.registry import Row, workload
from benchmarks.site import Site
from benchmarks.trees import TOP_DIRECTORIES

# A part of the tree with directories of the base alone, of two and of three layers, and its share of the files.
PART = ("tree/d00", "tree/d01", "tree/d02", "tree/d03", "tree/d04", "tree/d05")


def part_files(site: Site) -> int:
    """How many files :data:`PART` holds."""
    return site.scale.files // TOP_DIRECTORIES * len(PART)


@workload("untar-new", "change", Row("untar-new", "meta"))
def untar_new(site: Site) -> None:
    """Unpack into a directory that no layer has."""
    site.step("mkdir", str(site.new))
    archive = str(site.assets.archive)
    site.measure("untar-new", "tar", "-xf", archive, "-C", str(site.new))
    site.expect_files(site.new, site.scale.untar_files)


@workload("untar-over", "change", Row("untar-over", "meta"), changes=("tree",), copies_up=True)
def untar_over(site: Site) -> None:
    """Unpack over files of the layers: each is unlinked and made anew."""
    archive = str(site.assets.archive_over)
    site.measure("untar-over", "tar", "-xf", archive, "-C", str(site.root / "tree"))
    site.step("tar", "-df", archive, "-C", str(site.root / "tree"))


@workload("cp-a", "change", Row("cp-a", "meta"))
def cp_a(site: Site) -> None:
    """Copy a part of the tree within the mount."""
    site.step("mkdir", str(site.new))
    site.measure("cp-a", "cp", "-a", *PART, str(site.new), cwd=site.root)
    site.expect_files(site.new, part_files(site))


@workload("rm-lower", "change", Row("rm-lower", "meta"), changes=PART, copies_up=True)
def rm_lower(site: Site) -> None:
    """Remove files of the layers, which leaves whiteouts."""
    site.measure("rm-lower", "rm", "-r", *PART, cwd=site.root)
    site.expect_files(site.root / "tree", site.stack().files - part_files(site))


@workload("rm-new", "change", Row("rm-new", "meta"))
def rm_new(site: Site) -> None:
    """Remove files that no layer has."""
    site.step("mkdir", str(site.new))
    site.step("tar", "-xf", str(site.assets.archive), "-C", str(site.new))
    site.measure("rm-new", "rm", "-r", str(site.new))
    site.expect_files(site.root / "tree", site.stack().files)


@workload("chmod", "change", Row("chmod-lower"), Row("chmod-again", "meta"), changes=PART, copies_up=True)
def chmod(site: Site) -> None:
    """Change the mode of files: the first time each is copied up, the second time none."""
    site.measure("chmod-lower", "chmod", "-R", "g+w", *PART, cwd=site.root)
    site.measure("chmod-again", "chmod", "-R", "g-w", *PART, cwd=site.root)
    site.expect_files(site.root / "tree", site.stack().files)
