"""What is said where a value is wrong: the key, what it is, what it has to be, and the nearest that it can be."""

from collections.abc import Iterable
from typing import Any


def require(condition: bool, key: str, got: Any, expected: str) -> None:
    """ValueError naming the key, what it is and what it has to be."""
    if not condition:
        raise ValueError(f"{key}={got!r}: expected {expected}")


def one_of(key: str, got: Any, choices: tuple) -> None:
    """ValueError if a value is none of the choices."""
    require(got in choices, key, got, "one of " + ", ".join(map(str, choices)))


def positive(prefix: str, owner: Any, *names: str) -> None:
    """ValueError if one of the owner's numbers is not above 0."""
    for name in names:
        require(getattr(owner, name) > 0, f"{prefix}{name}", getattr(owner, name), "a number above 0")


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def multiples_around(value: int, step: int) -> list[int]:
    """The multiples of `step` next to `value`, the lower one only where it is above 0."""
    below = value // step * step
    return [multiple for multiple in (below, below + step) if multiple > 0]


def use(key: str, value: int, valid: Iterable[int], *others: str) -> str:
    """The remedy: the nearest valid values below and above, and what else can be set."""
    valid = sorted(valid)
    nearest = [v for v in valid if v < value][-1:] + [v for v in valid if v > value][:1]
    return f"use {key}=" + " or ".join(map(str, [*nearest, *others]))
