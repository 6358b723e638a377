"""Keeps the output of a run to the run: notices of libraries about themselves are left out, their errors are not."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Call before NeMo is imported."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("NEMO_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("lightning", "lightning.pytorch", "nemo_logger", "megatron", "torch.distributed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
