"""The kernels in C: whether they are installed, and which of them this processor runs.

They are compiled when sibp is installed (`setup.py`), each for several vector widths; the widest that the processor
supports is chosen on first use. If they are missing, or were built from other sources than those beside this file,
torch operations replace them, with the same results up to rounding, and one warning says what to install.
"""

import contextlib
import ctypes
import importlib.util
import threading
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sibp.activations import Activation

C_TYPES = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
"""The dtypes that there are kernels for."""
KINDS = ("pieces", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh")
"""The activations that there are kernels for, in the order of activations.h; "pieces" is any of two linear pieces."""
_WIDTHS = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "baseline"}
_REBUILD = (
    "install gcc or clang and reinstall sibp: pip install --force-reinstall --no-deps --no-binary sibp sibp, or in a "
    "working copy: pip install -e ."
)
_LARGEST_KEPT = 2**22  # bytes of a workspace that is kept
_enabled = True
_buffers = threading.local()
_ARGUMENTS = {"p": ctypes.c_void_p, "l": ctypes.c_long, "d": ctypes.c_double}
_SIGNATURES = {
    "work_size": (ctypes.c_long, "llllll"),
    "iterate": (None, "ppppp llllllll dddddd p"),
    "outer_gram": (None, "ppp ll d l"),
    "mirror": (None, "pl"),
    "solve_size": (ctypes.c_long, "ll"),
    "minus_solve": (ctypes.c_int, "ppppp lll dd p"),
    "minus_substitute": (None, "pppp lll"),
    "outputs_size": (ctypes.c_long, "lll"),
    "begin": (None, "pl pl pl l d ppp pp"),
    "direct": (None, "ppp pp"),
    "redirect": (None, "pppppp pp"),
    "attempt": (None, "pppppp pp"),
    "pixels_size": (ctypes.c_long, "llll"),
    "pixels": (None, "pp lllll"),
    "lagged": (None, "ppp lllllllll"),
    "nonzeros": (ctypes.c_long, "pll"),
}
"""Result and argument types of the functions; p is an address, l an integer, d a real number."""


class Kernels:
    """The functions of the C files for one dtype and vector width, as attributes under their names in the source."""

    def __init__(self, file: ctypes.CDLL, suffix: str) -> None:
        """Wraps the functions of a loaded file whose names end in _suffix."""
        self._file, self._suffix = file, suffix

    def __getattr__(self, name: str) -> Any:
        """Looks the function up and stores it as an attribute."""
        function = getattr(self._file, f"{name}_{self._suffix}")
        result, arguments = _SIGNATURES.get(name, (None, ""))
        function.restype = result
        if arguments:
            function.argtypes = [_ARGUMENTS[letter] for letter in arguments.replace(" ", "")]
        setattr(self, name, function)
        return function


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Inside, no kernel is used."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def available() -> bool:
    """Whether kernels are installed, can be loaded, and are not `disabled`."""
    return _enabled and _file() is not None


def description() -> str:
    """Which kernels run: "native (AVX-512)", "native (AVX2)", "native (baseline)" or "none"."""
    return f"native ({_WIDTHS[widest()]})" if available() else "none"


def widest() -> str:
    """The widest vectors that processor and kernels support: "avx512", "avx2" or "baseline"; if `available()`."""
    file = _file()
    assert file is not None
    file.widest.restype = ctypes.c_char_p
    return file.widest().decode()


def library(tensor: torch.Tensor) -> Kernels | None:
    """The kernels for a tensor's dtype.

    Args:
        tensor: the tensor that they will work on.

    Returns:
        Kernels for the widest vectors of this processor; None if there are none, inside `disabled()`, while
        torch.compile traces, and for tensors on a device or of another dtype. The first time that kernels are missing,
        a warning says how to get them.
    """
    if not _enabled or not tensor.is_cpu or tensor.dtype not in C_TYPES:
        return None
    if torch.compiler.is_compiling():  # a trace cannot see what a call by address reads and writes
        return None
    return _chosen(tensor.dtype)


def workspace(dtype: torch.dtype, size: int) -> torch.Tensor:
    """Memory of `size` numbers or more for a kernel's own use, until the next call in the same thread.

    Unless it is large, it is kept for later layers and steps: allocating memory costs more than using it.
    """
    if size * dtype.itemsize > _LARGEST_KEPT:
        return torch.empty(size, dtype=dtype)
    buffers: dict[torch.dtype, torch.Tensor] = vars(_buffers)  # pyright: ignore[reportAssignmentType]
    kept = buffers.get(dtype)
    if kept is None or kept.numel() < size:
        kept = buffers[dtype] = torch.empty(size, dtype=dtype)
    return kept


def kind_of(s: Activation) -> int | None:
    """The index of an activation in `KINDS`; None if it has no kernel."""
    if s.negative_slope is not None:
        return 0
    return KINDS.index(s.kernel) if s.kernel else None


@cache
def _chosen(dtype: torch.dtype) -> Kernels | None:
    file = _file()
    if file is None:
        _warn()
        return None
    return Kernels(file, f"{C_TYPES[dtype].__name__.removeprefix('c_')}_{widest()}")


@cache
def _file() -> ctypes.CDLL | None:
    """The library that setup.py built; None if it is missing or was built from other sources.

    Functions of another version may take other arguments.
    """
    found = importlib.util.find_spec(f"{__name__}._native")
    if found is None or found.origin is None:
        return None
    try:
        file = ctypes.CDLL(found.origin)
        file.sources.restype = ctypes.c_char_p
        return file if file.sources().decode() == _sources() else None
    except (OSError, AttributeError):  # built for another machine, incomplete, or too old to have a checksum
        return None


def _sources() -> str:
    """The checksum of the sources beside this file, computed as in setup.py."""
    checksum = 0
    for path in sorted(Path(__file__).parent.glob("*.[ch]")):
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return f"{checksum:08x}"


@cache
def _warn() -> None:
    warnings.warn(
        f"sibp's compiled kernels are missing, or not those of this version: everything works, but conjugate gradients "
        f"on a CPU take up to twice the time. To get them, {_REBUILD}",
        RuntimeWarning,
        stacklevel=2,
    )
