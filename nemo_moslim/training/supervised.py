"""SFT and reward-model training on NeMo's Trainer: data, model, optimizer, callbacks put together and run.

The walk of train_rm: prepared rows -> RewardDataset -> StepDataModule -> RewardModel -> NeMo's Trainer, with
Telemetry, RunCheckpoint, StopOnSignal and early stopping looking on.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from nemo import lightning as nl
from omegaconf import OmegaConf

from nemo_moslim.config import RewardModelTrainingConfig, SFTConfig, SupervisedConfig, to_plain
from nemo_moslim.data.chat import ChatEncoder, load_tokenizer
from nemo_moslim.data.length_batches import padding_share
from nemo_moslim.data.packed_dataset import PackedDataset
from nemo_moslim.data.ratings import keep_dimensions, read_ratings, read_sft, tags_of_answers
from nemo_moslim.data.reward_dataset import RewardDataset, class_weights
from nemo_moslim.data.sft_dataset import SFTDataset
from nemo_moslim.data.shared_prompts import AnswersTogether
from nemo_moslim.functional.classification import check_levels_for_loss
from nemo_moslim.huggingface.sources import open_source
from nemo_moslim.model_config import ModelConfig
from nemo_moslim.models.backbone import backbone_settings, dispatch_settings, run_settings
from nemo_moslim.models.initial_weights import Heads, Source, tokenizer_folder
from nemo_moslim.models.policy import PolicyConfig, PolicyModel
from nemo_moslim.models.reward_model import RewardModel, RewardModelConfig
from nemo_moslim.models.summed_loss import SummedLossModel
from nemo_moslim.parallel import cpu
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group, local_world_size, world_size
from nemo_moslim.parallel.layout_checks import data_parallel_size, row_multiple, sequence_multiple
from nemo_moslim.parallel.platform import check_answers_together, this_platform
from nemo_moslim.parallel.start_checks import check_supervised
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.open_model import nemo_tokenizer
from nemo_moslim.run_folder import is_run, list_checkpoints, resolve_checkpoint, write_atomically
from nemo_moslim.training.checkpoint import RunCheckpoint, StopOnSignal, check_monitor
from nemo_moslim.training.data_module import StepDataModule
from nemo_moslim.training.experiment_loggers import experiment_loggers
from nemo_moslim.training.final_checkpoint import make_final_checkpoints
from nemo_moslim.training.optimizer import optimizer_module
from nemo_moslim.training.starting_points import (
    check_starting_points,
    read_start,
    supervised_starting_points,
    write_start,
)
from nemo_moslim.training.strategy import megatron_strategy, overlap_callbacks, precision_plugin
from nemo_moslim.training.telemetry import Telemetry, write_summary

PADDING_STEPS = 64  # training steps over which the share of padding is reported


def train_sft(config: SFTConfig) -> None:
    """Fine-tune a language model on prompt and response pairs; writes the run directory.

    Raises:
        ValueError: configuration, data or layout that cannot run.
    """
    setup = SupervisedSetup(config)
    build = partial(SFTDataset.build, encoder=setup.encoder, loss_on=config.loss_on, **setup.row_options())
    train, validation = (build(read_sft(path), origin=str(path)) for path in setup.data_files())
    asked = tags_of_answers(config.data)
    model_config = PolicyConfig(**setup.architecture(tie=True), **setup.run_settings(), asked=asked)
    setup.fit(PolicyModel, model_config, setup.packed(train), setup.packed(validation))


def train_reward_model(config: RewardModelTrainingConfig, callbacks: Sequence[pl.Callback] = ()) -> None:
    """Train the multi-head reward model on prepared ratings; writes the run directory.

    Args:
        callbacks: look on after those of every training.

    Raises:
        ValueError: configuration, data or layout that cannot run.
    """
    setup = SupervisedSetup(config)
    check_answers_together(config.answers_together, this_platform())
    whole = PreferenceSchema.from_dict(to_plain(config.preferences))
    schema = whole.part(config.dimensions or whole.names)
    check_levels_for_loss({dimension.name: dimension.levels for dimension in schema.dimensions}, config.loss)
    levels = [dimension.levels for dimension in schema.dimensions]
    build = partial(RewardDataset.build, schema=schema, encoder=setup.encoder, **setup.row_options())

    def rows_of(path: Path) -> list[dict]:
        rows = read_ratings(path, whole)
        return keep_dimensions(rows, schema.names, str(path)) if config.dimensions else rows

    train, validation = (build(rows_of(path), origin=str(path)) for path in setup.data_files())
    weights = class_weights(train.class_counts(), levels, config.class_weights, config.head_weights)
    train = replace(train, counts_rows=config.loss != "per_head")
    if config.answers_together > 1:
        train, validation = (AnswersTogether.build(data, config.answers_together) for data in (train, validation))
    train, validation = setup.packed(train), setup.packed(validation)
    model_config = RewardModelConfig(
        **setup.architecture(tie=False),
        **setup.run_settings(),
        preferences=schema.to_dict(),
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        class_weights=None if weights is None else weights.tolist(),
        statistics_mode=config.statistics.mode,
        statistics_decay=config.statistics.decay,
        statistics_rows=config.statistics.rows or ("labelled" if config.loss == "per_head" else "all"),
        std_floor=config.statistics.std_floor,
        head_seed=config.trainer.seed,
    )
    after = partial(make_final_checkpoints, config=config, train=train, validation=validation)
    setup.fit(RewardModel, model_config, train, validation, after, callbacks=callbacks)


class SupervisedSetup:
    """What trainings on fixed data do alike, in order: platform, source of weights, tokenizer, checks, fit."""

    def __init__(self, config: SupervisedConfig):
        self.config = config
        if config.trainer.cpu_threads:
            torch.set_num_threads(config.trainer.cpu_threads)
            os.environ["OMP_NUM_THREADS"] = str(config.trainer.cpu_threads)  # else Lightning sets a number of its own
        if not torch.cuda.is_available():
            cpu.enable()
        self.source: Source | None = open_source(config.model.init) if config.model.init else None
        folder = config.tokenizer or (self.source and self.source.tokenizer_folder)
        if not folder:
            raise ValueError(
                "tokenizer is not set: give tokenizer=DIR|RUN, or model.init=RUN|HF_DIR to take its tokenizer"
            )
        self.tokenizer_folder = str(tokenizer_folder(resolve_checkpoint(folder)) if is_run(folder) else folder)
        self.encoder = ChatEncoder(load_tokenizer(self.tokenizer_folder))
        self._check_model()

    def _check_model(self) -> None:
        config, model = self.config, self.config.model
        if self.source:
            for name, value in self.source.sizes().items():
                setattr(model, name, value)
            if is_rank_zero():
                print(f"architecture and weights from {model.init}: {self.source.describe()}", flush=True)
            vocabulary = self.source.architecture["vocab_size"]
            if len(self.encoder.tokenizer) > vocabulary:
                raise ValueError(
                    f"tokenizer={self.tokenizer_folder} has {len(self.encoder.tokenizer)} tokens, the "
                    f"embedding of model.init={model.init} has {vocabulary}: use the model's own tokenizer"
                )
        check_supervised(config, self.architecture(tie=False), world_size(), this_platform())

    def architecture(self, tie: bool) -> dict:
        """Arguments of the model's configuration: from the source of weights, else from the sizes of conf/model.

        A reward model has no vocabulary layer, so it never ties one to its embedding (tie=False).
        """
        settings = (
            dict(self.source.architecture)
            if self.source
            else backbone_settings(self.config.model, len(self.encoder.tokenizer))
        )
        if not tie:
            settings["share_embeddings_and_output_weights"] = False
        return settings

    def row_options(self) -> dict:
        """Arguments that all data sets take."""
        config, longest = self.config, self.config.model.max_length
        multiple = row_multiple(config.parallel, config.precision, config.fp8_recipe)
        multiple = longest if config.batch.fixed_length else multiple
        return dict(max_length=longest, long_rows=config.batch.long_rows, pad_multiple=multiple)

    def run_settings(self) -> dict:
        """Arguments of the model's configuration that belong to the run."""
        config = self.config
        return run_settings(config.model) | dispatch_settings(config.parallel, config.batch.fixed_length)

    def packed(self, dataset: RewardDataset | SFTDataset) -> RewardDataset | SFTDataset | PackedDataset:
        """The data set with its rows packed where `batch.packing` says so."""
        config = self.config
        if not config.batch.packing:
            return dataset
        multiple = sequence_multiple(config.parallel)
        return PackedDataset.build(dataset, config.model.max_length, config.trainer.seed, multiple)

    def data_files(self) -> list[Path]:
        """train.jsonl and validation.jsonl of the data directory.

        Raises:
            ValueError: one is missing.
        """
        files = [Path(self.config.data) / name for name in ("train.jsonl", "validation.jsonl")]
        for file in files:
            if not file.is_file():
                raise ValueError(f"data={self.config.data}: no {file.name} there; make it with prepare_data.py")
        return files

    def fit(
        self,
        model_class: type[SummedLossModel],
        model_config,
        train,
        validation,
        after_training: Callable[[pl.Trainer], None] | None = None,
        seconds_before: dict[str, float] | None = None,
        callbacks: Sequence[pl.Callback] = (),
    ) -> None:
        """Build everything, resume where the run directory holds a checkpoint, train, and write summary.json.

        `seconds_before` are those of phases that came before, for the summary.

        Raises:
            ValueError: the run began with other weights, data, seed or loss.
        """
        config, run_dir = self.config, Path(self.config.run_dir)
        resumable = list_checkpoints(run_dir, with_optimizer=True)
        start = supervised_starting_points(config)
        if resumable:
            check_starting_points(read_start(run_dir), start, config.run_dir)
        if is_rank_zero():
            run_dir.mkdir(parents=True, exist_ok=True)
            if not resumable:
                write_start(run_dir, start)
            write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
        if model_config.num_moe_experts:
            # megatron-core sums the router's loss over tokens, and the step divides by what the loss counts; where
            # tensor and context parallelism split the positions, it multiplies each rank's part by that rank's alone
            splits = config.parallel.tensor * config.parallel.context
            model_config.moe_aux_loss_coeff *= splits * train.counted / round(train.lengths.sum())
        model = model_class(
            model_config,
            optim=optimizer_module(config.optimizer, config.trainer.max_steps, config.precision),
            tokenizer=nemo_tokenizer(self.tokenizer_folder),
        )
        check_monitor(config.trainer.monitor, model.metrics(torch.ones(model.sums_size)))
        if self.source and not resumable:
            model.load_initial_weights = self.source.load_into
            self._announce_heads(Heads.of(model_config))
        data = StepDataModule(train, validation, config.batch, config.model.max_length, config.trainer.seed)
        steps = map(data.plan.step, range(PADDING_STEPS))
        packed_lengths = train.packs.padded_lengths if config.batch.packing else None
        packed_lengths = train.lengths if isinstance(train, AnswersTogether) else packed_lengths
        padding = padding_share(train.lengths, steps, train.pad_multiple, packed_lengths)
        telemetry = Telemetry(
            config.run_dir, config.trainer.validate_every, config.trainer.log_every, experiment_loggers(config)
        )
        data_ranks = data_parallel_size(config.parallel, world_size())
        trainer = build_trainer(config, telemetry, data.validation_micro_batches(data_ranks))
        trainer.callbacks.extend(callbacks)
        if is_rank_zero():
            self._announce(train, validation, padding, resumable)
        trainer.fit(model, datamodule=data, ckpt_path=str(resumable[-1]) if resumable else None)
        stopped = any(isinstance(c, StopOnSignal) and c.stopped for c in trainer.callbacks)
        if after_training and not stopped:
            after_training(trainer)
        telemetry.seconds |= seconds_before or {}
        write_summary(config.run_dir, trainer, telemetry, self._data_summary(train, validation, padding))
        leave_process_group()

    def _data_summary(self, train, validation, padding: float) -> dict:
        """Rows of both splits, the share of padding, and how full the packs are, for summary.json."""
        packing = self.config.batch.packing
        kept = {
            name: len(data.rows if packing else data) for name, data in [("train", train), ("validation", validation)]
        }
        summary = {"rows": {**kept, "cut": train.rows.cut, "dropped": train.rows.dropped}}
        summary |= {"padding_share": round(padding, 4)}
        if packing:
            summary |= {"packing": {"packs": len(train), "fill_rate": round(train.packs.fill_rate, 4)}}
        return summary

    def _announce_heads(self, heads: Heads | None) -> None:
        before = self.source.heads
        if heads and before and heads != before and is_rank_zero():
            print(f"heads begin anew: model.init has {before}; this run {heads}", flush=True)

    def _announce(self, train, validation, padding: float, resumable: list[Path]) -> None:
        rows = train.rows
        print(
            f"{len(rows):,} training rows, {round(train.lengths.sum()):,} tokens ({rows.cut} rows cut, {rows.dropped} "
            f"dropped as over {self.config.model.max_length} tokens), {len(validation.rows):,} validation rows, "
            f"{padding:.1%} padding",
            flush=True,
        )
        if self.config.batch.packing:
            print(f"rows in {len(train):,} packs, {train.packs.fill_rate:.1%} full", flush=True)
        if isinstance(train, AnswersTogether):
            print(f"answers together: {rows.lengths.sum():,} tokens if each had its own prompt", flush=True)
        if resumable:
            print(f"resuming from {resumable[-1]}", flush=True)


def build_trainer(config: SupervisedConfig, telemetry: Telemetry, validation_micro_batches: int) -> nl.Trainer:
    """NeMo's Trainer with this run's layout and callbacks."""
    trainer = config.trainer
    checkpoints = RunCheckpoint(
        config.run_dir, trainer.checkpoint_every, trainer.validate_every, trainer.keep_checkpoints, trainer.monitor
    )
    callbacks = [StepSeed(trainer.seed), telemetry, *early_stopping(trainer), StopOnSignal(), checkpoints]
    callbacks += overlap_callbacks(config)
    pl.seed_everything(trainer.seed, verbose=False)
    return nl.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=local_world_size(),
        num_nodes=world_size() // local_world_size(),
        strategy=megatron_strategy(config),
        plugins=precision_plugin(config.precision, config.fp8_recipe),
        max_steps=trainer.max_steps,
        val_check_interval=trainer.validate_every,
        check_val_every_n_epoch=None,
        limit_val_batches=validation_micro_batches,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )


def early_stopping(trainer) -> list[pl.Callback]:
    """Lightning's early stopping on the validation metric, if asked for."""
    if trainer.early_stop_patience is None:
        return []
    mode = "min" if trainer.monitor == "loss" else "max"
    stopping = PatientStopping(
        monitor=f"validation/{trainer.monitor}",
        patience=trainer.early_stop_patience,
        mode=mode,
        check_on_train_epoch_end=False,
        strict=False,  # RunCheckpoint tells of a metric that is not there
    )
    return [stopping]


class PatientStopping(pl.callbacks.EarlyStopping):
    """Lightning's, for runs that are started again: one whose patience is spent stays ended, a new patience counts."""

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class StepSeed(pl.Callback):
    """Seeds dropout from (seed, step), so that a resumed run draws what an uninterrupted one draws."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args) -> None:
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        model: ModelConfig = pl_module.config
        if model.hidden_dropout or model.attention_dropout:
            seed = self.seed * 1_000_003 + trainer.global_step
            torch.manual_seed(seed)
            model_parallel_cuda_manual_seed(seed % 2**31)
