"""What conversions of models of one vocabulary share: the language model file by file, and all that is beside it."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from zipar.checkpoints.files import build, check_tensors, outline, read_config
from zipar.conversion.published import Weights, in_format, widest, write_shards
from zipar.errors import ZipARError
from zipar.models.mixed_modal import MixedModal
from zipar.writing import new_directory


@dataclass(frozen=True)
class Shards:
    """The weights of a language model, of whose files no more than one is in memory at a time."""

    paths: list[Path]
    unused: tuple[str, ...] = ()
    """How the names of tensors begin that are left out."""
    fit: Callable[[str, Tensor], Tensor] | None = None
    """Makes of a tensor, by its name, what transformers has."""

    def check(self, module: nn.Module, source: Path) -> None:
        """Raise where they are not the weights of ``module``.

        Raises:
            ZipARError: names the first difference, or the file that is damaged.
        """
        held = {name: tensor for path in self.paths for name, tensor in outline(path).items()}
        fitted = {name: self._fitted(name, tensor) for name, tensor in held.items() if self._used(name)}
        others = {name: tensor for name, tensor in module.state_dict().items() if not self._used(name)}
        check_tensors(fitted | others, module, source)

    def read(self, dtype: torch.dtype | None) -> Iterator[Weights]:
        """The tensors of each file, as they are to be stored."""
        for path in self.paths:
            with safetensors.safe_open(path, "pt") as file:
                held = {name: file.get_tensor(name) for name in file.keys() if self._used(name)}  # noqa: SIM118
            yield {name: in_format(self._fitted(name, value), dtype).contiguous() for name, value in held.items()}

    def _used(self, name: str) -> bool:
        return not name.startswith(self.unused)

    def _fitted(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if self.fit is None else self.fit(name, tensor)


def language_model(source: Path, network: Any, wanted: str, change: dict[str, Any] | None = None) -> Any:
    """The language model that the ``config.json`` of a directory describes, on the meta device.

    Args:
        network: its class of transformers.
        wanted: what the directory should hold, in words.
        change: settings that take the place of published ones.

    Raises:
        ZipARError: it describes another one.
    """
    config, kind = read_config(source), network.config_class
    if (found := config.get("model_type")) != kind.model_type:
        raise ZipARError(f"{source} holds a model of type {found!r}: give the directory of {wanted}")
    known = {field.name for field in dataclasses.fields(kind)} | {"rope_theta", "rope_scaling"}
    kept = {name: value for name, value in config.items() if name in known}
    with build(source), torch.device("meta"):
        return network(kind.from_dict({**kept, "architectures": [network.__name__], **(change or {})}))


def write(
    model: MixedModal,
    described: dict[str, Any],
    shards: Shards,
    image_decoder: Weights,
    out: Path,
    dtype: torch.dtype | None,
    more: Weights | None = None,
    generation: GenerationConfig | None = None,
) -> set[torch.dtype]:
    """Write a checkpoint of ``model``, on the meta device, with its tokenizer.

    Args:
        described: what ``config.json`` holds of the family's own.
        shards: weights of the language model.
        image_decoder: its weights, to be stored in float32.
        out: the directory to make.
        dtype: of the stored language model; None for each tensor's own.
        more: further weights of the language model, in float32 too.
        generation: what transformers should read of how it is sampled from.

    Returns:
        The number formats of the stored language model, but for ``more``.

    Raises:
        ZipARError: ``out`` exists, or cannot be written.
    """
    assert model.tokenizer is not None
    settings = {
        "model_type": model.family,
        **described,
        "image_tokenizer": dataclasses.asdict(model.image_tokenizer.config),
        "sampling": dataclasses.asdict(model.defaults),
    }
    formats: set[torch.dtype] = set()

    def files() -> Iterator[Weights]:
        for tensors in shards.read(dtype):
            formats.update(tensor.dtype for tensor in tensors.values())
            yield tensors
        if more:
            yield _exact(more)

    with new_directory(out) as scratch:
        (scratch / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        (scratch / "tokenizer.json").write_text(model.tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
        save_file(_exact(image_decoder), scratch / "image_tokenizer.safetensors")
        (scratch / "decoder").mkdir()
        write_shards(scratch / "decoder", files(), len(shards.paths) + bool(more))
        config = model.model.config
        config.dtype = widest(formats)
        config.save_pretrained(scratch / "decoder")
        if generation is not None:
            generation.save_pretrained(scratch / "decoder")
    return formats


def _exact(weights: Weights) -> Weights:
    return {name: value.float().contiguous() for name, value in weights.items()}
