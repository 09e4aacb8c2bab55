"""Group 2: changing many files. tar, cp and rm over new files and over files of the layers."""

from __future__ import annotations

from benchmarks.registry import Row, workload
from benchmarks.site import Site


@workload("untar-new", "change", Row("untar-new", "meta"))
def untar_new(site: Site) -> None:
    """Unpack into a directory that no layer has."""
    site.step("mkdir", str(site.new))
    archive = str(site.assets.archive)
    site.measure("untar-new", "tar", "-xf", archive, "-C", str(site.new))
    site.expect_files(site.new, site.scale.untar_files)
