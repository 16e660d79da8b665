"""The rounds of `sibp.prox.nonlinear` in compiled form: the same arithmetic, several times faster on a CPU.

Between two products with the Gram matrix, a round is a long chain of cheap operations on (N, m) tensors, each of which
costs a trip through memory. `fused.c` does a round's chain in a few passes. It is compiled once with the machine's C
compiler (about a second) and kept in the user's cache folder; where there is no compiler, or the case is none of its
own, `solve_nonlinear` goes its ordinary way, with the same results up to rounding.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sibp.prox.activations import Activation
from sibp.prox.coordinates import Coordinates, Span

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
_C_TYPES = {torch.float32: ("float", ctypes.c_float), torch.float64: ("double", ctypes.c_double)}
_enabled = True


class Rounds(NamedTuple):
    """Where a number of rounds ended.

    Attributes:
        x: (..., N, m) coefficients.
        image_x: (..., N, m) K x.
        start: 0-dimensional, f(0) summed over neurons.
        end: 0-dimensional, f(x) summed over neurons.
        gradient: 0-dimensional, squared gradient norms summed over neurons and rounds.
        step_length: 0-dimensional, mean accepted step length over neurons and rounds.
    """

    x: Tensor
    image_x: Tensor
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


def usable(coordinates: Coordinates, Z: Tensor, s: Activation) -> bool:
    """Whether `rounds` can take this case: span coordinates, two linear pieces, a CPU, and a C compiler.

    Args:
        coordinates: of the layer's features.
        Z: (..., N, m) pre-activations.
        s: the layer's activation.
    """
    return (
        _enabled
        and isinstance(coordinates, Span)
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
        coordinates: of the layer's features, span.
        Z: (..., N, m) pre-activations, on the CPU.
        T: (..., N, m) target.
        lam: proximal weight.
        s: an activation with a `negative_slope`.
        number: of rounds.
        shrink_factor: by which a refused neuron's next step is shortened.
        rounding_units: units in the last place by which a residual may be rounded.
    """
    library = _library(Z.dtype)
    assert library is not None
    assert s.negative_slope is not None
    assert isinstance(coordinates, Span)
    a, real = s.negative_slope, _C_TYPES[Z.dtype][1]
    Z, T = Z.clone(memory_format=torch.contiguous_format), T.contiguous()
    U, KU, D, KD, G_old = (torch.zeros_like(Z) for _ in range(5))
    G, KG = torch.empty_like(Z), torch.empty_like(Z)
    f, gg_old, shrink, negligible = (Z.new_zeros(*Z.shape[:-2], Z.shape[-1]) for _ in range(4))
    shrink.fill_(1)
    N, m = Z.shape[-2:]
    state = _round_type(Z.dtype)(N=N, m=m, a=a, lam=lam, shrink_factor=shrink_factor)
    groups = range(Z[..., 0, 0].numel())
    starts = [g * N * m * Z.element_size() for g in groups], [g * m * Z.element_size() for g in groups]

    def at(tensor: Tensor, g: int) -> int:
        return tensor.data_ptr() + starts[tensor.dim() == f.dim()][g]

    unit = rounding_units * torch.finfo(Z.dtype).eps
    for g in groups:
        library.start(N, m, real(a), real(unit), at(Z, g), at(T, g), at(G, g), at(f, g), at(negligible, g))
    start = f.sum()
    roundings = coordinates.rounding.flatten().tolist()
    for _ in range(number):
        torch.matmul(coordinates.gram, G, out=KG)
        for g in groups:
            arrays = [at(tensor, g) for tensor in (Z, U, KU, T, D, KD, G, G_old, KG, f, gg_old, shrink, negligible)]
            state.rounding = roundings[g]
            library.advance(ctypes.byref(state), *arrays)
        G, G_old = G_old, G  # advance left the next gradient where the older one was
    taken = number * f.numel()
    return Rounds(U, KU, start, f.sum(), f.new_tensor(state.descent), f.new_tensor(state.step / taken))


@cache
def _round_type(dtype: torch.dtype) -> type[ctypes.Structure]:
    """`Round` of fused.c."""
    real = _C_TYPES[dtype][1]

    class Round(ctypes.Structure):
        _fields_ = (
            ("N", ctypes.c_long),
            ("m", ctypes.c_long),
            *((name, real) for name in ("a", "lam", "rounding", "shrink_factor")),
            ("step", ctypes.c_double),
            ("descent", ctypes.c_double),
        )

    return Round


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled `fused.c` for a dtype, or None where it cannot be had."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    name, real = _C_TYPES[dtype]
    command = [compiler, *_FLAGS, f"-DREAL={name}", str(_SOURCE)]
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
    library.start.argtypes = [ctypes.c_long, ctypes.c_long, real, real, *[ctypes.c_void_p] * 5]
    library.advance.argtypes = [ctypes.POINTER(_round_type(dtype)), *[ctypes.c_void_p] * 13]
    library.start.restype = library.advance.restype = None
    return library


def _processor() -> str:
    """What distinguishes this processor's instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
