"""The rounds of `sibp.prox.nonlinear` in compiled form: the same arithmetic, several times faster on a CPU.

Between two products with the Gram matrix, a round is a long chain of cheap operations on (N, m) tensors, each of which
costs a trip through memory. `fused.c` does a round's chain in a few passes. It is compiled once with the machine's C
compiler (about a second) and kept in the user's cache folder; where there is no compiler, or the case is none of its
own, `solve_nonlinear` goes its ordinary way, with the same results up to rounding.
"""

import contextlib
import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sibp.prox.activations import Activation
from sibp.prox.coordinates import Coordinates, Direct

_SOURCE = Path(__file__).with_suffix(".c")
# Sums may be taken in any order; what is not finite has to stay so.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_BUILD = ("-fopenmp", "-shared", "-fPIC")
if platform.machine() in ("x86_64", "AMD64"):
    _FLAGS += ("-mprefer-vector-width=256",)  # rows are short: wider vectors leave more of them over
_PARALLEL = 30_000  # numbers in an array from which several threads are worth waking
_C_TYPES = {torch.float32: ("float", ctypes.c_float), torch.float64: ("double", ctypes.c_double)}
_enabled = True


class Rounds(NamedTuple):
    """Where a number of rounds ended.

    Attributes:
        x: (..., r, m) coefficients.
        squared_change: 0-dimensional, <x, x> summed over neurons.
        start: 0-dimensional, f(0) summed over neurons.
        end: 0-dimensional, f(x) summed over neurons.
        gradient: 0-dimensional, squared gradient norms summed over neurons and rounds.
        step_length: 0-dimensional, mean accepted step length over neurons and rounds.
    """

    x: Tensor
    squared_change: Tensor
    start: Tensor
    end: Tensor
    gradient: Tensor
    step_length: Tensor


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Inside, nothing compiled is used."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def usable(Z: Tensor, s: Activation) -> bool:
    """Whether `rounds` can take this case: an activation of two linear pieces, a CPU, and a C compiler.

    Args:
        Z: (..., N, m) pre-activations.
        s: the layer's activation.
    """
    return (
        _enabled
        and s.negative_slope is not None
        and Z.device.type == "cpu"
        and Z.dtype in _C_TYPES
        and Z.numel() > 0
        and _library(Z.dtype) is not None
    )


def rounds(
    coordinates: Coordinates,
    Z: Tensor,
    T: Tensor,
    lam: float,
    s: Activation,
    number: int,
    shrink_factor: float,
    rounding_units: float,
) -> Rounds:
    """Takes `number` rounds from x = 0; see `solve_nonlinear` for the arguments and for what a round does.

    Args:
        coordinates: of the layer's features.
        Z: (..., N, m) pre-activations, on the CPU.
        T: (..., N, m) target.
        lam: proximal weight.
        s: an activation with a `negative_slope`.
        number: of rounds.
        shrink_factor: by which a refused neuron's next step is shortened.
        rounding_units: units in the last place by which a residual may be rounded.
    """
    (*leading, N, m), r = Z.shape, coordinates.size
    matrix = coordinates.features.written_out().phi if isinstance(coordinates, Direct) else coordinates.gram
    groups = math.prod(leading)
    unit = rounding_units * torch.finfo(Z.dtype).eps
    state = _round_type(Z.dtype)(
        N=N, r=r, m=m, direct=isinstance(coordinates, Direct), a=s.negative_slope, lam=lam, shrink_factor=shrink_factor,
        threads=torch.get_num_threads() if m * N >= _PARALLEL else 1,
    )  # fmt: skip
    x = Z.new_empty(groups, r, m)
    figures = Z.new_empty(groups, len(_FIGURES), m)
    noise = zip(coordinates.rounding.flatten().tolist(), coordinates.amplification.flatten().tolist(), strict=True)
    cases = zip(*(t.reshape(groups, *t.shape[-2:]) for t in (Z, T, matrix, x)), figures, noise, strict=True)
    for Z_g, T_g, matrix_g, x_g, figures_g, (rounding, amplification) in cases:
        state.rounding, state.residual_rounding = rounding, amplification * unit**2
        _one_group(state, Z_g, T_g, matrix_g, x_g, figures_g, number)
    start, f, norm, steps, descent = figures.sum((0, 2))[: len(_SUMS)].unbind()
    return Rounds(x.view(*leading, r, m), norm, start, f, descent, steps / (number * groups * m))


_SUMS = ("start", "f", "norm", "steps", "descent")
_FIGURES = (*_SUMS, "gg_old", "shrink", "negligible")


def _one_group(state: Any, Z: Tensor, T: Tensor, matrix: Tensor, x: Tensor, figures: Tensor, number: int) -> None:
    """All rounds of one group, into x (r, m) and figures (`_FIGURES`, m)."""
    library = _library(Z.dtype)
    assert library is not None
    N, r, m = state.N, state.r, state.m
    images, coefficients = ("Z", "T", "KD", "KG", "E" if state.direct else "KX"), ("X", "D", "G", "G_old")
    sizes = [m * N] * len(images) + [m * r] * len(coefficients)
    parts = _workspace(Z.dtype, sum(sizes)).split(sizes)
    arrays = {name: part.view(m, -1) for name, part in zip(images + coefficients, parts, strict=True)}
    _turn(library, Z, arrays["Z"])
    _turn(library, T, arrays["T"])
    X, G, G_old, KG = (arrays[name] for name in ("X", "G", "G_old", "KG"))
    E = arrays.setdefault("E", G)
    for name, tensor in arrays.items():
        setattr(state, name, tensor.data_ptr())
    row = m * Z.element_size()
    for place, name in enumerate(_FIGURES):
        setattr(state, name, figures.data_ptr() + place * row)
    library.start(ctypes.byref(state))
    for index in range(number):
        state.first = index == 0
        if state.direct:
            torch.addmm(X, E, matrix, beta=state.lam if index else 0.0, out=G)  # lam x + Phi' E
            torch.mm(G, matrix.mT, out=KG)
        else:
            torch.mm(G, matrix, out=KG)
            state.E = G_old.data_ptr()  # the next gradient, where the older one is
        state.G, state.G_old = G.data_ptr(), G_old.data_ptr()
        library.advance(ctypes.byref(state))
        G, G_old = G_old, G
    _turn(library, X, x)  # (r, m), as all that follows is quickest with


def _turn(library: ctypes.CDLL, X: Tensor, to: Tensor) -> None:
    """X' into `to`, both 2-D, `to` contiguous. Two threads of torch's copy are quicker where there is much to copy."""
    if X.is_contiguous() and X.numel() < _PARALLEL * 4:
        library.turn(X.data_ptr(), to.data_ptr(), *X.shape)
    else:
        to.copy_(X.mT)


_buffers = threading.local()


def _workspace(dtype: torch.dtype, size: int) -> Tensor:
    """Memory for the rounds, kept from layer to layer and step to step: fresh memory costs more than its use."""
    kept = vars(_buffers).get(str(dtype))
    if kept is None or len(kept) < size:
        kept = torch.empty(size, dtype=dtype)
        setattr(_buffers, str(dtype), kept)
    return kept[:size]


@cache
def _round_type(dtype: torch.dtype) -> type[ctypes.Structure]:
    """`Round` of fused.c."""
    real = _C_TYPES[dtype][1]

    class Round(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_long) for name in ("N", "r", "m", "direct", "threads", "first")),
            *((name, real) for name in ("a", "lam", "rounding", "residual_rounding", "shrink_factor")),
            *((name, ctypes.c_void_p) for name in ("Z", "T", "KD", "KG", "KX", "X", "D", "G", "G_old", "E", *_FIGURES)),
        )

    return Round


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled `fused.c` for a dtype, or None where it cannot be had."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    name, _ = _C_TYPES[dtype]
    command = [compiler, *_FLAGS, *_BUILD, f"-DREAL={name}", str(_SOURCE)]
    # -march=native: what one processor compiled may not run on another that shares the home folder.
    identity = "\n".join([*command, platform.machine(), _processor(), _SOURCE.read_text()])
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache_home / "sibp" / f"fused-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    try:
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=built.parent) as folder:
                unfinished = Path(folder) / built.name
                subprocess.run([*command, "-o", str(unfinished)], check=True, capture_output=True, timeout=120)
                unfinished.replace(built)  # in one go: another process may be doing the same
        library = ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError):
        return None
    library.start.argtypes = library.advance.argtypes = [ctypes.POINTER(_round_type(dtype))]
    library.turn.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    library.start.restype = library.advance.restype = library.turn.restype = None
    return library


def _processor() -> str:
    """What distinguishes this processor's instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
