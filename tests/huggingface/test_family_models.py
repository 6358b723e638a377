"""Every family against stock transformers: logits, there and back, in several layouts; fp32, small random weights."""

import json

import pytest
import torch
from grids import exhaustive, grid
from model_probes import prompts, tokens
from stock_models import EXPERTS, OWN, STATISTICS, stock_folder
from training_client import Trainings

from nemo_moslim.families import FAMILIES, Family
from nemo_moslim.huggingface.safetensors_folder import SafetensorsFolder

NEW_ROW = dict(
    nemo_config="nemo.collections.llm.gpt.model.qwen3.Qwen3MoEConfig", model_type="qwen3_moe", transformers="Qwen3Moe",
    experts=True, head_size=True,
)  # fmt: skip


def stock_logits(folder, role: str) -> torch.Tensor:
    """Of stock transformers, fp32: [B, S, V] of a language model, [B, C] at the last token of a reward model."""
    import transformers

    auto = "AutoModelForCausalLM" if role == "policy" else "AutoModelForSequenceClassification"
    with torch.no_grad():
        return getattr(transformers, auto).from_pretrained(folder).eval()(tokens()).logits


def stock_answers(folder) -> list[list[int]]:
    """Six most likely tokens after each prompt, by stock transformers without a cache."""
    import transformers

    model, answers = transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), []
    for prompt in prompts():
        row = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(6):
                row = torch.cat([row, model(row).logits[:, -1:].argmax(-1)], dim=1)
        answers.append(row[0, len(prompt) :].tolist())
    return answers


def jobs(family: str, policy, reward) -> list[dict]:
    """What one launch on two ranks does with a family."""
    layouts = ["DP=2", "TP=2", "TP=2 with sequence parallelism", "PP=2"]
    if FAMILIES[family].experts:  # experts and tensor parallelism go together with sequence parallelism only
        layouts = ["DP=2", "TP=2 with sequence parallelism", "PP=2", "EP=2"]
    made = [
        dict(name=f"{role} {layout}", role=role, source=str(source), layout=layout)
        for role, source in (("policy", policy), ("reward", reward))
        for layout in layouts
    ]
    again = [dict(role=role, name=f"{role} again", source=f"{role} {layouts[-1]}", layout=layouts[1])
             for role in ("policy", "reward")]  # fmt: skip
    return made + again


def assert_same_logits(output, name: str, role: str, folder) -> None:
    """Our model's logits are those of stock transformers, to 1e-4."""
    expected, got = stock_logits(folder, role), torch.load(output / f"{name}.pt")
    got = got[:, :, : expected.shape[-1]] if role == "policy" else got[:, -1]
    assert expected.abs().max() > 1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4, msg=lambda text: f"{name}: {text}")


def assert_same_folder(output, name: str, role: str, folder) -> None:
    """Exported tensors are the original ones to the bit, and config.json describes the same model."""
    export = output / name / "export"
    original, exported = SafetensorsFolder(folder), SafetensorsFolder(export)
    assert original.names() == exported.names()
    for tensor in original.names():
        assert torch.equal(original[tensor], exported[tensor]), (name, tensor)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, export))
    for own in ("id2label", "label2id", "moslim"):
        before.pop(own, None), after.pop(own, None)
    assert before == after
    assert len(list(export.glob("model-*.safetensors"))) > 1
    assert torch.equal(stock_logits(export, role), stock_logits(folder, role))


# a mixture: test_a_mixture_on_four_ranks_equals_transformers; Qwen3's norms: test_a_row_makes_a_family
@pytest.fixture(scope="module", params=grid(OWN, "qwen2", "llama3_1"))
def opened(request, trainings: Trainings, tokenizer_dir, tmp_path_factory):
    """A family's stock folders, and the folder of what was made of them."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    stock = {
        role: stock_folder(FAMILIES[name], role, OWN[name], tokenizer_dir, folder / role)
        for role in ("policy", "reward")
    }
    output = folder / "made"
    output.mkdir()
    trainings.run("open_in_layouts", ranks=2, jobs=jobs(name, **stock), output=str(output))
    return name, stock, output


@pytest.mark.parametrize("role", ["policy", "reward"])
def test_a_family_equals_transformers_in_every_layout(opened, role):
    name, stock, output = opened
    done = [job["name"] for job in jobs(name, **stock) if job["role"] == role]
    assert len(done) == 5
    for job in done:
        assert_same_logits(output, job, role, stock[role])
        assert_same_folder(output, job, role, stock[role])


def test_a_familys_answers_are_those_of_transformers(opened):
    """By the KV cache, prompts padded on the left, in every layout."""
    name, stock, output = opened
    expected, layouts = stock_answers(stock["policy"]), list(output.glob("policy *.json"))
    assert len(layouts) == 5
    for file in layouts:
        assert json.loads(file.read_text()) == expected, file.stem


def test_the_family_and_the_statistics_travel(opened):
    name, stock, output = opened
    for file in output.glob("* again/run/checkpoints/step=000001/context/io.json"):
        assert '"family"' in file.read_text() and f'"{name}"' in file.read_text()
    moslim = json.loads((output / "reward again" / "export" / "config.json").read_text())["moslim"]
    assert moslim["statistics"] == STATISTICS
    assert [d["name"] for d in moslim["preferences"]] == ["helpfulness", "harmless"]


def test_a_mixture_on_four_ranks_equals_transformers(trainings: Trainings, tokenizer_dir, tmp_path):
    """Eight experts, four of them chosen per token, and a shared one, split in two ways at once."""
    own = OWN["qwen2_moe"] | dict(num_experts=8, num_experts_per_tok=4)
    stock = {
        role: stock_folder(FAMILIES["qwen2_moe"], role, own, tokenizer_dir, tmp_path / role)
        for role in ("policy", "reward")
    }
    pairs = [("policy", "TP=2 x EP=2"), ("reward", "TP=2 x EP=2"), ("policy", "TP=2 x PP=2"), ("policy", "PP=2 x EP=2")]
    pairs.append(("policy", "TP=2 x EP=2, whole experts"))
    four = [dict(name=f"{role} {layout}", role=role, source=str(stock[role]), layout=layout) for role, layout in pairs]
    trainings.run("open_in_layouts", ranks=4, jobs=four, output=str(tmp_path))
    answers = stock_answers(stock["policy"])
    for role, layout in pairs:
        name = f"{role} {layout}"
        assert_same_logits(tmp_path, name, role, stock[role])
        assert_same_folder(tmp_path, name, role, stock[role])
        if role == "policy":
            assert json.loads((tmp_path / f"{name}.json").read_text()) == answers, name


def test_a_row_makes_a_family(trainings: Trainings, tokenizer_dir, tmp_path):
    """Qwen3's mixture of experts, whose router normalises the chosen experts' weights: nothing but a row is added."""
    own = dict(**EXPERTS, head_dim=16, norm_topk_prob=True)
    folder = stock_folder(Family(**NEW_ROW), "policy", own, tokenizer_dir, tmp_path / "stock")
    job = dict(name="new", role="policy", source=str(folder), layout="EP=2")
    trainings.run("open_in_layouts", ranks=2, jobs=[job], output=str(tmp_path), rows={"qwen3_moe": NEW_ROW})
    assert_same_logits(tmp_path, "new", "policy", folder)
    assert json.loads((tmp_path / "new.json").read_text()) == stock_answers(folder)
    assert_same_folder(tmp_path, "new", "policy", folder)


WIDE = dict(hidden_size=512, num_attention_heads=8)


@pytest.mark.parametrize(
    ("family", "own"),
    [
        exhaustive(("qwen2", WIDE | dict(intermediate_size=2048, num_hidden_layers=12))),
        ("qwen2_moe", OWN["qwen2_moe"] | WIDE | dict(num_hidden_layers=4, num_experts=32, moe_intermediate_size=256)),
    ],
)
def test_memory_of_import_and_export_is_that_of_files(family, own, trainings: Trainings, tokenizer_dir, tmp_path):
    """A model of a dozen files: beside the model itself fewer than two of them are ever in memory, and in an export the
    tensor that comes next, of up to half a file."""
    folder = stock_folder(FAMILIES[family], "policy", own, tokenizer_dir, tmp_path / "stock", "16MB")
    files = [file.stat().st_size for file in folder.glob("model-*.safetensors")]
    found = trainings.run("peak_memory", source=str(folder), output=str(tmp_path)).results()[0]
    assert len(files) > 10 and found["weights"] > 8 * max(files)
    assert found["import"] < 2 * max(files), found
    assert found["export"] < 2.5 * max(files), found
    original, exported = SafetensorsFolder(folder), SafetensorsFolder(tmp_path / "export")
    assert all(torch.equal(original[name], exported[name]) for name in original.names())
