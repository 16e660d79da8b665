"""Tuning: the same number of trials for every method, a choice on validation data, then fresh seeds.

Imports point one way: `sibp.tune` -> here -> `sibp.experiment`.
"""
