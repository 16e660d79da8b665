"""Tuning: the same number of trials for every method, a choice on validation data, then fresh seeds.

Imports point one way: :mod:`sibp.tune` -> here -> :mod:`sibp.experiment`.
"""
