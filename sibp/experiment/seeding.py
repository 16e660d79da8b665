"""Randomness that is a pure function of the seed: initial weights and the order of batches."""

import hashlib

import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed of its own for each purpose, so that no two streams of random numbers are the same.

    Args:
        seed: the run's seed.
        *purpose: what the numbers are for.

    Returns:
        A whole number below 2**63.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class BatchOrder:
    """Which training images make up each step's batch.

    The order within an epoch depends on (seed, epoch) alone, so any step's batch can be found without those
    before it. Every batch is full: the proximal weight is measured against a sum over the batch, so a smaller
    last batch would be another problem. The images left over in one epoch have their turn in the next.

    Args:
        count: training images.
        batch_size: images in a batch.
        seed: the run's seed.
        replacement: draw every batch from all training images, an image possibly twice; an epoch is then as
            many steps as otherwise.
    """

    def __init__(self, count: int, batch_size: int, seed: int, replacement: bool = False):
        self.count, self.batch_size, self.seed, self.replacement = count, batch_size, seed, replacement
        self.steps_per_epoch = count // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> torch.Tensor:
        """The images of one step.

        Args:
            step: counted from 0 over the whole run.

        Returns:
            Indices into the training images, shape (batch_size,), int64, on the CPU.
        """
        if self.replacement:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "draws", step))
            return torch.randint(self.count, (self.batch_size,), generator=generator)
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "batches", epoch))
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]
