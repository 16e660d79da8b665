"""The training loop: the same for every optimizer, resumable bit for bit at every checkpoint."""

import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from sibp.experiment import characters
from sibp.experiment.board import Board
from sibp.experiment.checkpoint import (
    checked_position,
    drop_later_rows,
    load_checkpoint,
    load_optimizer,
    save_checkpoint,
)
from sibp.experiment.clock import Clock
from sibp.experiment.data import Data, Split
from sibp.experiment.history import Environment, earlier_environments
from sibp.experiment.memory import is_out_of_memory
from sibp.experiment.models import objective_of
from sibp.experiment.schedule import Schedule
from sibp.experiment.seeding import BatchOrder
from sibp.experiment.settings import Settings
from sibp.experiment.signals import stop_on_signals
from sibp.optim.base import TappedOptimizer
from sibp.prox.status import Status
from sibp.runs.errors import UserError
from sibp.runs.folder import AGAIN, RunFolder, finite
from sibp.runs.reading import ends_beyond_reason, first_line

EVAL_BATCH = 1000  # samples in an evaluation pass: few enough to stay in a processor's cache
EARLY_ROWS = 5  # number of rows logged every `log_early` steps
STEPS_BETWEEN_CHECKS = 20  # on an accelerator: reading the loss back waits for the device
SAMPLE = 300  # characters in a language model's sample at every row


class DivergedError(Exception):
    """The training loss is not finite or ended far above its initial value, or no finite step exists."""

    def __init__(self, step: int, loss: float, reason: str | None = None):
        super().__init__(reason or f"the training loss became {loss} at step {step}")
        self.step, self.loss = step, loss


def is_stuck(solver_stats: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether no solver can take a step because its inputs are not finite.

    Args:
        solver_stats: of a step, as from an optimizer's `solver_stats()`; empty without a solver.

    Returns:
        True if no weight moved, and at least one layer reports this reason.
    """
    layers = list(solver_stats.values())
    unmoved = all(layer.get("status") == Status.NONFINITE or layer.get("relative_change") == 0 for layer in layers)
    return unmoved and any(layer.get("status") == Status.NONFINITE for layer in layers)


class StoppedError(Exception):
    """The run was asked to stop; its checkpoint is written."""


class Trainer:
    """One run's model, optimizer, position and clock.

    Args:
        settings: the run's settings.
        folder: of the run; locked by this process.
        data: in the model's form and on its device.
        model: with its initial weights.
        optimizer: over the model's parameters.
        environment: of this process, for checkpoints.
    """

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        data: Data,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        environment: Environment | None = None,
    ):
        self.settings, self.folder, self.data = settings, folder, data
        self.model, self.optimizer = model, optimizer
        self.environment = environment
        self.earlier_environments: list[Environment] = []
        self.objective = objective_of(settings.model)
        self._check_objective()
        self.device = data.train.labels.device
        if settings.batch_size > len(data.train):
            raise UserError(
                f"batch_size={settings.batch_size} is more than the {len(data.train)} training samples: "
                "give a smaller one."
            )
        self.order = BatchOrder(len(data.train), settings.batch_size, settings.seed, settings.replacement)
        self.total = settings.total_steps(self.order.steps_per_epoch)
        self.schedule = Schedule.of(settings, optimizer, self.total)
        self.characters = settings.batch_size * data.train.labels[0].numel() if data.letters else None  # in a batch
        self._set_loss_average()
        self.clock = Clock(self.device)
        self.step = 0
        self.batches_sha256 = ""
        self.rows: list[dict[str, Any]] = []
        self.first_step_seconds: float | None = None
        self._set_random_state()

    def fit(self, another: Callable[[], "Trainer"]) -> None:
        """Train to the last step, from the last checkpoint if there is one.

        Args:
            another: makes an identical trainer. Its first step is taken before the clock starts and discarded, so that
                compiling and loading are not timed.

        Raises:
            DivergedError: the loss is not finite, or ended far above its start; all rows are kept.
            StoppedError: a signal came; a checkpoint was written.
        """
        self.restore()
        if self.step < self.total:
            with torch.random.fork_rng():
                self.first_step_seconds = another()._first_step()
        board = self._open_board()
        try:
            with self._progress_bar() as bar, stop_on_signals() as stop:
                if not self.rows:
                    self._log(board, bar)
                while self.step < self.total:
                    self._advance()
                    bar.update(self.step - bar.n)
                    done = self.step == self.total
                    if done or self._is_logged(self.step):
                        self._log(board, bar)
                    if done or stop.made or self.step % self.settings.checkpoint_every == 0:
                        self._save(board)
                    if stop.made:
                        raise StoppedError(f"Stopped at step {self.step} of {self.total}, all of it kept")
        finally:
            if board is not None:
                board.close()
        if ends_beyond_reason(self.rows):
            first, loss = (self.rows[at]["train_loss"] for at in (0, -1))
            reason = f"the training loss ended at {loss:.3g}, from {first:.3g} at the start: lower lr"
            raise DivergedError(self.step, loss, reason)

    def finish(self, summary: dict[str, Any]) -> None:
        """Show TensorBoard how the run ended.

        Args:
            summary: that of summary.json.
        """
        board = self._open_board()
        if board is not None:
            with closing(board):
                board.finish(finite(summary))

    def evaluate(self, split: Split, limit: int | None = None) -> tuple[float, float | None]:
        """Mean loss and accuracy, in evaluation mode and without a graph.

        Args:
            split: the samples.
            limit: number of samples to use, from the first; None for all.

        Returns:
            Mean loss (nats) and accuracy, None if the model does not classify.
        """
        count = len(split) if limit is None else min(limit, len(split))
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        self.model.eval()
        with torch.no_grad():
            for start in range(0, count, EVAL_BATCH):
                end = min(start + EVAL_BATCH, count)
                inputs, labels = split.inputs[start:end], split.labels[start:end]
                outputs = self.model(inputs)
                loss += self.objective.loss(outputs, inputs, labels, "sum")
                if self.objective.right is not None:
                    right += self.objective.right(outputs, labels)
        self.model.train()
        return loss.item() / count, right.item() / count if self.objective.right is not None else None

    def _first_step(self) -> float:
        """Take one step outside the run, and return its seconds."""
        with self.clock.measure("train"):
            self._optimize(self.order.batch(0).to(self.device))
        return self.clock.seconds["train"]

    def _advance(self) -> None:
        """Take steps until the next log, checkpoint or end."""
        limit = 1 if self.device.type == "cpu" else STEPS_BETWEEN_CHECKS
        settings = self.settings
        early = settings.log_early if self._is_early(self.step + 1) else settings.log_every
        every = (early or settings.log_every, settings.log_every, settings.checkpoint_every)
        count = min(limit, self.total - self.step, *(e - self.step % e for e in every))
        batches = [self.order.batch(self.step + i) for i in range(count)]
        losses = []
        with self.clock.measure("train"):
            for step, indices in enumerate(batches, start=self.step):
                self.schedule.set(step)
                losses.append(self._train_step(indices.to(self.device)))
        for indices in batches:
            link = self.batches_sha256.encode() + indices.numpy().tobytes()
            self.batches_sha256 = hashlib.sha256(link).hexdigest()
        for loss in torch.stack(losses).tolist():
            self.step += 1
            if not math.isfinite(loss):
                raise DivergedError(self.step, loss)

    def _train_step(self, indices: torch.Tensor) -> torch.Tensor:
        """A step of the run; returns its loss."""
        return self._optimize(indices)

    def _optimize(self, indices: torch.Tensor) -> torch.Tensor:
        inputs, labels = self.data.train.inputs[indices], self.data.train.labels[indices]

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = self.objective.loss(self.model(inputs), inputs, labels, "mean")
            loss.backward()
            return loss

        if getattr(self.optimizer, "line_search", False):
            return self._search(closure, inputs, labels)
        # A closure, since L-BFGS evaluates the loss several times per step; other optimizers evaluate it once.
        return self.optimizer.step(closure).detach()  # pyright: ignore[reportCallIssue, reportArgumentType]

    def _search(self, closure: Callable[[], torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """A step with a line search; trial losses use the same batch and dropout masks."""
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state(self.device) if self._on_cuda() else None
        loss = closure().detach()

        def again() -> torch.Tensor:
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self.device)
            return self.objective.loss(self.model(inputs), inputs, labels, "mean")

        self.optimizer.step(evaluate=again, loss=loss)  # pyright: ignore[reportCallIssue]
        return loss

    def _is_logged(self, step: int) -> bool:
        """Whether a step is logged; more often at the beginning if so configured."""
        early = self.settings.log_early
        return step % self.settings.log_every == 0 or (early is not None and self._is_early(step) and step % early == 0)

    def _is_early(self, step: int) -> bool:
        early = self.settings.log_early
        return early is not None and step <= EARLY_ROWS * early

    def _log(self, board: Board | None, bar: tqdm) -> None:
        """Evaluate and write one row, with the training clock stopped."""
        with self.clock.measure("eval"):
            train_loss, train_acc = self.evaluate(self.data.train, self.settings.eval_train_limit)
            val_loss, val_acc = self.evaluate(self.data.val, self.settings.eval_val_limit)
        with self.clock.measure("log"):
            row: dict[str, Any] = {
                "step": self.step,
                "epoch": self.step / self.order.steps_per_epoch,
                "seconds": self.clock.seconds["train"],
                "train_loss": train_loss,
                "train_acc": train_acc,
                "val_loss": val_loss,
                "val_acc": val_acc,
            }
            if self.characters is not None:
                row["tokens"] = self.step * self.characters
            solver_stats = getattr(self.optimizer, "solver_stats", None)
            if solver_stats is not None and self.step > 0:
                row["solver"] = solver_stats()
            search_stats = getattr(self.optimizer, "search_stats", dict)()
            if search_stats:
                row["search"] = search_stats
            self.folder.append_row(row)
            if board is not None:
                board.add(finite(row))
                if self.settings.histograms:
                    board.add_weights(self.model, row)
                if self.data.letters:
                    text = characters.sample(self.model, self.data.letters, SAMPLE, self.settings.seed)
                    board.add_sample(text, row)
            self.rows.append(row)
            shown = {} if val_acc is None else {"val_acc": f"{val_acc:.4f}"}
            bar.set_postfix({"loss": f"{train_loss:.4f}", **shown})
        if not math.isfinite(train_loss):
            raise DivergedError(self.step, train_loss)
        if is_stuck(row.get("solver", {})):
            reason = f"no layer's subproblem has a finite solution at step {self.step}, so no weight moves: lower lr"
            raise DivergedError(self.step, train_loss, reason)

    def _save(self, board: Board | None) -> None:
        with self.clock.measure("log"):
            if board is not None:
                board.flush()
            save_checkpoint(
                self.folder,
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "step": self.step,
                    "data_sha256": self.data.sha256,
                    "environment": self.environment,
                    "earlier_environments": self.earlier_environments,
                    "batches_sha256": self.batches_sha256,
                    "seconds": dict(self.clock.seconds),
                    "random_cpu": torch.get_rng_state(),
                    "random_cuda": [torch.cuda.get_rng_state(self.device)] if self._on_cuda() else [],
                },
            )

    def restore(self) -> None:
        """Restore the last checkpoint, or the initial state without one.

        Raises:
            UserError: it is damaged, does not fit this run, or was trained on other data.
        """
        state = load_checkpoint(self.folder)
        if state is None:
            self.folder.clear()  # rows without a checkpoint cannot be continued
            return
        if state.get("data_sha256", self.data.sha256) != self.data.sha256:
            raise UserError(
                f"{self.folder.path} was begun with other data (data_sha256 differs): restore the data to resume it; "
                f"{AGAIN}"
            )
        try:
            self._load_state(state)
        except Exception as error:  # torch raises a different exception for each thing that can be wrong
            if is_out_of_memory(error):
                raise
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{self.folder.checkpoint} does not fit this run ({why}): {AGAIN}") from error
        drop_later_rows(self.folder, state)
        self.rows = self.folder.rows()

    def _load_state(self, state: dict[str, Any]) -> None:
        self.step, seconds = checked_position(state, self.total)
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.batches_sha256 = str(state["batches_sha256"])
        self.earlier_environments = earlier_environments(state, self.environment)
        self.clock.seconds.update(seconds)
        torch.set_rng_state(state["random_cpu"])
        if self._on_cuda() and state["random_cuda"]:
            torch.cuda.set_rng_state(state["random_cuda"][0], self.device)

    def _check_objective(self) -> None:
        """Refuse data that do not fit the model, and an accuracy target if the model has no accuracy."""
        name, train = self.settings.model["name"], self.data.train
        if self.settings.target_val_acc is not None and self.objective.right is None:
            raise UserError(
                f"target_val_acc={self.settings.target_val_acc}: model={name} has no accuracy; leave it out."
            )
        if (needed := self.objective.misfit(train.inputs, train.labels)) is not None:
            raise UserError(
                f"model={name} is {needed}, not for dataset={self.settings.dataset['name']}: choose another of them."
            )

    def _set_loss_average(self) -> None:
        """Tell a proximal method that the loss is a mean over the characters of all windows."""
        method = getattr(self.optimizer, "direction", self.optimizer)
        if self.characters is not None and isinstance(method, TappedOptimizer) and method.loss_average is True:
            method.loss_average = self.characters

    def _set_random_state(self) -> None:
        """Seed layers that draw random numbers in training; weights and batches have their own random streams."""
        torch.manual_seed(self.settings.seed)

    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _open_board(self) -> Board | None:
        if not self.settings.tensorboard:
            return None
        return Board(self.folder.board, self.folder.config, [finite(row) for row in self.rows])

    def _progress_bar(self) -> tqdm:
        quiet = not (self.settings.progress and sys.stderr is not None and sys.stderr.isatty())
        name = f"{self.settings.optimizer['name']} s{self.settings.seed}"
        columns, rows = shutil.get_terminal_size((100, 24))  # unlike tqdm's own value, never 0
        return tqdm(
            total=self.total,
            initial=self.step,
            desc=name,
            unit="step",
            disable=quiet,
            leave=False,  # the run's outcome is printed on a separate line
            ncols=columns,
            nrows=rows,
        )
