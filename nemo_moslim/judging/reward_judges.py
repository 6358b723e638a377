"""A multi-head reward model as a judge, on this launch's ranks or behind its HTTP service.

Its levels are spread evenly over the scale of a dimension's rubric: level 3 of 5 is 3 on a scale from 1 to 5, and of a
head with two levels the higher is 5. Only heads with two levels or more say anything.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from nemo_moslim.config import ParallelConfig
from nemo_moslim.console import progress
from nemo_moslim.judging.http_client import PatientClient, Rejected, Unavailable
from nemo_moslim.judging.verdicts import Answer, Verdict, Verdicts
from nemo_moslim.judging_config import EndpointConfig, RubricConfig, check_url
from nemo_moslim.keys import SERVICE_TOKEN, service_token


def score_of(probabilities: Sequence[float], rubric: RubricConfig, reading: str) -> float:
    """A head's K probabilities (which need not sum to 1: the joint loss) as a score on the rubric's scale.

    Args:
        reading: `expected` level, or the `most_likely` one.

    Raises:
        ValueError: fewer than two levels, or nothing but zeros.
    """
    levels, total = len(probabilities), sum(probabilities)
    if levels < 2 or not total > 0:
        raise ValueError(f"probabilities {list(probabilities)}: a score needs two levels or more, and one above 0")
    if reading == "most_likely":
        place = max(range(levels), key=lambda level: probabilities[level])
    else:
        place = sum(level * p for level, p in enumerate(probabilities)) / total
    return rubric.on_scale(place / (levels - 1))


class LocalRewardJudge:
    """A run or Hugging Face folder, in the layout of this launch; every rank judges the same answers."""

    on_every_rank = True

    def __init__(
        self, path: str, rubrics: dict[str, RubricConfig], reading: str, parallel: ParallelConfig, precision: str,
        micro_size: int,
    ):  # fmt: skip
        """`parallel.start.start` comes first. Raises as `open_reward_model`."""
        from nemo_moslim.rollout.open_model import open_reward_model
        from nemo_moslim.rollout.score import LocalRewardModel

        self.path, self.rubrics, self.reading = path, rubrics, reading
        self.model = LocalRewardModel(*open_reward_model(path, parallel, precision), micro_size, offload=False)
        self._cut = 0

    def judge(self, answers: Sequence[Answer], dimensions: Sequence[str]) -> list[Verdicts]:
        """See `Judge`.

        Raises:
            ValueError: the model has no head for a dimension, or one of a single level.
        """
        schema = self.model.schema
        for name in dimensions:
            if schema.dimension(name).levels < 2:
                raise ValueError(f"reward={self.path}: its head {name} has one level, which is no score")
        if not answers:
            return []
        p, shortened = self.model.probabilities([a.prompt for a in answers], [a.response for a in answers])
        self._cut += int(shortened.sum())
        return [
            {name: Verdict(score_of(row[schema.slices[name]], self.rubrics[name], self.reading)) for name in dimensions}
            for row in p.tolist()
        ]

    def report(self) -> dict[str, Any]:
        """See `Judge`; `cut`: answers over the model's length, which were read without the left part of their text."""
        return {"judge": "reward_model", "reward": self.path, "reads": self.reading, "cut": self._cut}


class ServiceRewardJudge:
    """`POST URL/score`: {"items": [{"prompt", "response"}]} -> {"items": [{"probabilities": {head: […]}}], "model"}."""

    on_every_rank = False

    def __init__(
        self, url: str, rubrics: dict[str, RubricConfig], reading: str, settings: EndpointConfig, batch_size: int
    ):  # fmt: skip
        """The service's bearer token, where it wants one, is the environment's MOSLIM_SERVICE_TOKEN.

        Raises:
            ValueError: a URL that is none, or a token that cannot be sent.
        """
        check_url("reward", url)
        self.url, self.rubrics, self.reading, self.batch_size = url.rstrip("/"), rubrics, reading, batch_size
        self.client = PatientClient(settings, service_token(), f"the environment's {SERVICE_TOKEN}")
        self.max_failed, self._cut = settings.max_failed, 0
        self._failed = 0  # answers of the whole run
        self._model: str | None = None  # id in the first reply

    def judge(self, answers: Sequence[Answer], dimensions: Sequence[str]) -> list[Verdicts]:
        """See `Judge`.

        Raises:
            ValueError: the token or the address is wrong, the service lacks a dimension or answers as another model
                than before, or more than `endpoint.max_failed` answers could not be scored, over all calls.
        """
        return asyncio.run(self._judge_all(answers, dimensions))

    def report(self) -> dict[str, Any]:
        """See `Judge`; `model`: the id that the service gave with its scores, None before the first."""
        again = {key.removeprefix("again: "): n for key, n in self.client.counts.items() if key.startswith("again")}
        requests = self.client.counts["requests"]
        return {"judge": "reward_model", "reward": self.url, "model": self._model, "reads": self.reading,
                "cut": self._cut, "requests": requests, "sent_again": again}  # fmt: skip

    async def _judge_all(self, answers: Sequence[Answer], dimensions: Sequence[str]) -> list[Verdicts]:
        verdicts: list[Verdicts] = [{}] * len(answers)
        with progress(len(answers), "judged") as advance:

            async def work(start: int) -> None:
                part = answers[start : start + self.batch_size]
                try:
                    verdicts[start : start + len(part)] = await self._scored(part, dimensions)
                except (Rejected, Unavailable) as error:
                    failure = {name: Verdict(None, "failed", str(error)) for name in dimensions}
                    verdicts[start : start + len(part)] = [failure] * len(part)
                    self._failed += len(part)
                    if self._failed > self.max_failed:
                        raise ValueError(
                            f"{self.url}: {self._failed} answers were not scored: {error} (endpoint.max_failed="
                            f"{self.max_failed})"
                        ) from error
                advance(len(part))

            async with self.client.session():
                await self.client.for_all(range(0, len(answers), self.batch_size), work)
        return verdicts

    async def _scored(self, part: Sequence[Answer], dimensions: Sequence[str]) -> list[Verdicts]:
        def read(reply: Any) -> tuple[list[dict[str, list[float]]], int, str]:
            items = reply["items"]
            if len(items) != len(part):
                raise ValueError("another number of items than was sent")
            heads = [{name: [float(p) for p in head] for name, head in i["probabilities"].items()} for i in items]
            return heads, sum(item.get("cut") is True for item in items), str(reply["model"])

        body = {"items": [{"prompt": answer.prompt, "response": answer.response} for answer in part]}
        heads, cut, model = await self.client.post(f"{self.url}/score", body, read)
        self._model = self._model or model
        if model != self._model:
            raise ValueError(
                f"reward={self.url}: it serves another model ({model}) than at first ({self._model}): serve one of "
                "them throughout and give the same command again"
            )
        self._cut += cut
        for name in dimensions:
            if any(len(row.get(name, ())) < 2 for row in heads):
                raise ValueError(f"reward={self.url}: it has no head {name} of two levels or more")
        return [
            {name: Verdict(score_of(row[name], self.rubrics[name], self.reading)) for name in dimensions}
            for row in heads
        ]
