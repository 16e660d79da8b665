"""Experiments: data, models, the training loop, its clock, run folders and logs.

Only `sibp.experiment.compose`, imported by commands alone, depends on Hydra.
"""
