"""Hands the build to CMake: `python setup.py build_ext --inplace` and `pip install .`.

Environment: VGGFAST_CUDA=auto|on|off, VGGFAST_CUDA_ARCHS="80;90a", VGGFAST_GLIBC=2.28 (what `make wheel`
asks for), CMAKE_ARGS (further arguments).
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str | None:
    """The command of that name beside this Python, or on PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cmake, ninja = tool("cmake"), tool("ninja")
        if not cmake or not ninja:
            sys.exit("vggfast: cmake and ninja are needed for the build: pip install cmake ninja")
        # `pip install --editable` and `build_ext --inplace` build the same module, once.
        same = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        build = same if self.editable_mode else Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": ninja,
            "VGGFAST_PYTHON": "ON",
            "VGGFAST_TESTS": "OFF",
            "VGGFAST_CUDA": os.environ.get("VGGFAST_CUDA", "auto"),
            "VGGFAST_GLIBC": os.environ.get("VGGFAST_GLIBC", ""),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        if "VGGFAST_CUDA_ARCHS" in os.environ:
            options["VGGFAST_CUDA_ARCHS"] = os.environ["VGGFAST_CUDA_ARCHS"]
        arguments = [f"-D{name}={value}" for name, value in options.items()]
        arguments += os.environ.get("CMAKE_ARGS", "").split()
        try:
            subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *arguments], check=True)
            subprocess.run([cmake, "--build", str(build)], check=True)
            install = ["--install", str(build), "--component", "python", "--prefix", str(target.parent)]
            subprocess.run([cmake, *install], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"vggfast: the build stopped with code {error.returncode}; the reason stands above.")


# pip reads what the build needs from pyproject.toml; `python setup.py` in a bare environment learns it from here.
needed = [] if importlib.util.find_spec("pybind11") else ["pybind11>=2.11"]

setup(
    ext_modules=[Extension("vggfast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=needed,
)
