"""A sweep's runs in other processes: on this machine, or on others by a Hydra launcher (submitit)."""

import copy
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# Private: a launcher needs a context of these, which Hydra creates only for its own command line.
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from sibp.experiment.workers import answer_of, count_of, ending_with, train_in_processes
from sibp.runs.errors import UserError
from sibp.runs.folder import RunFolder, write_atomic
from sibp.runs.outcome import Outcome
from sibp.runs.state import is_locked

HERE = (
    "sibp.experiment.workers.train_in_processes",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
)
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
SUBMITIT = ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher", SLURM)
SECONDS_BETWEEN_LOOKS = 0.3


class SnapshotLoader(ConfigLoaderImpl):
    """A config loader that does not compose; Hydra's own would read the YAML files again when a job starts."""

    def __init__(self) -> None:
        super().__init__(ConfigSearchPathImpl())

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of the launcher itself; the job's own is in the sweep's folder."""
        return copy.deepcopy(master_config)


def is_elsewhere(config: DictConfig) -> bool:
    """Whether a sweep's runs may be on other machines: True for Slurm.

    Args:
        config: as composed by Hydra, with its node ``hydra``.
    """
    return _target(config) == SLURM


def launch(
    config: DictConfig,
    jobs: Sequence[Mapping[str, Any]],
    tell: Callable[[Outcome], None],
    look: Callable[[Sequence[Mapping[str, Any]]], None] = lambda running: None,
) -> None:
    """Train every job in a process of the launcher, and wait for all.

    Args:
        config: as composed by Hydra, with its node ``hydra``, which holds the launcher.
        jobs: one resolved config per run.
        tell: called with each run's outcome soon after it ends; a submitit job whose process died has none.
        look: called at intervals with the running jobs, as far as known.

    Raises:
        UserError: unknown launcher.
        OSError: the folder of the sweep cannot be written.
    """
    if _target(config) in HERE:
        train_in_processes(jobs, count_of(config.hydra.launcher.n_jobs), tell, look)
        return
    root = Path(str(jobs[0]["run_root"])) / ".sweep"
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root)).absolute()
    for number, job in enumerate(jobs):
        write_atomic(folder / f"{number}.config.json", json.dumps({**job, "progress": False}).encode())
    if not is_elsewhere(config):
        write_atomic(folder / "pid", str(os.getpid()).encode())
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    config.hydra.sweep.dir = str(folder)
    launcher = Plugins.instance().instantiate_launcher(
        config=config, hydra_context=HydraContext(SnapshotLoader(), Callbacks()), task_function=work
    )
    watch = _Watch(folder, jobs, tell, look)
    try:
        launcher.launch([[f"job={number}"] for number in range(len(jobs))], initial_job_idx=0)
    finally:
        watch.end()
    if not watch.missing:
        shutil.rmtree(folder)  # it may contain submitit's files about processes that died


def check_launcher(config: DictConfig) -> None:
    """Refuse an unknown launcher and invalid settings of it.

    Args:
        config: as composed by Hydra, with its node ``hydra``.

    Raises:
        UserError: lists the launchers.
    """
    if list(_targets(OmegaConf.to_container(config.hydra.launcher))) not in [[name] for name in (*HERE, *SUBMITIT)]:
        raise UserError("hydra/launcher must be one of: basic, sibp_joblib, sibp_slurm, sibp_submitit_local.")
    if _target(config) in HERE:
        count_of(config.hydra.launcher.n_jobs)


def work(config: DictConfig) -> str:
    """The function that submitit calls in its process for every job.

    Args:
        config: the launcher's config; not the job's.

    Returns:
        How the run ended.
    """
    from sibp.experiment.runner import run

    folder, number = Path(HydraConfig.get().sweep.dir), HydraConfig.get().job.num
    parent = folder / "pid"  # of a sweep on this machine, whose runs end with it
    with ending_with(int(parent.read_text())) if parent.exists() else nullcontext():
        outcome = run(json.loads((folder / f"{number}.config.json").read_text()))
    write_atomic(folder / f"{number}.outcome.json", json.dumps(answer_of(outcome)).encode())
    return outcome.status


class _Watch:
    """A thread that reads the jobs' outcomes until it is ended."""

    def __init__(
        self,
        folder: Path,
        jobs: Sequence[Mapping[str, Any]],
        tell: Callable[[Outcome], None],
        show: Callable[[Sequence[Mapping[str, Any]]], None],
    ):
        self.missing = dict(enumerate(jobs))
        self._folder, self._tell, self._show = folder, tell, show
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Read the outcomes once more, and stop."""
        self._ended.set()
        self._thread.join()
        self._read_outcomes()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            self._read_outcomes()
            self._show([job for job in self.missing.values() if is_locked(RunFolder(job).path / ".lock")])

    def _read_outcomes(self) -> None:
        for number, job in list(self.missing.items()):
            path = self._folder / f"{number}.outcome.json"
            if path.exists():
                del self.missing[number]
                self._tell(Outcome(folder=RunFolder(job), **json.loads(path.read_text())))


def _target(config: DictConfig) -> str:
    return str(config.hydra.launcher.get("_target_"))


def _targets(node: Any) -> list[str]:
    """Every class that instantiating a config would create."""
    if isinstance(node, Mapping):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [name for value in node.values() for name in _targets(value)]
    return [name for item in node for name in _targets(item)] if isinstance(node, list) else []
