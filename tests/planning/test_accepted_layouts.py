import pytest

from nemo_moslim.cli import compose_config
from nemo_moslim.config import parse
from nemo_moslim.planning.layouts import accepted_layouts, check_trainable
from nemo_moslim.planning.settings import PlanConfig
from nemo_moslim.planning.shape import Layout


def settings(*arguments: str) -> PlanConfig:
    return parse(compose_config("plan", arguments, path_keys=("output",)), PlanConfig)


@pytest.mark.parametrize("task", ["rm", "ppo", "rloo", "online_dpo"])
def test_accepted_layouts_are_those_the_trainings_accept(task):
    config = settings(f"task={task}", "model=qwen2_57b_a14b", "gpus=32")
    accepted, refused = accepted_layouts(config)
    assert accepted and refused
    for layout in accepted:
        check_trainable(config, layout)
        assert layout.tensor * layout.pipeline * layout.data == 32
        assert layout.data % layout.expert == 0 and 28 % layout.pipeline == 0
        assert 4 % layout.tensor == 0  # query groups
        assert task != "online_dpo" or layout.micro_size % config.online_dpo.unit == 0
    search = config.search
    tried = len(search.tensor) * len(search.pipeline) * len(search.expert) * len(search.micro_size)
    assert len(accepted) / len(search.recompute) + sum(refused.values()) == tried


def test_a_layout_must_divide_the_reward_model_too():
    config = settings("task=rloo", "gpus=16", "model@reward_model=qwen2_7b")
    assert {layout.tensor for layout in accepted_layouts(config)[0]} == {1, 2, 4}  # four query groups, not eight


@pytest.mark.parametrize(("policy", "reward"), [("qwen2_57b_a14b", "qwen2_7b"), ("qwen2_7b", "qwen2_57b_a14b")])
def test_a_dense_model_beside_a_mixture_of_experts_takes_no_part_in_expert_parallelism(policy, reward):
    config = settings("task=rloo", "gpus=32", f"model={policy}", f"model@reward_model={reward}")
    assert max(layout.expert for layout in accepted_layouts(config)[0]) > 1
    dense = settings("task=rloo", "gpus=32", "model=qwen2_7b", "model@reward_model=qwen2_7b")
    assert {layout.expert for layout in accepted_layouts(dense)[0]} == {1}


def test_sequence_parallelism_goes_with_tensor_parallelism():
    one, four = (Layout(tensor, 2, 1, 1, 1, "none").parallel() for tensor in (1, 4))
    assert (one.sequence, four.sequence) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=dpo"], "task='dpo': expected one of rm, ppo"),
        (["gpus=0"], "gpus=0: expected a number above 0"),
        (["search.tensor=[]"], "search.tensor=\\[\\]: expected at least one value"),
        (["search.micro_size=[0]"], "search.micro_size=\\[0\\]"),
        (["search.recompute=[some]"], "search.recompute='some': expected one of none, selective, full"),
        (["gpu.memory_gigabytes=-1"], "gpu.memory_gigabytes=-1"),
        (["assumed.compute=1.5"], "assumed.compute=1.5: expected a share"),
        (["assumed.reserved_gigabytes=90"], "expected at most gpu.memory_gigabytes = 80"),
        (["model=tiny"], "model.vocab_size=None"),
        (["model.init=x"], "model.init='x': expected null"),
        (["model@reward_model=qwen2_7b"], "reward_model='set': expected null with task=rm"),
        (["data.tokens_per_row=5000"], "data.tokens_per_row=5000: expected at most model.max_length = 4096"),
        (["task=rloo", "max_new_tokens=4096"], "max_new_tokens=4096: expected at most model.max_length - 1 = 4095"),
        (["task=rloo", "data.prompt_tokens=4000"], "data.prompt_tokens=4000: expected at most .* 3072"),
        (["task=rloo", "data.answer_tokens=2000"], "data.answer_tokens=2000: expected at most max_new_tokens = 1024"),
        (["task=rloo", "batch.mini_size=100"], "batch.mini_size=100: expected a divisor of 256"),
        (["task=online_dpo", "batch.mini_size=256"], "batch.mini_size=256: expected a divisor of 128"),
    ],
)
def test_values_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        settings(*arguments)
