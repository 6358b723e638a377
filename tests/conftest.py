"""Shared fixtures: a tiny tokenizer, tiny prepared data, and the server that trainings run on."""

import random
import sys
from pathlib import Path

import pytest
from made_rows import sentence, write_rows

sys.path.insert(0, str(Path(__file__).parent / "distributed"))


def pytest_collection_modifyitems(items):
    """Files that train go first, so that the last ones, which the workers do not end together, are short."""
    training = {item.path for item in items if "trainings" in item.fixturenames}
    items.sort(key=lambda item: item.path not in training)


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    """A byte-level BPE of 300 tokens in Hugging Face's format, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    source = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sentence(source, 10, 50) for _ in range(100)], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("tokenizer")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tokenizer_dir):
    """A ChatEncoder on the tiny tokenizer."""
    from nemo_moslim.data.chat import ChatEncoder, load_tokenizer

    return ChatEncoder(load_tokenizer(tokenizer_dir))


@pytest.fixture(scope="session")
def sft_dir(tmp_path_factory) -> Path:
    """150 training and 21 validation rows of prompt and response."""
    source, folder = random.Random(1), tmp_path_factory.mktemp("sft")
    for split, count in (("train", 150), ("validation", 21)):
        rows = [{"prompt": sentence(source, 2, 6), "response": sentence(source, 2, 12)} for _ in range(count)]
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


def rating(source: random.Random, index: int) -> dict:
    """A rating whose labels can be read off the answer; not every row carries every label."""
    answer = sentence(source, 2, 11)
    labels = {"helpfulness": min(5, 1 + answer.count("apple") + answer.count("pear"))}
    if index % 2:
        labels["harmless"] = 2 if "bad" in answer else 1
    if index % 3 == 0:
        labels["honesty"] = min(5, 1 + answer.count("red") + answer.count("blue"))
    return {"prompt": sentence(source, 2, 6), "response": answer, "labels": labels, "source": "made"}


@pytest.fixture(scope="session")
def rating_dir(tmp_path_factory) -> Path:
    """203 training and 37 validation ratings: neither a multiple of a batch."""
    source, folder = random.Random(2), tmp_path_factory.mktemp("ratings")
    for split, count in (("train", 203), ("validation", 37)):
        write_rows(folder / f"{split}.jsonl", [rating(source, index) for index in range(count)])
    return folder


@pytest.fixture(scope="session")
def trainings(tmp_path_factory):
    """Runs trainings in forked processes of a server that has imported NeMo."""
    from training_client import Trainings

    server = Trainings(tmp_path_factory.mktemp("jobs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny_model() -> list[str]:
    """Arguments of every training here: 10 steps of two micro-batches."""
    return [
        "model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.max_length=64",
        "model.init_std=0.02", "batch.global_size=16", "batch.micro_size=8", "batch.bucket_batches=4",
        "trainer.max_steps=10", "trainer.validate_every=5", "trainer.checkpoint_every=5", "trainer.log_every=1",
        "trainer.tensorboard=false", "optimizer.warmup_steps=4", "optimizer.lr=3e-3",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def sft_run(trainings, tokenizer_dir, sft_dir, tiny_model, tmp_path_factory) -> Path:
    """A language model with tied embeddings, where reward models start from: 20 steps on one rank; answers end."""
    run_dir = tmp_path_factory.mktemp("sft_run")
    trainings.train(
        "train_sft", f"tokenizer={tokenizer_dir}", f"data={sft_dir}", f"run_dir={run_dir}", *tiny_model,
        "model.tie_embeddings=true", "trainer.max_steps=20",
    )  # fmt: skip
    return run_dir


@pytest.fixture(scope="session")
def reward_arguments(sft_run, rating_dir, tiny_model) -> list[str]:
    """train_rm from the language model, everything but run_dir."""
    return [f"model.init={sft_run}", f"data={rating_dir}", *tiny_model]


@pytest.fixture(scope="session")
def reward_run(trainings, reward_arguments, tmp_path_factory) -> Path:
    """A reward model from the language model, 10 steps on one rank."""
    run_dir = tmp_path_factory.mktemp("reward_run")
    trainings.train("train_rm", *reward_arguments, f"run_dir={run_dir}", "statistics.std_floor=1e-7")
    return run_dir


@pytest.fixture(scope="session")
def prompt_dir(tmp_path_factory) -> Path:
    """40 training and 8 validation prompts with levels asked of up to two dimensions, some untagged."""
    source, folder = random.Random(3), tmp_path_factory.mktemp("prompts")
    for split, count in (("train", 40), ("validation", 8)):
        rows = []
        for index in range(count):
            asked = {"helpfulness": source.randint(1, 5), "harmless": source.randint(1, 2)}
            names = source.sample(list(asked), index % 3)
            rows.append({"prompt": sentence(source, 2, 6), "preferences": {n: asked[n] for n in names}, "group": index})
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture(scope="session")
def policy_arguments(sft_run, reward_run, prompt_dir) -> list[str]:
    """train_policy from the language model and the reward model, everything but run_dir: 4 steps of 8 prompts."""
    return [
        f"policy={sft_run}", f"reward={reward_run}", f"data={prompt_dir}", "generation.max_new_tokens=8",
        "generation.batch_size=10", "max_length=90", "batch.prompts=8", "batch.micro_size=4", "batch.score_size=4",
        "batch.logprob_chunk=16", "trainer.max_steps=4", "trainer.validate_every=2", "trainer.validation_prompts=8",
        "trainer.checkpoint_every=2", "trainer.samples_every=1", "trainer.samples_shown=8", "trainer.tensorboard=false",
        "optimizer.lr=3e-3", "optimizer.warmup_steps=0",
    ]  # fmt: skip
