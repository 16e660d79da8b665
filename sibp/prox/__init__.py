"""The proximal subproblems of one layer and their solvers: pure functions on tensors.

`operators` have the products with a layer's features; `solvers.coordinates` says in which variables a subproblem is
solved, `solvers.linear` solves the linear one in closed form, `solvers.nonlinear` the one with an activation by
conjugate gradients, `solvers.paper` as the method's authors do. Each answers with a `Solution`.
"""

from sibp.prox.status import Solution, Stats, Status

__all__ = ["Solution", "Stats", "Status"]
