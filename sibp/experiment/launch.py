"""A sweep's runs in other processes, by the Hydra launcher that the command names (joblib, submitit)."""

import copy
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from sibp.experiment.errors import UserError
from sibp.experiment.run_folder import RunFolder, write_atomic
from sibp.experiment.runner import Outcome, run

LAUNCHERS = (
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
)
SECONDS_BETWEEN_LOOKS = 0.3


class SnapshotLoader(ConfigLoaderImpl):
    """Composes nothing: a launcher would have Hydra read the YAML files again when a job starts."""

    def __init__(self) -> None:
        super().__init__(ConfigSearchPathImpl())

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of the launcher itself; the job's own is in the sweep's folder."""
        return copy.deepcopy(master_config)


def launch(config: DictConfig, jobs: Sequence[Mapping[str, Any]], tell: Callable[[Outcome], None]) -> None:
    """Train every job in a process of the launcher's, and wait for them.

    Args:
        config: as composed by Hydra, with its node ``hydra``, which holds the launcher.
        jobs: one resolved config a run.
        tell: called with each run's outcome soon after it has ended; a job whose process died has none.

    Raises:
        UserError: the config names a launcher that is not known.
        OSError: the folder of the sweep cannot be written.
    """
    launcher_config = config.hydra.launcher
    if list(_targets(OmegaConf.to_container(launcher_config))) not in [[name] for name in LAUNCHERS]:
        raise UserError("hydra/launcher must be one of: basic, sibp_joblib, sibp_slurm, sibp_submitit_local.")
    root = Path(str(jobs[0]["run_root"])) / ".sweep"
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root)).absolute()
    for number, job in enumerate(jobs):
        write_atomic(folder / f"{number}.config.json", json.dumps({**job, "progress": False}).encode())
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    config.hydra.sweep.dir = str(folder)
    launcher = Plugins.instance().instantiate_launcher(
        config=config, hydra_context=HydraContext(SnapshotLoader(), Callbacks()), task_function=work
    )
    watch = _Watch(folder, jobs, tell)
    try:
        launcher.launch([[f"job={number}"] for number in range(len(jobs))], initial_job_idx=0)
    finally:
        watch.end()
    if not watch.missing:
        shutil.rmtree(folder)  # else it holds what submitit wrote about the processes that died


def work(config: DictConfig) -> str:
    """What the launcher calls in its process, for every job.

    Args:
        config: the launcher's config; not the job's.

    Returns:
        How the run ended.
    """
    folder, number = Path(HydraConfig.get().sweep.dir), HydraConfig.get().job.num
    outcome = run(json.loads((folder / f"{number}.config.json").read_text()))
    words = {"status": outcome.status, "message": outcome.message, "wrong_input": outcome.wrong_input}
    write_atomic(folder / f"{number}.outcome.json", json.dumps(words).encode())
    return outcome.status


class _Watch:
    """Looks for outcomes until told to end."""

    def __init__(self, folder: Path, jobs: Sequence[Mapping[str, Any]], tell: Callable[[Outcome], None]):
        self.missing = dict(enumerate(jobs))
        self._folder, self._tell = folder, tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look once more, and stop."""
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        for number, job in list(self.missing.items()):
            path = self._folder / f"{number}.outcome.json"
            if path.exists():
                del self.missing[number]
                self._tell(Outcome(folder=RunFolder(job), **json.loads(path.read_text())))


def _targets(node: Any) -> list[str]:
    """Every class that a config would have instantiated."""
    if isinstance(node, Mapping):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [name for value in node.values() for name in _targets(value)]
    return [name for item in node for name in _targets(item)] if isinstance(node, list) else []
