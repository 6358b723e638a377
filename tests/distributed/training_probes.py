"""What training_server.py can run on its ranks. Each function returns something that JSON holds."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def import_everything() -> None:
    """The slow imports of a training, before ranks are forked."""
    import transformers.models.auto.tokenization_auto  # noqa: F401

    import nemo_moslim.huggingface.qwen2  # noqa: F401
    import nemo_moslim.training.supervised  # noqa: F401


def example(name: str):
    """The module examples/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def train(entry: str, arguments: list[str], fault: dict | None = None) -> None:
    """`examples/ENTRY.py arguments…`; `fault` kills the process at a named moment of a step's checkpoint."""
    if fault:
        plan_fault(**fault)
    example(entry).main([*arguments, "--traceback"])


def train_several(runs: list[list]) -> None:
    """Several trainings in the same process(es), one after the other: [entry, arguments] each."""
    for entry, arguments in runs:
        train(entry, arguments)


def plan_fault(moment: str, step: int) -> None:
    """A signal to this process in or after a step.

    Moments: "sigterm" (SIGTERM while the step runs, on the last rank only), and SIGKILL around the checkpoint of the
    step: "writing" (weights are written, context/ is not), "unnamed" (complete but not renamed), "unmarked" (renamed,
    best.json not yet written).
    """
    from nemo.lightning.io.pl import TrainerContext

    from nemo_moslim.training import checkpoint, telemetry

    if moment == "sigterm":
        original = telemetry.Telemetry.on_train_batch_start

        def on_train_batch_start(self, trainer, *rest):
            if trainer.global_step == step - 1 and trainer.global_rank == trainer.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, trainer, *rest)

        telemetry.Telemetry.on_train_batch_start = on_train_batch_start
        return

    def deadly(function, wanted):
        def wrapped(*args, **kwargs):
            if wanted(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    name = checkpoint.checkpoint_name(step)
    if moment == "writing":
        TrainerContext.io_dump = deadly(TrainerContext.io_dump, lambda self, folder, **_: name in str(folder))
    elif moment == "unnamed":
        Path.rename = deadly(Path.rename, lambda self, target: Path(target).name == name)
    elif moment == "unmarked":
        checkpoint.mark_best = deadly(checkpoint.mark_best, lambda run_dir, marked, *_: marked == name)
    else:
        raise ValueError(moment)
