"""The experiment side: data, models, the training loop, its clock, run folders and logs.

Nothing here knows of Hydra but :mod:`sibp.experiment.compose`, which only commands import.
"""
