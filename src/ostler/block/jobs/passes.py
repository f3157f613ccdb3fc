"""Copies of what is written meanwhile: pass after pass, until little is left."""

from __future__ import annotations

from typing import Any

from ostler.block.jobs.job import THREADS, Job
from ostler.engine.block import BlockDisk, DirtyMap, copy_marked

ENOUGH_BYTES = 4 << 20
"""What may be left for the time in which the guest waits."""
MAX_PASSES = 20
"""A guest that writes faster than we copy waits for the rest then."""


def copy_passes(
    job: Job[Any],
    source: BlockDisk,
    target: BlockDisk,
    dirty: DirtyMap,
    *,
    target_is_zero: bool,
    limit: int,
) -> None:
    """Copy what is marked, and again what was marked meanwhile, until little is."""
    for number in range(MAX_PASSES):
        job.total_bytes = job.progress.done + dirty.dirty_bytes
        copy_marked(
            source,
            target,
            dirty,
            job.progress,
            threads=THREADS,
            target_is_zero=target_is_zero and number == 0,
            limit=limit,
        )
        if dirty.dirty_bytes <= ENOUGH_BYTES:
            return


def copy_rest(job: Job[Any], source: BlockDisk, target: BlockDisk, dirty: DirtyMap) -> None:
    """Copy what is marked, with nobody writing; all of the target is stable then."""
    job.total_bytes = job.progress.done + dirty.dirty_bytes
    copy_marked(source, target, dirty, job.progress, threads=THREADS, target_is_zero=False, limit=0)
    target.flush()
