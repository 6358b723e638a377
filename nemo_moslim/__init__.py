"""MOSLIM on NVIDIA NeMo: one multi-head reward model, one policy that follows the preferences in the prompt."""

__version__ = "0.1.0"
