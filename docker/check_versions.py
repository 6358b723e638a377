"""The last step of the image's build: does Python find the versions that this project needs? Exit code 1: it does not.

Nothing is imported: Transformer Engine needs a driver for that, which a build has not. NeMo, megatron-core and
Transformer Engine have to fit, and every package has to be there; others that only differ from pyproject.toml are
listed, since the base image's own set was built together. The `serve` extra counts: the image runs the service too.
"""

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = "nemo_moslim"
FIXED = {"nemo_toolkit": "nemo", "megatron-core": "megatron.core"}  # distribution: the package whose version counts


def installed_version(distribution: str) -> str | None:
    """Version that pip knows, None if it knows none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def found_version(package: str) -> tuple[str | None, str]:
    """Version that an import would find, by the package's own package_info.py, and the folder that it lies in."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None, ""
    folder = Path(spec.origin).parent
    parts = dict(re.findall(r"^(MAJOR|MINOR|PATCH) = (\d+)", (folder / "package_info.py").read_text(), re.MULTILINE))
    return ".".join(parts[name] for name in ("MAJOR", "MINOR", "PATCH")), str(folder)


def problems(
    requirements: Iterable[str],
    installed: Callable[[str], str | None] = installed_version,
    found: Callable[[str], tuple[str | None, str]] = found_version,
) -> tuple[list[str], list[str]]:
    """What makes the image useless, and what only differs from `requirements`: one line each."""
    fatal, different = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": "serve"}):
            continue
        version = installed(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        line = f"{requirement.name}: needs {requirement.specifier or 'any version'}, has {version or 'none'}"
        if requirement.name not in FIXED and version is None:
            fatal.append(f"{line}: install it in the Dockerfile, with the base's versions as constraints")
            continue
        if requirement.name not in FIXED:
            different += [] if fits else [line]
            continue
        if not fits:
            fatal.append(f"{line}: take another BASE, or install this version in the Dockerfile")
            continue
        imported, folder = found(FIXED[requirement.name])
        if imported != version:
            fatal.append(
                f"{requirement.name}: pip installed {version}, but Python finds {imported} in {folder}: take that "
                "folder of the base image off PYTHONPATH and out of its .pth files"
            )
    if installed("transformer_engine") is None:
        fatal.append("transformer_engine: not installed: take a NeMo container as BASE")
    return fatal, different


def main() -> int:
    """Print what was found."""
    fatal, different = problems(importlib.metadata.requires(PROJECT))
    for line in different:
        print(f"different from pyproject.toml: {line}")
    for line in fatal:
        print(f"error: {line}", file=sys.stderr)
    if not fatal:
        print("NeMo, megatron-core and Transformer Engine fit")
    return 1 if fatal else 0


if __name__ == "__main__":
    sys.exit(main())
