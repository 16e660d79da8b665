"""Randomness as a pure function of the seed: initial weights and the order of batches."""

import hashlib

import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A separate seed for each purpose, so that random streams are independent.

    Args:
        seed: the run's seed.
        *purpose: what the numbers are for.

    Returns:
        A whole number below 2**63.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class BatchOrder:
    """The training images of each step's batch.

    The order within an epoch depends only on (seed, epoch), so any step's batch can be computed directly. Every batch
    is full, since a smaller last batch would change the balance between the summed loss and the proximal weight; the
    images left over in an epoch, fewer than a batch, are not used in it.

    Args:
        count: training images.
        batch_size: images in a batch.
        seed: the run's seed.
        replacement: draw every batch from all training images, with replacement; an epoch has the same number of steps.
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
