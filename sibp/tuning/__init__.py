"""Tuning: the same number of trials for every method, a choice on validation data, then fresh seeds.

`sibp.tune` imports this package, which imports `sibp.experiment`; there are no imports in the other direction.
"""
