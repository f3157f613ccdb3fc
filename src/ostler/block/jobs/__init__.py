"""Long work on images: each a function that returns a `Job` to wait for, watch or cancel."""

from ostler.block.jobs.job import Job

__all__ = ["Job"]
