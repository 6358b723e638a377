"""Imports what every training and evaluation needs, once, in the process from which a recipe's ranks are forked."""

import gc

from nemo_moslim.console import quiet_libraries

quiet_libraries()

import transformers.models.auto.tokenization_auto  # noqa: E402, F401

import nemo_moslim.evaluation.controllability  # noqa: E402, F401
import nemo_moslim.huggingface.sources  # noqa: E402, F401
import nemo_moslim.training.pairs  # noqa: E402, F401
import nemo_moslim.training.supervised  # noqa: E402, F401
import nemo_moslim.training.train_policy  # noqa: E402, F401

gc.freeze()  # or a collection in a fork walks, and so copies, all that was imported
