"""Through the entry points: Hugging Face folder -> training in a layout -> export -> stock transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from grids import grid
from training_client import Trainings, weights

from nemo_moslim.run_folder import resolve_checkpoint


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, tokenizer_dir):
    """A random Qwen2ForCausalLM folder, embeddings tied, vocabulary not a multiple of 128."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("hf_language_model")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, rope_theta=5000.0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():  # biases and norms start as constants: make every value tell
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LAYOUTS = [(1, ()), (2, ("parallel.tensor=2",)), (2, ("parallel.pipeline=2",))]


@pytest.mark.parametrize(("ranks", "layout"), grid(LAYOUTS, LAYOUTS[1]))
def test_language_model_there_and_back(
    trainings: Trainings, language_model, sft_dir, tiny_model, tmp_path, ranks, layout
):
    """One step at a learning rate of 1e-12 and export: the weights that went in, whatever the layout."""
    from transformers import AutoModelForCausalLM

    run, export = tmp_path / "run", tmp_path / "export"
    trainings.train(
        "train_sft", f"model.init={language_model}", f"data={sft_dir}", f"run_dir={run}", *tiny_model,
        "trainer.max_steps=1", "optimizer.lr=1e-12", "optimizer.min_lr=0", *layout, ranks=ranks,
    )  # fmt: skip
    trainings.train("export_hf", f"run={run}", f"output={export}")
    before = AutoModelForCausalLM.from_pretrained(language_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(export).state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-9, msg=name)


@pytest.fixture(scope="module")
def reward_run(trainings: Trainings, language_model, rating_dir, tiny_model, tmp_path_factory):
    """A reward model from the Hugging Face language model, ten steps on two tensor-parallel ranks."""
    run = tmp_path_factory.mktemp("reward") / "run"
    trainings.train(
        "train_rm", f"model.init={language_model}", f"data={rating_dir}", f"run_dir={run}", *tiny_model,
        "trainer.max_steps=10", "parallel.tensor=2", "statistics.std_floor=1e-9", ranks=2,
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def reward_export(trainings: Trainings, reward_run):
    """Its Hugging Face folder, in several files."""
    export = reward_run.parent / "export"
    trainings.train("export_hf", f"run={reward_run}", f"output={export}", "max_shard_gigabytes=1e-5")
    return export


def predictions(trainings: Trainings, run, data, output, *layout, ranks=1) -> np.ndarray:
    """Probabilities that evaluate.py keeps, [rows, classes]."""
    trainings.train(
        "evaluate", "task=reward", f"run={run}", f"data={data}", f"output={output}", "plots=false", *layout, ranks=ranks
    )
    stored = np.load(output.with_name(output.stem + "_predictions.npz"))
    assert stored["rows"].tolist() == list(range(len(stored["rows"])))
    return stored["probabilities"]


def test_run_folder_and_stock_transformers_agree(trainings: Trainings, reward_run, reward_export, rating_dir, tmp_path):
    """The same probabilities (1e-5, fp32) from the run, from its export, under pipeline parallelism, and by hand."""
    data = rating_dir / "validation.jsonl"
    from_run = predictions(trainings, reward_run, data, tmp_path / "run.json")
    from_export = predictions(trainings, reward_export, data, tmp_path / "export.json")
    pipelined = predictions(trainings, reward_run, data, tmp_path / "pp.json", "parallel.pipeline=2", ranks=2)
    split = predictions(trainings, reward_run, data, tmp_path / "dp.json", ranks=2)
    for other in (from_export, pipelined, split):
        np.testing.assert_allclose(other, from_run, atol=1e-5)
    np.testing.assert_allclose(stock_probabilities(reward_export, data), from_run, atol=1e-5)
    report = json.loads((tmp_path / "run.json").read_text())
    assert set(report) >= {"helpfulness", "honesty", "harmless", "preference_accuracy", "intensity_accuracy"}


def stock_probabilities(folder, data, classes=(5, 5, 2)) -> np.ndarray:
    """What a reader of the exported README would compute with plain transformers, in one padded batch.

    `classes`: how many logits each softmax takes.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert type(model).__name__ == "Qwen2ForSequenceClassification"
    assert model.config.id2label[0] == "<helpfulness 1>"
    texts = []
    for row in map(json.loads, data.read_text().splitlines()):
        chat = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        texts.append(text + row["response"] + tokenizer.eos_token)
    inputs = tokenizer(texts, return_tensors="pt", add_special_tokens=False, padding=True, padding_side="right")
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return torch.cat([head.softmax(-1) for head in logits.split(list(classes), dim=-1)], dim=-1).numpy()


def test_a_reward_model_begins_with_the_heads_of_another(
    trainings: Trainings, reward_run, reward_export, rating_dir, tiny_model, tmp_path
):
    """From a run and from its export where preferences and loss are the same; anew, and said, where they are not."""
    step = [f"data={rating_dir}", *tiny_model, "trainer.max_steps=1", "optimizer.lr=1e-12", "optimizer.min_lr=0"]
    starts = {"run": [f"model.init={reward_run}"], "export": [f"model.init={reward_export}"]}
    starts["joint"] = [*starts["run"], "loss=joint"]
    runs = [["train_rm", [*step, *start, f"run_dir={tmp_path}/{name}"]] for name, start in starts.items()]
    job = trainings.run("train_several", runs=runs)
    assert job.output().count("heads begin anew: model.init has loss=per_head") == 1

    def head(run, part="weight"):
        return weights(resolve_checkpoint(str(run)))[f"module.output_layer.{part}"]

    for name in ("run", "export"):
        torch.testing.assert_close(head(tmp_path / name), head(reward_run), rtol=0, atol=1e-9)
        assert head(tmp_path / name, "statistics_weight").max() < 0.011  # of one step, at a decay of .99
    assert not torch.allclose(head(tmp_path / "joint"), head(reward_run), atol=1e-3)


def test_heads_in_config_follow_the_logits(reward_export):
    """Order matters and config.json is written with sorted keys."""
    settings = json.loads((reward_export / "config.json").read_text())["moslim"]
    assert [d["name"] for d in settings["preferences"]] == ["helpfulness", "honesty", "harmless"]
    assert len(settings["average"]) == len(settings["standard_deviation"]) == 12
    assert all(value > 0 for value in settings["standard_deviation"])
    assert len(list(reward_export.glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("lost", ["head", "statistic"])
def test_a_missing_head_or_statistic_fails_the_load(trainings: Trainings, reward_export, rating_dir, tmp_path, lost):
    broken = tmp_path / "broken"
    shutil.copytree(reward_export, broken)
    if lost == "head":
        index = json.loads((broken / "model.safetensors.index.json").read_text())
        del index["weight_map"]["score.weight"]
        (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        config = json.loads((broken / "config.json").read_text())
        del config["moslim"]["statistics"]["mean"]
        (broken / "config.json").write_text(json.dumps(config))
    data, output = rating_dir / "validation.jsonl", tmp_path / "out.json"
    job = trainings.start(
        "train", entry="evaluate", arguments=["task=reward", f"run={broken}", f"data={data}", f"output={output}"]
    )
    assert trainings.wait(job) != [0]
    assert ("score.weight is missing" if lost == "head" else "lacks ['mean']") in job.output()
    assert not output.exists()


def test_joint_loss_with_heads_of_one_class_there_and_back(
    trainings: Trainings, language_model, rating_dir, tiny_model, tmp_path
):
    """DataType 1 has 1, 1 and 2 classes: one softmax over all four, in the run, its export and stock transformers."""
    data, run, export = tmp_path / "data", tmp_path / "run", tmp_path / "export"
    data.mkdir()
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (rating_dir / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            row["labels"] = {name: level if name == "harmless" else 1 for name, level in row["labels"].items()}
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainings.train(
        "train_rm", f"model.init={language_model}", f"data={data}", f"run_dir={run}", *tiny_model, "loss=joint",
        "preferences=datatype1", "trainer.max_steps=3", ranks=2,
    )  # fmt: skip
    trainings.train("export_hf", f"run={run}", f"output={export}")
    rows = data / "validation.jsonl"
    from_run = predictions(trainings, run, rows, tmp_path / "run.json", "parallel.tensor=2", ranks=2)
    from_export = predictions(trainings, export, rows, tmp_path / "export.json")
    assert from_run.shape == (37, 4)
    np.testing.assert_allclose(from_run.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(from_export, from_run, atol=1e-5)
    np.testing.assert_allclose(stock_probabilities(export, rows, classes=[4]), from_run, atol=1e-5)
