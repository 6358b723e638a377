"""Bodies of the critic's requests and answers, as the OpenAPI description shows them."""

from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, create_model, model_validator

from nemo_moslim.serving.messages import Strict, number

RUN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
MOST_PARTS = 10_000
LARGEST = 3.0e38  # of fp32

# bounds stand before `number`: only then are they described
Count = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(number)]
Positive = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(number)]
Part = Annotated[int, Field(ge=1, le=MOST_PARTS), BeforeValidator(number)]
Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]


def numbers(values: Any) -> Any:
    """`number` of every value of a list."""
    if isinstance(values, list) and any(type(value) is not int for value in values):
        return [number(value) for value in values]
    return values


class OfRun(Strict):
    """A request to a critic that stands where the client says."""

    run: str = Field(strict=True, pattern=RUN, description="the training that the critic belongs to")
    number: Count = Field(description="updates that the critic has behind it")


class SaveRequest(OfRun):
    """POST /save_critic's body."""

    step: Positive = Field(description="of the policy, which is saved after it")


class LoadRequest(OfRun):
    """POST /load_critic's body."""

    step: Count = Field(description="of the policy's checkpoint; 0: the run begins")
    seed: Count = Field(description="of the value head, where the run begins")


class ValuesAnswer(BaseModel):
    """In the order of the request's rows."""

    values: list[list[float]] = Field(description="before each answer token is drawn")


class UpdateAnswer(BaseModel):
    """`sums` is null as long as parts are missing."""

    sums: dict[str, float] | None = Field(description="over the update's answer tokens, value_grad_norm excepted")
    number: int = Field(description="updates that the critic has behind it now")


class StandingAnswer(BaseModel):
    """Where the critic stands."""

    run: str | None = Field(description="null: no training's critic is loaded, as after a restart")
    number: int


def critic_requests(vocab_size: int, max_length: int, most_rows: int) -> SimpleNamespace:
    """The classes of the critic's requests for this model and these limits, by the function that answers them."""
    token = Annotated[int, Field(ge=0, lt=vocab_size)]
    read = Field(min_length=2, max_length=max_length)

    class ValuedRow(Strict):
        """An answer to its prompt."""

        tokens: Annotated[list[token], read, BeforeValidator(numbers)] = Field(description="of prompt and answer")
        prompt_length: Positive = Field(description="tokens before the answer")

        @model_validator(mode="after")
        def check(self):
            if self.prompt_length >= len(self.tokens):
                raise ValueError("prompt_length leaves no token to the answer")
            return self

    class LearntRow(ValuedRow):
        """The same with what the critic learns from it, per answer token."""

        old_values: list[Number]
        returns: list[Number]

        @model_validator(mode="after")
        def check_values(self):
            if not len(self.old_values) == len(self.returns) == len(self.tokens) - self.prompt_length:
                raise ValueError("old_values and returns need one number per answer token")
            return self

    def rows(kind: type, least: int):
        return Annotated[list[kind], Field(min_length=least, max_length=most_rows)], ...

    values = create_model("ValuesRequest", __base__=OfRun, rows=rows(ValuedRow, 1))
    update = create_model(
        "UpdateRequest",
        __base__=OfRun,
        step=(Positive, Field(description="of the policy, like epoch and update, for messages")),
        epoch=(Positive, ...),
        update=(Positive, ...),
        learning_rate=(Annotated[float, Field(strict=True, ge=0, le=LARGEST)], ...),
        value_clip=(Annotated[float, Field(strict=True, gt=0, le=LARGEST)] | None, ...),
        part=(Part, Field(1, description="which part of the update's rows this is")),
        parts=(Part, Field(1, description="it is applied when all have come")),
        rows=rows(LearntRow, 0),
    )
    return SimpleNamespace(values=values, update=update, save=SaveRequest, load=LoadRequest)
