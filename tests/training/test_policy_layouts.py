"""The same prompts, seeds and initial models give the same answers, rewards and updates in every layout."""

import json

import pytest
from grids import grid
from training_client import metrics, weights

LAYOUTS = {
    "TP=2": (2, ["parallel.tensor=2"]),
    "PP=2": (2, ["parallel.pipeline=2"]),
    "DP=2": (2, []),
    "DP=2, gradient reduction overlapped": (2, ["optimizer.overlap=true"]),
    "TP=2 with sequence parallelism": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "recomputed activations, offloaded reward model": (1, ["recompute=full", "offload=true"]),
}
ALGORITHMS = {
    "rloo": ["algorithm=rloo", "algorithm.samples=2", "algorithm.kl_coef=0.1"],
    "ppo": [
        "algorithm=ppo",
        "algorithm.samples=2",
        "algorithm.epochs=2",
        "batch.mini_size=8",
        "algorithm.kl_target=1.0",
    ],
    "online_dpo": ["algorithm=online_dpo", "algorithm.samples=4", "algorithm.pairs=all", "algorithm.reward_scale=3"],
}
ALGORITHMS["ppo with the reward model's heads"] = [*ALGORITHMS["ppo"], "algorithm.critic=levels"]
CASES = [
    *(("rloo", layout) for layout in LAYOUTS),
    ("ppo", "PP=2"), ("ppo with the reward model's heads", "TP=2 with sequence parallelism"),
    ("ppo with the reward model's heads", "PP=2"), ("online_dpo", "DP=2"),
]  # fmt: skip
REPRESENTATIVES = [
    ("rloo", "TP=2 with sequence parallelism"), ("rloo", "recomputed activations, offloaded reward model"),
    ("ppo with the reward model's heads", "PP=2"), ("online_dpo", "DP=2"),
]  # fmt: skip
PER_LEVEL = ("hit_rate", "reward", "length")
CLOSE = ("reward", "loss", "kl", "entropy", "grad_norm", "value_loss", "explained_variance", "margin", "approx_kl")


@pytest.fixture(scope="module")
def one_rank(trainings, policy_arguments, tmp_path_factory):
    """Run directory per algorithm on one rank, made once."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            arguments = [*policy_arguments, *ALGORITHMS[name], f"run_dir={made[name]}"]
            trainings.train("train_policy", *arguments)
        return made[name]

    return run


def answers(run_dir, step):
    rows = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    return [(row["prompt"], row["response"], row["levels"]) for row in rows if row["step"] == step]


@pytest.mark.parametrize(("algorithm", "layout"), grid(CASES, *REPRESENTATIVES))
def test_every_layout_trains_like_one_rank(algorithm, layout, one_rank, trainings, policy_arguments, tmp_path):
    ranks, split = LAYOUTS[layout]
    arguments = [*policy_arguments, *ALGORITHMS[algorithm], *split, f"run_dir={tmp_path}", "trainer.max_steps=2"]
    trainings.train("train_policy", *arguments, ranks=ranks)
    rows, expected = metrics(tmp_path), metrics(one_rank(algorithm))
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert len(answers(tmp_path, 1)) == 8 and answers(tmp_path, 1) == answers(one_rank(algorithm), 1)
    for key in CLOSE:
        if key in expected[1]:
            assert rows[1][key] == pytest.approx(expected[1][key], rel=1e-4, abs=1e-6), key
    assert rows[0]["validation"] == pytest.approx(expected[0]["validation"], rel=1e-4)
    assert rows[2]["reward"] == pytest.approx(expected[2]["reward"], rel=1e-3, abs=1e-3)  # after the first update


@pytest.mark.parametrize("algorithm", grid(["rloo", "ppo"], "rloo"))
def test_log_probabilities_as_sampled_are_the_trainers_but_for_rounding(
    algorithm, one_rank, trainings, policy_arguments, tmp_path
):
    sampled = [*ALGORITHMS[algorithm], "old_logprobs=generator", "trainer.max_steps=2"]
    trainings.train("train_policy", *policy_arguments, *sampled, f"run_dir={tmp_path}")
    rows, expected = metrics(tmp_path), metrics(one_rank(algorithm))
    assert answers(tmp_path, 1) == answers(one_rank(algorithm), 1)
    for key in CLOSE:
        if key in expected[1]:
            assert rows[1][key] == pytest.approx(expected[1][key], rel=1e-3, abs=1e-4), key
    assert 0 < rows[1]["first_ratio_deviation"] < 1e-4
    assert 0 < rows[1]["mismatch"] <= rows[1]["mismatch_max"] < 1e-4


@pytest.mark.parametrize("algorithm", grid(ALGORITHMS, "rloo", "online_dpo", "ppo with the reward model's heads"))
def test_one_rank(algorithm, one_rank):
    rows = metrics(one_rank(algorithm))[1:]
    assert [row["first_ratio_deviation"] for row in rows] == [0.0] * 4  # old and new policy are the same to the bit
    assert all(row["mismatch_max"] < 1e-5 for row in rows)
    assert rows[0]["kl"] == 0.0 and rows[3]["kl"] != 0.0  # the reference is the initial policy
    assert all(row["entropy"] > 1.0 and row["grad_norm"] > 0 for row in rows)
    assert len({row["grad_norm"] for row in rows}) == 4
    for name in ("helpfulness", "harmless"):
        of_levels = [{key for row in rows for key in row if key.startswith(f"{kind}/{name}=")} for kind in PER_LEVEL]
        assert all(of_levels) and f"reward/{name}" in rows[0]
    if "ppo" in algorithm:
        assert rows[0]["ratio_deviation_max"] > 0  # later updates of the step have moved on
        assert rows[1]["kl_coef"] != rows[0]["kl_coef"] == 0.05
    if algorithm == "online_dpo":
        assert all(0 <= row["tied_pairs"] < 1 for row in rows) and rows[3]["margin"] != 0
    summary = json.loads((one_rank(algorithm) / "summary.json").read_text())
    assert summary["finished"] and summary["answers_per_second"] > 0
    phases = {"step", "generation", "scoring", "logprobs", "reference", "update", "checkpoint", "validation"}
    assert phases <= summary["seconds"].keys()


def test_generation_equals_a_full_forward_for_every_token(trainings, sft_run, encoder):
    """Padding, the repeated cache and rows that leave the batch change nothing."""
    texts = ["red apple", "name some nice fruits and tell me about them", "a", "blue blue pear", "good bad happy"]
    prompts = encoder.encode_prompts([text + more for text in texts for more in ("", " is", " are the fruits")])
    job = trainings.run(
        "generation_against_full_forward", run_dir=str(sft_run), prompts=prompts, temperature=1.0, batches=[2, 4, 64]
    )
    (found,) = job.results()
    naive = found.pop("naive")
    lengths = {len(tokens) for tokens, _, _ in naive}
    assert len(lengths) > 2 and {finished for _, _, finished in naive} == {True, False}
    for rows in found.values():
        assert [(tokens, finished) for tokens, _, finished in rows] == [(t, f) for t, _, f in naive]
        for (_, logprobs, _), (_, expected, _) in zip(rows, naive, strict=True):
            assert logprobs == pytest.approx(expected, abs=2e-5)


MIXTURE_LAYOUTS = {"DP=2": [], "EP=2": ["parallel.expert=2"], "TP=2": LAYOUTS["TP=2 with sequence parallelism"][1]}
MIXTURE_LAYOUTS["TP=2, whole experts"] = [*MIXTURE_LAYOUTS["TP=2"], "parallel.expert=2", "parallel.expert_tensor=1"]


@pytest.fixture(scope="module")
def mixture(trainings, sft_dir, tokenizer_dir, tiny_model, policy_arguments, tmp_path_factory):
    """Arguments of a step from a mixture of experts, everything but run_dir, and its run directory on one rank."""
    folder = tmp_path_factory.mktemp("mixture")
    experts = ["model.num_experts=4", "model.expert_hidden_size=32", "parallel.expert=2", "trainer.max_steps=4"]
    start = [f"tokenizer={tokenizer_dir}", f"data={sft_dir}", f"run_dir={folder}/start", *tiny_model, *experts]
    trainings.train("train_sft", *start, ranks=2)
    arguments = [*policy_arguments, f"policy={folder}/start", "algorithm.samples=2", "trainer.max_steps=1"]
    trainings.train("train_policy", *arguments, f"run_dir={folder}/one")
    return arguments, folder / "one"


@pytest.mark.parametrize("layout", grid(MIXTURE_LAYOUTS, "TP=2, whole experts"))
def test_a_mixture_of_experts_answers_and_learns_alike_on_two_ranks(layout, mixture, trainings, tmp_path):
    arguments, one = mixture
    trainings.train("train_policy", *arguments, *MIXTURE_LAYOUTS[layout], f"run_dir={tmp_path}", ranks=2)
    row, expected = metrics(tmp_path)[1], metrics(one)[1]
    for one_or_two in (row, expected):
        assert one_or_two["first_ratio_deviation"] == 0.0 and one_or_two["mismatch_max"] < 1e-5
    assert answers(tmp_path, 1) == answers(one, 1)
    for key in ("reward", "kl", "entropy", "grad_norm"):
        assert row[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key


def test_bf16_trains_with_a_first_ratio_of_exactly_one(trainings, policy_arguments, tmp_path):
    """The value head stays fp32; the generator differs from the trainer by what bf16 rounds."""
    arguments = [*policy_arguments, *ALGORITHMS["ppo"], "precision=bf16", "trainer.max_steps=2"]
    trainings.train("train_policy", *arguments, f"run_dir={tmp_path}", ranks=2)
    for row in metrics(tmp_path)[1:]:
        assert row["first_ratio_deviation"] == 0.0 and row["mismatch"] < 0.05
        assert row["grad_norm"] > 0 and row["value_grad_norm"] > 0
    state = weights(tmp_path / "checkpoints" / "step=000002" / "critic")
    assert str(state["module.output_layer.weight"].dtype) == "torch.float32"
    assert str(state["module.decoder.final_layernorm.weight"].dtype) == "torch.bfloat16"
