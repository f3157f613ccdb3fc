"""What is behind a disk in use, copied into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostler.block.jobs.job import Job
from ostler.block.jobs.rebase import set_backing
from ostler.block.live import as_qcow2

if TYPE_CHECKING:
    from ostler.block.live import LiveImage


def stream(live: LiveImage, limit: int) -> Job[None]:
    """Copy what is behind into the image, and forget that it was there. Cancelled, it goes on
    being there; what was copied is kept."""
    live.named()
    image = as_qcow2(live.image, "stream")

    def work(job: Job[None]) -> None:
        image.disk.pull(job.progress, limit=limit)
        with live.held():
            set_backing(image, None, None)
            live.reopen()

    return Job("stream", image.size_bytes, work)
