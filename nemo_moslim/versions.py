"""Versions of the packages that a result depends on."""

import contextlib
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nemo_moslim import __version__

PACKAGES = ("nemo_toolkit", "megatron-core", "torch", "transformers", "transformer_engine")


def package_versions() -> dict[str, str]:
    """Versions that a result depends on: of Transformer Engine where it is installed, the commit in a checkout."""
    found = {"python": platform.python_version(), "nemo_moslim": __version__}  # perhaps run from a checkout
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    commit = checkout_commit()
    return {**found, "commit": commit} if commit else found


@cache
def checkout_commit() -> str | None:
    """What git calls the code that runs, "-dirty" with changes that are not committed; None where there is no git."""
    checkout, git = Path(__file__).parents[1], shutil.which("git")
    if not git or not (checkout / ".git").exists():
        return None
    command = [git, "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
