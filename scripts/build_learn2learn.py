"""Build learn2learn 0.2.0 into the environment whose Python runs this.

    python scripts/build_learn2learn.py

The published release ships C files of an old Cython, and its package builds on no Python from 3.11 on; here its Cython
sources are translated anew. What it needs for MAML, GBML, task sets and vision models is installed beside it, and
nothing that this project needs is changed, setuptools excepted (below 81). Tried on Python 3.11; the torchvision that
imports beside a CPU build of torch has no wheels for 3.12 and later, where torchvision must be there already.
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
    """Install, build, and import what was built; the exit status is 1 where a step failed."""
    if _works():
        print(f"learn2learn {VERSION} is here already")
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
        print("build_learn2learn: error: it was built, but does not import; its message is above", file=sys.stderr)
        return 1
    print(f"learn2learn {VERSION} is built")
    return 0


def _pip(name: str, *packages: str) -> int:
    print(f"installing {name} ...", flush=True)
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *packages], check=False)
    if done.returncode:
        print(f"build_learn2learn: error: pip could not install {name}; its message is above", file=sys.stderr)
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
