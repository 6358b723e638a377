"""Versions of the packages that a result depends on."""

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

from nemo_moslim import __version__

PACKAGES = ("nemo_toolkit", "megatron-core", "torch", "transformers", "transformer_engine")


def package_versions() -> dict[str, str]:
    """Versions that a result depends on; of Transformer Engine where it is installed."""
    found = {"python": platform.python_version(), "nemo_moslim": __version__}  # perhaps run from a checkout
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
