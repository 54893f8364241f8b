"""Build and install learn2learn 0.2.0 for the Python that runs this script.

    python scripts/build_learn2learn.py

The published release contains C files of an old Cython and does not build on Python 3.11 or later; this script
translates its Cython sources again. It also installs the packages for MAML, GBML, task sets and vision models, without
changing the dependencies of this project except setuptools (below 81). Tested on Python 3.11. The torchvision for a CPU
build of torch has no wheels for 3.12 and later, where torchvision must be installed beforehand.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

VERSION = "0.2.0"
TOOLS = ["cython==3.0.12", "setuptools<81", "wheel", "numpy", "scipy", "requests", "tqdm", "gym", "pillow"]
TORCHVISION = "torchvision==0.16.2"
CHECK = "import warnings; warnings.simplefilter('ignore'); import learn2learn; print(learn2learn.__version__)"


def main() -> int:
    """Install, build and import; returns 1 if a step failed."""
    if _works():
        print(f"learn2learn {VERSION} is already installed")
        return 0
    steps = [("its tools", TOOLS)]
    if importlib.util.find_spec("torchvision") is None:
        steps.append(("torchvision", ["--no-deps", TORCHVISION]))
    build = ["--no-deps", "--use-pep517", "--no-build-isolation", "--config-settings=--global-option=build_ext"]
    steps.append(("learn2learn", [*build, f"learn2learn=={VERSION}"]))
    for name, packages in steps:
        if status := _pip(name, *packages):
            return status
    if not _works():
        print("build_learn2learn: error: it was built, but cannot be imported; see the message above", file=sys.stderr)
        return 1
    print(f"learn2learn {VERSION} is built")
    return 0


def _pip(name: str, *packages: str) -> int:
    print(f"installing {name} ...", flush=True)
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *packages], check=False)
    if done.returncode:
        print(f"build_learn2learn: error: pip could not install {name}; see the message above", file=sys.stderr)
    return 1 if done.returncode else 0


def _works() -> bool:
    if importlib.util.find_spec("learn2learn") is None:
        return False
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return done.returncode == 0 and done.stdout.strip() == VERSION


if __name__ == "__main__":
    sys.exit(main())
