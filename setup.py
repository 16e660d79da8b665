"""What pyproject.toml cannot say: configs/ is installed as sibp.configs, and the kernels in C are compiled.

Each source file is compiled once for every dtype and vector width into one shared library. `sibp.prox.kernels` loads it
and chooses the vector width at run time, so a wheel runs on every machine of the architecture that it was built on. It
also runs with every version of Python, whose headers are not needed. If no C compiler accepts the flags (gcc and clang
do), sibp is installed without kernels.

    python setup.py build_ext --inplace     recompiles them in a working copy
"""

import os
import platform
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, LinkError

FOLDER = "sibp/prox/kernels"
# NaN and Inf are preserved, and sums keep their order except where the code allows any (omp simd).
FLAGS = ["-O3", "-fno-math-errno", "-fno-signed-zeros", "-fno-trapping-math", "-fopenmp-simd"]
WIDTHS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    WIDTHS["avx2"] = ["-mavx2", "-mfma"]
    WIDTHS["avx512"] = [*WIDTHS["avx2"], "-mavx512f", "-mavx512dq", "-mavx512vl", "-mtune=skylake-avx512"]
    WIDTHS["avx512"] += ["-mprefer-vector-width=512"]  # gcc and clang prefer 256
if sys.platform == "darwin":
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")  # WIDTHS are those of one architecture


class BuildKernels(build_ext):
    """Compiles the first four sources once for each dtype and vector width, the others once."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links."""
        if self.compiler.compiler_type != "unix":
            raise CCompilerError("the kernels need gcc or clang")
        openmp = self._openmp()
        sources, others = ext.sources[:4], ext.sources[4:]
        objects = self._compiled(others, "common", ["-O2", f'-DSOURCES="{self._sources()}"'])

        def variant(width: str, real: str) -> list[str]:
            names = [f"-DREAL={real}", f"-DSUFFIX={real}_{width}"]
            return self._compiled(sources, f"{real}_{width}", [*FLAGS, *openmp, *WIDTHS[width], *names])

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # compiling takes most of an installation's time
            for found in pool.map(variant, *zip(*product(WIDTHS, ("float", "double")), strict=True)):
                objects += found
        ext.sources, ext.extra_objects, ext.extra_link_args = [], objects, openmp
        self.force = True  # always link: without sources, setuptools cannot tell that the library is out of date
        super().build_extension(ext)
        ext.sources = [*sources, *others]

    def get_source_files(self) -> list[str]:
        """The files that a source distribution must contain."""
        return [file for ext in self.extensions for file in (*ext.sources, *ext.depends)]

    def _compiled(self, sources: list[str], name: str, flags: list[str]) -> list[str]:
        folder = str(Path(self.build_temp, name))
        return self.compiler.compile(sources, output_dir=folder, extra_postargs=flags)

    def _sources(self) -> str:
        """A checksum that tells `sibp.prox.kernels` whether the library was built from the sources beside it."""
        checksum = 0
        for path in sorted(Path(FOLDER).glob("*.[ch]")):
            checksum = zlib.crc32(path.read_bytes(), checksum)
        return f"{checksum:08x}"

    def _openmp(self) -> list[str]:
        """The flag for OpenMP, if the compiler supports it (Apple's does not); otherwise kernels run in one thread."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "threads.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, str(Path(folder, "threads")), extra_postargs=["-fopenmp"])
            except (CompileError, LinkError):
                return []
        return ["-fopenmp"]


setup(
    packages=[*find_packages(include=["sibp", "sibp.*"]), "sibp.configs"],
    package_dir={"sibp.configs": "configs"},
    ext_modules=[
        Extension(
            "sibp.prox.kernels._native",
            sources=[f"{FOLDER}/{name}.c" for name in ("fused", "outputs", "closed", "lagged", "processor", "module")],
            depends=[
                f"{FOLDER}/common.h",
                f"{FOLDER}/activations.h",
                f"{FOLDER}/sums.h",
                f"{FOLDER}/transpose.h",
                "setup.py",
            ],
            optional=True,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
