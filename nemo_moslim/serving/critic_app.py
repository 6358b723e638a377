"""The critic's part of the HTTP interface; the service answers as `critic_keeper.CriticKeeper` says."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from nemo_moslim.serving.critic_messages import (
    StandingAnswer,
    UpdateAnswer,
    ValuesAnswer,
    critic_requests,
)
from nemo_moslim.serving.messages import CriticAnswer, Problem


def add_critic(app: FastAPI, service, bearer: list) -> None:
    """POST /values, /update_critic, /save_critic, /load_critic and GET /critic."""
    critic, limits = service.keeper.critic, service.config.limits
    body = critic_requests(critic.vocab_size, critic.max_length, limits.request_items)

    def answers(kind: type, *refusals: int) -> dict:
        described = {200: {"model": kind}} | {status: {"model": Problem} for status in refusals}
        return {"dependencies": bearer, "response_model": None, "responses": described}

    @app.post("/values", **answers(ValuesAnswer, 409))
    async def values(request: body.values):
        """The critic's values before each answer token is drawn."""
        return JSONResponse(await service.work_on_critic("values", request))

    @app.post("/update_critic", **answers(UpdateAnswer, 409))
    async def update(request: body.update):
        """One optimizer step on the returns of an answer's tokens; repeated, it is answered and not applied again."""
        return JSONResponse(await service.work_on_critic("update", request))

    @app.post("/save_critic", **answers(StandingAnswer, 409))
    async def save(request: body.save):
        """A checkpoint in critic_dir; of the run's others, the one before it stays. Repeated, it changes nothing."""
        return JSONResponse(await service.work_on_critic("save", request))

    @app.post("/load_critic", **answers(StandingAnswer, 404, 409))
    async def load(request: body.load):
        """The critic of a training, from its checkpoint or (step 0) from the reward model's backbone."""
        return JSONResponse(await service.work_on_critic("load", request))

    @app.get("/critic", dependencies=bearer)
    async def critic_stands() -> StandingAnswer:
        """Where the critic stands."""
        return service.keeper.where()


def describe_critic(service) -> CriticAnswer | None:
    """What GET /model tells of it; None where none is held."""
    if service.keeper is None:
        return None
    critic = service.keeper.critic
    return CriticAnswer(
        vocabulary=critic.vocabulary,
        vocab_size=critic.vocab_size,
        max_length=critic.max_length,
        request_seconds=service.config.limits.critic_seconds,
    )
