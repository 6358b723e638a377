"""Typed configuration of examples/serve_reward.py; see config.py."""

from dataclasses import asdict, dataclass
from typing import ClassVar

from nemo_moslim.checks import one_of, positive, require
from nemo_moslim.config import PRECISIONS, AdamWConfig, OptimizerConfig, ParallelConfig
from nemo_moslim.policy_config import NORMALIZE, RECOMPUTE


@dataclass
class ServeBatchConfig:
    """Which rows are scored together."""

    rows: int
    wait_milliseconds: float
    micro_size: int

    def __post_init__(self):
        positive("batch.", self, "rows", "micro_size")
        require(self.wait_milliseconds >= 0, "batch.wait_milliseconds", self.wait_milliseconds, "0 or more")


@dataclass
class ServeLimitsConfig:
    """What the service takes from its clients."""

    queue_rows: int
    queue_bytes: int
    request_items: int
    request_bytes: int
    request_seconds: float
    critic_seconds: float

    def __post_init__(self):
        positive("limits.", self, "queue_rows", "queue_bytes", "request_items", "request_bytes")
        positive("limits.", self, "request_seconds", "critic_seconds")
        for request, queue in (("request_items", "queue_rows"), ("request_bytes", "queue_bytes")):
            size, room = getattr(self, request), getattr(self, queue)
            expected = f"at most limits.{queue}={room}: a request enters the queue whole"
            require(size <= room, f"limits.{request}", size, expected)


@dataclass
class CriticOptimizerConfig(AdamWConfig):
    """The training sends the learning rate with every update."""

    KEY: ClassVar[str] = "critic_training.optimizer."

    def whole(self) -> OptimizerConfig:
        """With a learning rate to start from."""
        return OptimizerConfig(lr=1.0, min_lr=0.0, schedule="constant", warmup_steps=0, **asdict(self))


@dataclass
class CriticTrainingConfig:
    """How a critic is updated; a training's other settings of it come from its client."""

    micro_size: int
    max_length: int | None
    recompute: str | None
    optimizer: CriticOptimizerConfig

    def __post_init__(self):
        positive("critic_training.", self, "micro_size")
        one_of("critic_training.recompute", self.recompute, RECOMPUTE)


@dataclass
class ServeConfig:
    """examples/serve_reward.py."""

    run: str
    host: str
    port: int
    parallel: ParallelConfig
    precision: str
    normalize: str
    batch: ServeBatchConfig
    limits: ServeLimitsConfig
    critic: bool
    critic_dir: str | None
    critic_training: CriticTrainingConfig
    cpu_threads: int | None

    def __post_init__(self):
        one_of("precision", self.precision, PRECISIONS[:2])
        one_of("normalize", self.normalize, NORMALIZE)
        require(0 <= self.port < 2**16, "port", self.port, "a port, or 0 for a free one")
        saved = "a folder with critic=true: where the critic is saved when the policy is"
        require(not self.critic or bool(self.critic_dir), "critic_dir", self.critic_dir, saved)
