"""The proximal subproblems of one layer and their solvers: pure functions on tensors.

- `operators` computes products with a layer's features.
- `solvers.coordinates` defines the variables in which a subproblem is solved.
- `solvers.linear` solves the linear subproblem in closed form.
- `solvers.nonlinear` solves the subproblem with an activation by conjugate gradients.
- `solvers.paper` solves both kinds as the method's authors do.

The first two solvers return a `Solution`, the last one a `PaperSolution`.
"""

from sibp.prox.status import Solution, Stats, Status

__all__ = ["Solution", "Stats", "Status"]
