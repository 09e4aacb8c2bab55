"""The workloads, by group of the issue; importing this package enters all of them into the registry."""

from benchmarks.registry import WORKLOADS
from benchmarks.workloads import change, copyup, git, growth, io, parallel, programs, sharing, startup, walk

__all__ = ["WORKLOADS", "change", "copyup", "git", "growth", "io", "parallel", "programs", "sharing", "startup", "walk"]
