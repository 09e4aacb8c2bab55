"""Group 4: what developers run. Importing hundreds of modules, installing wheels, building C."""

from __future__ import annotations

import sys

from benchmarks.registry import Row, workload
from benchmarks.site import Site

IMPORT = "import sys; sys.path.insert(0, 'python'); import bigpackage"


@workload(
    "python-import", "programs", Row("python-import-cold", "cold"), Row("python-import-warm", "warm"), stack="code"
)
def python_import(site: Site) -> None:
    """Import a package of hundreds of modules, which were compiled before."""
    command = (sys.executable, "-B", "-S", "-X", "importtime", "-c", IMPORT)
    site.cool()
    site.measure("python-import-cold", *command, cwd=site.root)
    site.measure("python-import-warm", *command, cwd=site.root)


@workload("pip-install", "programs", Row("pip-install", "meta"), stack="code")
def pip_install(site: Site) -> None:
    """Install wheels into a directory of the mount."""
    wheels = [str(path) for path in site.assets.wheels]
    site.step("mkdir", str(site.new))
    command = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
        "--target",
        str(site.new / "site"),
    )
    site.measure("pip-install", *command, *wheels)
    names = [f"bench_package_{number}.module_99" for number in range(len(wheels))]
    site.step(sys.executable, "-B", "-c", f"import {', '.join(names)}", cwd=site.new / "site")


@workload("cc-build", "programs", Row("cc-build", "meta"), stack="code", changes=("c",))
def cc_build(site: Site) -> None:
    """Build a C project in place, two compilers at once."""
    make = site.assets.program("make")
    site.assets.program("cc", "gcc")
    site.measure("cc-build", make, "-s", "-j2", "-C", str(site.root / "c"))
    site.step(str(site.root / "c/program"))
