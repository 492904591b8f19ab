"""The optional native part of the build: CMake compiles kernels/csrc into medmo_kernels/_C.so.

Without torch, CMake or a compiler the build goes on with a warning: every op has a plain form. pip's isolated build has
no torch, so the native part needs `pip install --no-build-isolation`.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "medmo_kernels._C"


class BuildNative(build_ext):
    """Run CMake in place of setuptools' compiler."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return a file name without Python's version: the library knows torch only."""
        return fullname.replace(".", os.sep) + ".so"

    def run(self) -> None:
        """Build, or warn and leave the library out."""
        problem = self._missing() or self._cmake()
        if problem:
            self.warn(f"medmo: native library left out: {problem}. Everything runs without it, box matching slower.")
            self.extensions = []
            return
        if self.inplace:
            self.copy_extensions_to_source()

    def _missing(self) -> str:
        """Say in words what the build lacks; an empty text when nothing."""
        if importlib.util.find_spec("torch") is None:
            return "torch is not importable in this build (use pip install --no-build-isolation)"
        if _cmake_path() is None:
            return "cmake is not installed"
        return ""

    def _cmake(self) -> str:
        """Configure and compile; return the last lines of what went wrong, or an empty text."""
        torch = importlib.util.find_spec("torch")
        assert torch is not None and torch.origin is not None
        output = (ROOT / self.build_lib / "medmo_kernels").resolve()
        folder = (ROOT / self.build_temp / "native").resolve()
        cmake = _cmake_path()
        assert cmake is not None
        configure = [cmake, "-S", str(ROOT), "-B", str(folder), f"-DTORCH_ROOT={Path(torch.origin).parent}",
                     f"-DMEDMO_OUTPUT={output}", "-DCMAKE_BUILD_TYPE=Release"]  # fmt: skip
        for command in (configure, [cmake, "--build", str(folder)]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
                return f"`{' '.join(command[:3])} ...` failed (its output is above)"
        return ""


def _cmake_path() -> str | None:
    """Find cmake, first beside the running Python: an environment need not be activated."""
    return shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def native_build_arguments() -> dict[str, Any]:
    """Return what setup() needs to build the native library where it can be built."""
    return {"ext_modules": [Extension(LIBRARY, sources=[], optional=True)], "cmdclass": {"build_ext": BuildNative}}
