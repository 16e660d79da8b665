"""The proximal subproblems of one layer and their solvers: pure functions on tensors.

`coordinates` says in which variables a subproblem is solved, `linear` solves the linear one in closed form, `nonlinear`
the one with an activation by conjugate gradients, `paper` as the method's authors do. Each answers with a `Solution`.
"""

from sibp.prox.status import Solution, Stats, Status

__all__ = ["Solution", "Stats", "Status"]
