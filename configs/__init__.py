"""Hydra's groups: the settings of a run, experiments and sweeps. Installed as the package sibp.configs."""
