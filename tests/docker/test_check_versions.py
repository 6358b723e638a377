import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("check_versions", ROOT / "docker" / "check_versions.py")
check_versions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_versions)

REQUIREMENTS = [
    "nemo_toolkit[lightning]==2.7.3", "megatron-core==0.15.3", "numpy<2",
    "fastapi; extra == 'serve'", "pytest; extra == 'test'",
]  # fmt: skip
GOOD = {
    "nemo_toolkit": "2.7.3", "megatron-core": "0.15.3", "numpy": "1.26.4",
    "fastapi": "0.120.0", "transformer_engine": "2.9.0",
}  # fmt: skip
FOUND = {"nemo": ("2.7.3", "/site/nemo"), "megatron.core": ("0.15.3", "/site/megatron/core")}


def problems(installed=None, found=None):
    versions, places = GOOD | (installed or {}), FOUND | (found or {})
    return check_versions.problems(REQUIREMENTS, versions.get, places.get)


def test_an_image_that_fits_passes():
    assert problems() == ([], [])


def test_other_packages_are_listed_and_other_extras_are_not_asked_for():
    assert problems({"numpy": "2.1.0"}) == ([], ["numpy: needs <2, has 2.1.0"])


@pytest.mark.parametrize(
    ("installed", "found", "words"),
    [
        ({"megatron-core": "0.16.0"}, {}, ["megatron-core: needs ==0.15.3, has 0.16.0", "another BASE"]),
        ({"nemo_toolkit": None}, {}, ["nemo_toolkit: needs ==2.7.3, has none"]),
        ({"numpy": None}, {}, ["numpy: needs <2, has none", "Dockerfile"]),
        ({"fastapi": None}, {}, ["fastapi: needs any version, has none", "Dockerfile"]),
        ({}, {"megatron.core": ("0.15.0", "/opt/megatron-lm/megatron/core")},
         ["pip installed 0.15.3, but Python finds 0.15.0 in /opt/megatron-lm", "PYTHONPATH"]),
        ({"transformer_engine": None}, {}, ["transformer_engine: not installed", "NeMo container"]),
    ],
)  # fmt: skip
def test_what_makes_the_image_useless_is_said(installed, found, words):
    (line,), different = problems(installed, found)
    assert different == []
    for word in words:
        assert word in line


def test_this_environment_has_the_pinned_versions_where_python_finds_them():
    for distribution, package in check_versions.FIXED.items():
        version, folder = check_versions.found_version(package)
        assert version == check_versions.installed_version(distribution), folder
    assert check_versions.installed_version("no-such-package") is None
    assert check_versions.found_version("no_such_package") == (None, "")


def test_the_dockerfile_installs_the_versions_of_pyproject():
    dockerfile, project = ((ROOT / name).read_text() for name in ("Dockerfile", "pyproject.toml"))
    for name in check_versions.FIXED:
        ((version,),) = [re.findall(rf'"{name}(?:\[.*\])?==(.*)"', project)]
        assert f"{name}=={version}" in dockerfile
    (version,) = re.findall(r'^version = "(.*)"', project, re.MULTILINE)
    assert f'image.version="{version}"' in dockerfile
