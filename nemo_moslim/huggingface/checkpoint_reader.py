"""Whole tensors out of a distributed checkpoint, one at a time and without a model or a process group."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

PREFIX = "module."


class CheckpointReader:
    """The model's tensors in CHECKPOINT/weights under megatron-core's names, whatever layout wrote them."""

    def __init__(self, checkpoint: Path):
        self.weights = checkpoint / "weights"
        entries = FileSystemReader(self.weights).read_metadata().state_dict_metadata
        self._entries = {
            name.removeprefix(PREFIX): entry
            for name, entry in entries.items()
            if name.startswith(PREFIX) and isinstance(entry, TensorStorageMetadata)
        }

    def names(self) -> list[str]:
        """Names as stored: those of a stack of layers hold all layers along axis 0."""
        return list(self._entries)

    def read(self, name: str) -> Tensor:
        """One stored tensor, whole, in its stored dtype.

        Raises:
            ValueError: it is not in the checkpoint.
        """
        if name not in self._entries:
            raise ValueError(f"{self.weights.parent}: {name} is missing in the checkpoint")
        entry = self._entries[name]
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        load({PREFIX + name: tensor}, storage_reader=FileSystemReader(self.weights), no_dist=True)
        return tensor

    def tensors(self) -> Iterator[tuple[str, int | None, Tensor]]:
        """All tensors as (name, layer, tensor): inside a layer the name is what follows `decoder.layers.`."""
        for stored in self.names():
            inside = re.fullmatch(r"decoder\.layers\.(?:(\d+)\.)?(.+)", stored)
            if not inside:
                yield stored, None, self.read(stored)
            elif inside.group(1) is not None:
                yield inside.group(2), int(inside.group(1)), self.read(stored)
            else:
                for layer, tensor in enumerate(self.read(stored)):
                    yield inside.group(2), layer, tensor
