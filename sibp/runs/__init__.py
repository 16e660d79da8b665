"""Run folders: their names, their files, and how they are read; used by training, tuning and reports.

Nothing here imports torch, so a report or a status table starts fast.
"""
