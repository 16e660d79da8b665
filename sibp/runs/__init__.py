"""Run folders: what names them, what stands in them, and how they are read; used by training, tuning and reports.

Nothing here needs torch, so a report or a table of a sweep's state starts at once.
"""
