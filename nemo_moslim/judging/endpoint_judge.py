"""A language model behind an OpenAI-compatible endpoint as a judge: one request per answer and dimension."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nemo_moslim.console import progress
from nemo_moslim.judging.http_client import PatientClient, Rejected, Unavailable
from nemo_moslim.judging.reply_cache import ReplyCache, request_key
from nemo_moslim.judging.rubrics import messages_for, read_verdict, response_format
from nemo_moslim.judging.verdicts import Answer, Verdict, Verdicts
from nemo_moslim.judging_config import EndpointConfig, RubricConfig
from nemo_moslim.keys import secret_of

UNSTRUCTURED = {400, 415, 422}  # what servers say to a response_format that they do not know


def tokens_of(reply: Any) -> dict[str, int] | None:
    """What a reply says that it used; None where it does not say."""
    usage = reply.get("usage") or {}
    tokens = {"input": usage.get("prompt_tokens"), "output": usage.get("completion_tokens")}
    return tokens if all(isinstance(count, int) for count in tokens.values()) else None


def read_completion(reply: Any) -> dict[str, Any]:
    """What is kept of a chat completion; an error of `PatientClient.post` if it is none."""
    choice = reply["choices"][0]
    message = choice["message"]
    content, refusal = message.get("content"), message.get("refusal")
    if choice.get("finish_reason") == "content_filter":
        refusal = refusal or "stopped by the server's content filter"
    if not isinstance(content, str) and not refusal:
        raise ValueError("no content")
    return {"content": content or "", "refusal": refusal or None, "tokens": tokens_of(reply)}


class EndpointJudge:
    """Asks `POST {url}/chat/completions`; replies are kept in the cache and never asked for twice."""

    on_every_rank = False

    def __init__(self, settings: EndpointConfig, rubrics: dict[str, RubricConfig], cache: ReplyCache):
        """
        Raises:
            ValueError: no model, or the key's environment variable is not set.
        """
        if not settings.model:
            raise ValueError("endpoint.model is not set: judge=endpoint needs the name of the model that judges")
        secret = secret_of("endpoint.key_env", settings.key_env)
        self.settings, self.rubrics, self.cache = settings, rubrics, cache
        self.url = settings.url.rstrip("/") + "/chat/completions"
        self.client = PatientClient(settings, secret, "endpoint.key_env")
        self._structured = settings.structured
        self._tokens, self._cached_tokens = Counter(), Counter()
        self._counts: Counter[str] = Counter()
        self._failures = 0  # of the whole run

    def judge(self, answers: Sequence[Answer], dimensions: Sequence[str]) -> list[Verdicts]:
        """See `Judge`. An answer that the server rejects, or that fails after every attempt, gets no score.

        Raises:
            ValueError: the key or the address is wrong, or more than `max_failed` requests failed, over all calls; what
                has been answered is in the cache.
        """
        bodies: dict[str, tuple[dict, str]] = {}
        keys = []
        for answer in answers:
            asked = {}
            for dimension in dimensions:
                body = self._body(answer, dimension)
                asked[dimension] = request_key(self.url, {**body, "structured": self.settings.structured})
                bodies[asked[dimension]] = (body, dimension)
            keys.append(asked)
        verdicts = asyncio.run(self._verdicts(bodies))
        return [{dimension: verdicts[key] for dimension, key in asked.items()} for asked in keys]

    def report(self) -> dict[str, Any]:
        """See `Judge`: requests, tokens and cost of this call, and of all replies, cached ones included."""
        of_all = self._tokens + self._cached_tokens
        again = {key.removeprefix("again: "): n for key, n in self.client.counts.items() if key.startswith("again")}
        return {
            "judge": "endpoint", "url": self.settings.url, "model": self.settings.model,
            "parameters": dict(self.settings.parameters), "structured": self._structured,
            "requests": self.client.counts["requests"], "sent_again": again, "from_cache": self._counts["cached"],
            "replies_without_token_counts": self._counts["uncounted"],
            "tokens": {"input": self._tokens["input"], "output": self._tokens["output"]},
            "cost": self._cost(self._tokens),
            "tokens_with_cache": {"input": of_all["input"], "output": of_all["output"]},
            "cost_with_cache": self._cost(of_all),
        }  # fmt: skip

    def _body(self, answer: Answer, dimension: str) -> dict[str, Any]:
        messages = messages_for(answer, self.rubrics[dimension])
        return {"model": self.settings.model, "messages": messages, **self.settings.parameters}

    async def _verdicts(self, bodies: dict[str, tuple[dict, str]]) -> dict[str, Verdict]:
        verdicts: dict[str, Verdict] = {}
        with progress(len(bodies), "judged") as advance:

            async def work(key: str) -> None:
                verdicts[key] = await self._verdict(key, *bodies[key])
                if verdicts[key].status == "failed":
                    self._failures += 1
                    if self._failures > self.settings.max_failed:
                        raise ValueError(
                            f"{self.url}: {self._failures} requests failed, the last one with: {verdicts[key].reason} "
                            f"(endpoint.max_failed={self.settings.max_failed}); verdicts so far are in the cache, the "
                            "same command goes on from there"
                        )
                advance()

            async with self.client.session():
                await self.client.for_all(list(bodies), work)
        return verdicts

    async def _verdict(self, key: str, body: dict[str, Any], dimension: str) -> Verdict:
        reply = self.cache.get(key)
        if reply is not None:
            self._counts["cached"] += 1
            self._cached_tokens.update(reply["tokens"] or {})
        else:
            try:
                reply = await self._ask(body, dimension)
            except (Rejected, Unavailable) as error:
                return Verdict(None, "failed", str(error))
            self.cache.put(key, reply)
            self._counts["uncounted"] += reply["tokens"] is None
        if reply["refusal"]:
            return Verdict(None, "refused", reply["refusal"])
        return read_verdict(reply["content"], self.rubrics[dimension])

    async def _ask(self, body: dict[str, Any], dimension: str) -> dict[str, Any]:
        """A reply to be kept. A server that rejects `response_format` is asked without it, then and from then on."""
        try:
            if self._structured:
                structured = {**body, "response_format": response_format(self.rubrics[dimension])}
                try:
                    return await self.client.post(self.url, structured, self._read)
                except Rejected as error:
                    if error.status not in UNSTRUCTURED or "content_filter" in error.text:
                        raise
            reply = await self.client.post(self.url, body, self._read)
            self._structured = False
            return reply
        except Rejected as error:
            if "content_filter" not in error.text:
                raise
            return {"content": "", "refusal": "stopped by the server's content filter", "tokens": None}

    def _read(self, reply: Any) -> dict[str, Any]:
        """As `read_completion`; what it used is counted first, since a reply of no use is billed too."""
        self._tokens.update(tokens_of(reply) or {})
        return read_completion(reply)

    def _cost(self, tokens: Counter) -> float | None:
        if self.settings.input_price is None:
            return None
        prices = {"input": self.settings.input_price, "output": self.settings.output_price}
        return round(sum(tokens[kind] * price for kind, price in prices.items()) / 1e6, 6)
