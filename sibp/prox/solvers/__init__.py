"""Solvers of one layer's subproblem: closed form, conjugate gradients, and the authors' own."""
