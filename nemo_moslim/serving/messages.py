"""Bodies of requests and answers, as the OpenAPI description shows them."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictStr,
    Tag,
    WithJsonSchema,
    create_model,
)

from nemo_moslim.policy_config import NORMALIZE
from nemo_moslim.preferences import PreferenceSchema

MOST_MESSAGES = 1_000  # of a dialogue


def unicode_text(value: str) -> str:
    """ValueError for what JSON can escape and UTF-8 cannot hold, a lone surrogate: tokenizers fail at it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("Input should be valid Unicode, without lone surrogates") from None
    return value


Text = Annotated[StrictStr, AfterValidator(unicode_text)]


class Strict(BaseModel):
    """No unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Message(Strict):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    content: Text


Dialogue = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]


class ScoredItem(BaseModel):
    """What the reward model makes of an answer."""

    probabilities: dict[str, list[float]] = Field(description="dimension: probability of each level, lowest first")
    reward: float | None = Field(description="Eq. 11; null where the item has no preferences")
    parts: dict[str, float] | None = Field(description="what each dimension adds to the reward")
    cut: bool = Field(description="prompt and answer were over the model's length and lost text")


class ScoreAnswer(BaseModel):
    """In the order of the request's items."""

    items: list[ScoredItem]
    model: str = Field(description="the `id` of GET /model")


class CriticAnswer(BaseModel):
    """What a client needs to know of the critic."""

    vocabulary: str = Field(description="digest of the tokens and their numbers")
    vocab_size: int
    max_length: int = Field(description="tokens of prompt and answer together")
    request_seconds: float = Field(description="longest time to work on a request")


class ModelAnswer(BaseModel):
    """What is served."""

    id: str = Field(description="digest of dimensions, loss and statistics")
    preferences: dict[str, dict[str, Any]] = Field(description="dimension: levels, score_range, levels_from; in order")
    loss: str
    average: dict[str, list[float]] = Field(description="avg of Eq. 11 per level")
    deviation: dict[str, list[float]] = Field(description="std of Eq. 11 per level")
    max_length: int = Field(description="tokens of prompt and answer together")
    request_items: int = Field(description="most items of a request")
    request_bytes: int = Field(description="most bytes of a request's body")
    request_seconds: float = Field(description="longest time to receive a request, and again to score it")
    critic: CriticAnswer | None = Field(description="PPO's critic; null where none is held")


class HealthAnswer(BaseModel):
    """`status` is ok, or stopping once the service has been told to end."""

    status: Literal["ok", "stopping"]
    queued: int


class Problem(BaseModel):
    """Every error's body."""

    detail: str


def number(value: Any) -> Any:
    """ValueError for what JSON does not count as a number; 1.0 is an integer there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("Input should be a valid integer")
    return value


def score_request(schema: PreferenceSchema, normalize: str, most_items: int) -> type[BaseModel]:
    """The class of POST /score's body, for these dimensions and limits."""
    levels = {d.name: {"type": "integer", "minimum": 1, "maximum": d.levels} for d in schema.dimensions}
    preferences = Annotated[
        dict[str, Annotated[int, BeforeValidator(number)]],
        AfterValidator(schema.validate),
        WithJsonSchema({"type": "object", "properties": levels, "additionalProperties": False}),
    ]
    prompt = Annotated[
        Annotated[Text, Tag("text")] | Annotated[Dialogue, Tag("messages")],
        Discriminator(lambda value: "messages" if isinstance(value, list) else "text"),
        Field(description="text without preference tags, or the messages of a dialogue"),
    ]
    item = create_model(
        "ScoreItem",
        __base__=Strict,
        prompt=(prompt, ...),
        response=(Text, ...),
        preferences=(preferences | None, Field(None, description="1-based levels; {} has the reward 0")),
    )
    return create_model(
        "ScoreRequest",
        __base__=Strict,
        items=(Annotated[list[item], Field(min_length=1, max_length=most_items)], ...),
        normalize=(
            Literal[NORMALIZE],
            Field(normalize, description="k of Eq. 11: all dimensions (total), or those of the item (active)"),
        ),
    )
