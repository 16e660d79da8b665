"""Tuning: the same number of trials for every method, a choice on validation data, then fresh seeds.

One way only: :mod:`sibp.tune` -> here -> :mod:`sibp.experiment`.
"""
