"""The arena in one picture: scores with intervals, and the performance profiles of the best."""

from collections.abc import Sequence

from sibp.analysis.arena import Standing
from sibp.report.arena_page import profiles, scores
from sibp.report.pictures import picture as drawn


def picture(table: Sequence[Standing]) -> bytes:
    """Scores and profiles for the validation target, in steps and in seconds, as SVG."""
    return drawn([(figure, figure.x_title) for figure in (*scores(table)[:2], *profiles(table)[:2])], "svg")
