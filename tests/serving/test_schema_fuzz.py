"""Requests made up from the OpenAPI description, right ones and wrong ones: every answer is one that it describes."""

import pytest
import schemathesis
from grids import grid
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)
from stub_service import TOKEN

BEARER = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection, positive_data_acceptance,
]  # fmt: skip

BODIES = {"/score", "/values", "/update_critic", "/save_critic", "/load_critic"}
UNDESCRIBED = (
    "chat template of the model refuses",
    "prompt_length leaves no token to the answer",
    "need one number per answer token",
)


@pytest.mark.parametrize("examples", grid((20, 100), 20))
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_described(critic_service, mode, examples):
    description = schemathesis.openapi.from_url(f"{critic_service.url}/openapi.json", headers=BEARER)
    operations = [result.ok() for result in description.get_all_operations()]
    if mode is GenerationMode.NEGATIVE:  # the others take nothing that could be wrong
        operations = [operation for operation in operations if operation.path in BODIES]
    seen = []
    for operation in operations:

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(operation.as_strategy(generation_mode=mode))
        def every_answer_is_described(case):
            answer = case.call(headers=BEARER)
            seen.append((case.path, answer.status_code))
            # which dialogues a chat template takes is the model's affair, and cannot be described
            # nor that a row's lists fit one another
            refused = answer.status_code == 422 and any(reason in answer.text for reason in UNDESCRIBED)
            left_out = {positive_data_acceptance} if refused else set()
            if answer.status_code == 413:  # too large, before anybody asks whether it is right
                left_out |= {positive_data_acceptance, negative_data_rejection}
            case.validate_response(answer, checks=[check for check in CHECKS if check not in left_out])

        every_answer_is_described()
    paths = BODIES if mode is GenerationMode.NEGATIVE else BODIES | {"/critic", "/model", "/health", "/metrics"}
    assert {path for path, _ in seen} == paths
    assert ("/score", 200 if mode is GenerationMode.POSITIVE else 422) in seen
