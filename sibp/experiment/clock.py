"""A clock with named buckets, so that training seconds measure training alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

BUCKETS = ("train", "eval", "log")


class Clock:
    """Adds up seconds per bucket.

    The device is synchronised at both ends of a measurement; otherwise its queued work would be charged to the next
    block.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = dict.fromkeys(BUCKETS, 0.0)

    @contextmanager
    def measure(self, bucket: str) -> Iterator[None]:
        """Charge the block's wall-clock time to a bucket.

        Args:
            bucket: one of ``BUCKETS``.

        Yields:
            Nothing.
        """
        start = self._now()
        try:
            yield
        finally:
            self.seconds[bucket] += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
