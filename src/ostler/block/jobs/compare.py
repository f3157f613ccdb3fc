"""Whether two images read the same."""

from __future__ import annotations

from ostler.block.data_path import disk_of
from ostler.block.image import Image
from ostler.block.jobs.job import THREADS, Job
from ostler.engine.block import compare_disks


def compare(one: Image, other: Image) -> Job[int | None]:
    """The first offset at which they differ, or `None`; zeroes follow the shorter one."""

    def work(job: Job[int | None]) -> int | None:
        return compare_disks(disk_of(one), disk_of(other), job.progress, THREADS)

    return Job("compare", max(one.size_bytes, other.size_bytes), work)
