"""C code of this folder, compiled when it is first needed.

It is compiled with the machine's C compiler (about a second) and kept in the user's cache folder. Where there is no
compiler, all that has a compiled form goes its ordinary way, with the same results up to rounding.
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

import torch

# Sums may be taken in any order; what is not finite has to stay so.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_BUILD = ("-fopenmp", "-shared", "-fPIC")
if platform.machine() in ("x86_64", "AMD64"):
    _FLAGS += ("-mprefer-vector-width=256",)  # rows are short: wider vectors leave more of them over
C_TYPES = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
"""The dtypes that there is compiled code for."""
_enabled = True


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Inside, nothing compiled is used."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def library(source: str, tensor: torch.Tensor) -> ctypes.CDLL | None:
    """A file's compiled form, for a tensor's dtype.

    Args:
        source: a C file of this folder; REAL stands for the dtype.
        tensor: it is to work on.

    Returns:
        The library; None where it cannot be had, inside `disabled()`, and for tensors on a device or of another dtype.
    """
    if not _enabled or tensor.device.type != "cpu" or tensor.dtype not in C_TYPES:
        return None
    return _loaded(source, tensor.dtype)


@cache
def _loaded(source: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    path = Path(__file__).with_name(source)
    name = C_TYPES[dtype].__name__.removeprefix("c_")
    command = [compiler, *_FLAGS, *_BUILD, f"-DREAL={name}", str(path)]
    # -march=native: what one processor compiled may not run on another that shares the home folder.
    texts = [path.read_text(), path.with_name("common.h").read_text()]
    identity = "\n".join([*command, platform.machine(), _processor(), *texts])
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache_home / "sibp" / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    try:
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=built.parent) as folder:
                unfinished = Path(folder) / built.name
                subprocess.run([*command, "-o", str(unfinished)], check=True, capture_output=True, timeout=120)
                unfinished.replace(built)  # in one go: another process may be doing the same
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    """What distinguishes this processor's instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
