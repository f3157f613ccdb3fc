"""Progress, limits and cancelling of work whose pieces Python does."""

from __future__ import annotations

import time
from typing import Any

from ostler.block.jobs.job import Job
from ostler.errors import DiskError


class Watched:
    """What such work tells how far it is. `limit_bytes_s` of 0 is no limit."""

    def __init__(self, job: Job[Any], limit_bytes_s: int = 0) -> None:
        self.job, self.limit_bytes_s = job, limit_bytes_s
        self._start = time.monotonic()

    def at(self, offset: int) -> None:
        """So far it has come. Ends the work when it was cancelled."""
        self.job.progress.set_done(offset)
        if self.limit_bytes_s:
            due = self._start + offset / self.limit_bytes_s
            while (left := due - time.monotonic()) > 0 and not self.job.progress.cancelled:
                time.sleep(min(left, 0.05))
        if self.job.progress.cancelled:
            raise DiskError(f"{self.job.name}: cancelled")
