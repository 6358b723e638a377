"""Typed configuration of judges: what they are asked, and how a judge behind HTTP is called."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nemo_moslim.checks import positive, require

JUDGES = ("endpoint", "reward_model", "world", "scripted")
READINGS = ("expected", "most_likely")


@dataclass
class RubricConfig:
    """What a judge is asked about one dimension: the quality, and what each score of the scale means."""

    lowest: int  # the score of the first meaning; the others follow
    asks: str
    meanings: list[str]

    @property
    def highest(self) -> int:
        """The score of the last meaning."""
        return self.lowest + len(self.meanings) - 1

    def on_scale(self, share: float) -> float:
        """A place between 0 (lowest) and 1 (highest) as a score."""
        return self.lowest + share * (self.highest - self.lowest)

    def share(self, score: float) -> float:
        """The inverse of `on_scale`."""
        return (score - self.lowest) / (self.highest - self.lowest)


@dataclass
class EndpointConfig:
    """A server with OpenAI's chat completions, and how often and how patiently it is asked."""

    url: str
    model: str | None
    key_env: str | None
    parameters: dict[str, Any]
    structured: bool
    concurrency: int
    requests_per_minute: float | None
    timeout: float
    attempts: int
    first_wait: float
    longest_wait: float
    max_failed: int
    cache: str | None
    input_price: float | None
    output_price: float | None

    def __post_init__(self):
        check_url("endpoint.url", self.url)
        names = ("concurrency", "timeout", "attempts", "first_wait", "longest_wait")
        positive("endpoint.", self, *names)
        if self.requests_per_minute is not None:
            positive("endpoint.", self, "requests_per_minute")
        require(self.max_failed >= 0, "endpoint.max_failed", self.max_failed, "a number of answers, 0 or more")
        prices = (self.input_price, self.output_price)
        both = all(p is not None and p >= 0 for p in prices)
        require(both or prices == (None, None), "endpoint.input_price", prices[0],
                "both prices (0 or more, of a million tokens), or null for both")  # fmt: skip
        taken = {"model", "messages", "response_format", "stream", "n"} & set(self.parameters)
        require(not taken, "endpoint.parameters", sorted(taken), "settings of sampling, without these keys")


def check_url(key: str, url: str) -> None:
    """ValueError for anything but http(s)://host without user, password or query, which would end up in messages."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise ValueError(f"{key}: no user, password or query in a URL; a key goes into an environment variable")
    try:
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        whole = False
    require(whole, key, url, "http://HOST:PORT/… or https://HOST/…")


def check_rubrics(rubrics: dict[str, RubricConfig]) -> None:
    """ValueError if a rubric has fewer than two meanings."""
    for name, rubric in rubrics.items():
        require(len(rubric.meanings) > 1, f"rubrics.{name}.meanings", rubric.meanings, "two or more, lowest first")
