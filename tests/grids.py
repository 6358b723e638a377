"""Grids of cases, of which `make test` runs the representatives and `make test-all` every case."""

from collections.abc import Collection

import pytest


def grid(cases: Collection, *representatives) -> list:
    """Cases of a parametrisation, tuples where they are several values; all but representatives are `exhaustive`."""
    unknown = [case for case in representatives if case not in cases]
    assert not unknown, f"not in the grid: {unknown}"
    return [case if case in representatives else exhaustive(case) for case in cases]


def exhaustive(case):
    """One such case."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.exhaustive)
