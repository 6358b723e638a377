"""Whatever mixture of settings is refused, the message names settings that lead to one that runs."""

import re
from dataclasses import replace
from functools import cache, partial
from unittest.mock import patch

import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_layout_checks import DENSE, MIXTURE
from test_platform import CPU, HOPPER
from test_start_checks import QWEN2_72B, policy, supervised

from nemo_moslim import policy_config
from nemo_moslim.parallel.layout_checks import check_model
from nemo_moslim.parallel.platform import Platform
from nemo_moslim.parallel.start_checks import check_policy, check_supervised

ADA, AMPERE = Platform((8, 9), (12, 9), True), Platform((8, 0), (12, 9), True)
OLD_CUDA, WITHOUT_TE = Platform((9, 0), (12, 6), True), Platform((9, 0), (12, 9), False)
SMALL = dict(
    num_layers=6, hidden_size=144, ffn_hidden_size=360, num_attention_heads=6, num_query_groups=6, kv_channels=24,
    vocab_size=1536, num_moe_experts=None,
)  # fmt: skip
SMALL_MIXTURE = SMALL | dict(num_moe_experts=6, moe_ffn_hidden_size=96, moe_shared_expert_intermediate_size=None)
STEPS = 40

LAYOUTS = {
    "ranks": st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 40, 64, 512]),
    "parallel.tensor": st.sampled_from([1, 2, 3, 4, 7, 8]),
    "parallel.pipeline": st.sampled_from([1, 2, 3, 4, 7, 8, 56]),
    "parallel.virtual_pipeline": st.sampled_from([None, 1, 2, 3, 5, 7]),
    "parallel.context": st.sampled_from([1, 1, 2, 3]),
    "parallel.expert": st.sampled_from([1, 2, 3, 8, 12, 64, 65]),
    "parallel.sequence": st.booleans(),
    "parallel.tensor_overlap": st.booleans(),
    "parallel.moe_dispatcher": st.sampled_from(["alltoall", "allgather"]),
}
PLATFORMS = st.sampled_from([HOPPER, HOPPER, ADA, AMPERE, OLD_CUDA, WITHOUT_TE, CPU])
ALGORITHMS = st.sampled_from([
    ("algorithm=ppo",), ("algorithm=rloo",), ("algorithm=online_dpo", "batch.micro_size=6", "algorithm.samples=3",
                                              "algorithm.pairs=all"),
])  # fmt: skip
ARCHITECTURES = st.sampled_from([DENSE, MIXTURE, QWEN2_72B, SMALL, SMALL_MIXTURE])
SUPERVISED = LAYOUTS | {
    "precision": st.sampled_from(["fp32", "bf16", "fp8"]),
    "fp8_recipe": st.sampled_from(["delayed", "tensorwise", "blockwise"]),
    "statistics.mode": st.sampled_from(["ema", "exact"]),
    "average_checkpoints": st.sampled_from([None, 2]),
    "model.max_length": st.sampled_from([8, 100, 256, 1000, 4096]),
    "batch.global_size": st.integers(1, 200),
    "batch.micro_size": st.integers(1, 9),
    "batch.group_size": st.one_of(st.none(), st.integers(1, 20)),
    "batch.packing": st.booleans(),
    "batch.fixed_length": st.booleans(),
}
POLICY = LAYOUTS | {
    "batch.prompts": st.integers(1, 100),
    "batch.mini_size": st.one_of(st.none(), st.integers(1, 100)),
    "batch.micro_size": st.integers(1, 12),
    "algorithm.kl_horizon": st.sampled_from([1, 10000]),
}


def remedies(message: str) -> list[dict[str, object]]:
    """The alternatives that a refusal offers, each as settings by key.

    After the last ": use", ": start" or ": expected"; alternatives stand between ", or", values between "or".
    """
    verb, offered = re.fullmatch(r".*: (use|start|expected) (.*)", message).groups()
    found = []
    for part in offered.split(", or "):
        pairs = [(key, values.split(" or ")) for key, values in re.findall(r"([a-z][\w.]*)=(\w+(?: or \w+)*)", part)]
        if pairs and " and " in part:
            found.append({key: values[0] for key, values in pairs})
        else:
            found += [{key: value} for key, values in pairs for value in values]
    if verb == "start":
        found += [{"ranks": number} for number in re.findall(r"\d+", offered.partition(" ranks")[0])]
    elif verb == "expected" and not found:
        found.append({message.partition("=")[0]: re.match(r"\w+", offered)[0]})
    return [{key: yaml.safe_load(value) for key, value in settings.items()} for settings in found]


@cache
def base(*algorithm):
    """A configuration that every example changes: composing it takes longer than all of them."""
    return policy(*algorithm, "algorithm.kl_target=6") if algorithm else supervised()


def changed(config, settings):
    """The configuration with other values, checked anew by its classes."""
    groups, own = {}, {}
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        (groups.setdefault(group, {}) if group else own)[name] = value
    return replace(config, **own, **{group: replace(getattr(config, group), **v) for group, v in groups.items()})


def run_supervised(architecture, platform, ranks, settings):
    check_supervised(changed(base(), settings), architecture, ranks, platform)


def run_policy(architecture, algorithm, ranks, settings):
    """`check_policy`, and what `rollout.open_model` asks of a model."""
    config = base(*algorithm)
    with patch.object(policy_config, "chosen", lambda group, settings, classes: settings):  # they are no dicts any more
        config = changed(config, settings)
    check_policy(config, ranks)
    mixture = architecture["num_moe_experts"]
    check_model(config.parallel if mixture else replace(config.parallel, expert=1), architecture)


def follow(run, settings, data):
    """Take one of the offered alternatives after the other until nothing is refused."""
    told = []
    for _ in range(STEPS):
        try:
            run(settings["ranks"], {key: value for key, value in settings.items() if key != "ranks"})
            return
        except ValueError as error:
            told.append(str(error))
        possible = [offer for offer in remedies(told[-1]) if offer.keys() <= settings.keys()]
        assert possible, told
        settings |= data.draw(st.sampled_from(possible))
    raise AssertionError(told)


@hypothesis_settings(max_examples=80, deadline=None)
@given(st.fixed_dictionaries(SUPERVISED), ARCHITECTURES, PLATFORMS, st.data())
def test_remedies_lead_to_a_training_that_runs(settings, architecture, platform, data):
    follow(partial(run_supervised, architecture, platform), settings, data)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries(POLICY), ARCHITECTURES, ALGORITHMS, st.data())
def test_remedies_lead_to_a_policy_training_that_runs(settings, architecture, algorithm, data):
    follow(partial(run_policy, architecture, algorithm), settings, data)
