"""Imports point down only: each part of the package may use its own level and those below."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nemo_moslim"
LEVELS = {
    **dict.fromkeys(
        [
            "preferences",
            "batches",
            "checks",
            "config",
            "model_config",
            "families",
            "evaluation_config",
            "policy_config",
            "gpu_checks_config",
            "baseline_config",
            "comparison_config",
            "benchmark_config",
            "judging_config",
            "keys",
            "versions",
            "cli",
            "console",
            "clock",
            "serve_config",
            "stages",
            "launch",
            "stop_request",
            "run_folder",
            "__init__",
        ],
        0,
    ),
    "functional": 1,
    "parallel": 2,
    "data": 3,
    "models": 4,
    "huggingface": 5,
    "rollout": 5,
    "training": 6,
    "planning": 6,
    "baselines": 6,
    "serving": 6,
    "judging": 6,
    "evaluation": 6,
    "comparison": 7,
    "playground": 8,
    "report": 8,
    "preload": 8,
    "benchmark": 7,
}
NEMO_FOLDERS = {"models", "training", "huggingface", "parallel", "rollout"}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The folder or file of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = LEVELS[part_of(path)]
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "nemo_moslim" and len(parts) > 1:
            assert LEVELS[parts[1]] <= own, f"{path.name} (level {own}) imports {module} (level {LEVELS[parts[1]]})"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nemo_stays_in_its_folders(path):
    """A later move to another trainer must touch those folders only."""
    uses = {module for module in imported_modules(path) if module.split(".")[0] == "nemo"}
    assert not uses or part_of(path) in NEMO_FOLDERS, f"{path.name} imports {uses}"


def test_every_part_has_a_level():
    assert {part_of(path) for path in FILES} == set(LEVELS)
