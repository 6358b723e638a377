"""Every family through the entry points: trained from nothing, exported, and alike in every layout."""

import pytest
from grids import exhaustive
from stock_models import OWN, stock_folder
from training_client import Trainings, metrics

from nemo_moslim.families import FAMILIES

SCALING = "model.rope_scaling={factor:8,low_freq_factor:1,high_freq_factor:4,original_length:16}"
KEYS = {
    "qwen2": [],
    "qwen2_moe": ["model.num_experts=4", "model.expert_hidden_size=24", "model.shared_expert_hidden_size=40"],
    "qwen3": ["model.head_size=16"],
    "llama3": [],
    "llama3_1": ["model.head_size=16", SCALING],
}


def test_every_family_trains_and_is_exported(trainings: Trainings, tokenizer_dir, sft_dir, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    assert set(KEYS) == set(FAMILIES)
    runs = []
    for family, keys in KEYS.items():
        run = f"run_dir={tmp_path}/{family}"
        start = [f"tokenizer={tokenizer_dir}", f"data={sft_dir}", run, *tiny_model, "trainer.max_steps=2"]
        runs.append(["train_sft", [*start, f"model.family={family}", *keys]])
        runs.append(["export_hf", [f"run={tmp_path}/{family}", f"output={tmp_path}/{family}/export"]])
    trainings.run("train_several", runs=runs)
    for family in KEYS:
        rows = metrics(tmp_path / family)
        assert [row["step"] for row in rows] == [1, 2]
        model = AutoModelForCausalLM.from_pretrained(tmp_path / family / "export")
        assert type(model).__name__ == f"{FAMILIES[family].transformers}ForCausalLM"
        assert FAMILIES[family].transformers in (tmp_path / family / "export" / "README.md").read_text()


TENSOR = ["parallel.tensor=2", "parallel.sequence=true"]


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        exhaustive(("qwen3", ["parallel.tensor=2"])),
        exhaustive(("qwen3", TENSOR)),  # the norms of queries and keys see each rank's heads alone
        ("qwen2_moe", TENSOR),
        exhaustive(("qwen2_moe", ["parallel.expert=2"])),
        exhaustive(("qwen2_moe", ["parallel.pipeline=2"])),
    ],
)
def test_layouts_train_like_one_rank(trainings, one_rank, rating_dir, tiny_model, tmp_path, family, layout):
    folder, expected = one_rank(family)
    trainings.train("train_rm", *arguments(folder, rating_dir, tmp_path, tiny_model), *layout, ranks=2)
    rows = metrics(tmp_path)
    for key in ("loss", "grad_norm"):
        assert rows[0][key] == pytest.approx(expected[0][key], rel=1e-4)
    assert rows[-1]["validation"] == pytest.approx(expected[-1]["validation"], rel=1e-3)


def arguments(folder, data, run, tiny_model) -> list[str]:
    """A reward model from a stock language model, four steps. Without the router's balancing loss, which is taken over
    what one rank has in a micro-batch, so that it differs between layouts."""
    short = ["trainer.max_steps=4", "trainer.validate_every=4", "trainer.checkpoint_every=4"]
    return [f"model.init={folder}", f"data={data}", f"run_dir={run}", *tiny_model, *short, "model.router_aux_loss=0"]


@pytest.fixture(scope="module")
def one_rank(trainings, tokenizer_dir, rating_dir, tiny_model, tmp_path_factory):
    """The stock folder of a family and the rows of its training on one rank, made once."""
    made = {}

    def run(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            stock = stock_folder(FAMILIES[family], "policy", OWN[family], tokenizer_dir, folder / "stock")
            trainings.train("train_rm", *arguments(stock, rating_dir, folder / "run", tiny_model))
            made[family] = stock, metrics(folder / "run")
        return made[family]

    return run
