"""Reads checkpoints that transformers or diffusers wrote, where they themselves would make up what is missing."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from zipar.checkpoints.files import check_readable
from zipar.errors import ZipARError, reason

PIPELINE = "model_index.json"
"""What a pipeline of diffusers has in place of a ``config.json``."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
"""Files one of which a tokenizer has."""


def load_diffusers(wanted: str, extra: str = "glm") -> Any:
    """diffusers, without which all but what is ``wanted`` can be used; ``extra`` is what installs it.

    Raises:
        ZipARError: it is missing or broken.
    """
    try:
        import diffusers
    except Exception as error:  # it imports much, which may raise all kinds
        raise ZipARError(f'{wanted} needs diffusers ({reason(error)}): pip install "zipar-torch[{extra}]"') from error
    return diffusers


def load_model(
    kind: Any, directory: Path, dtype: torch.dtype, use_safetensors: bool | None = True, sharded: bool = False
) -> Any:
    """A model with all its weights, on the CPU, with no code but that of its library.

    Args:
        kind: a ``PreTrainedModel`` of transformers, or a ``ModelMixin`` of diffusers.
        use_safetensors: None to take a pickle where there are no safetensors.
        sharded: a part of the weights alone, on this process's device; all that torchrun started hold it together.

    Raises:
        ZipARError: weights are missing, damaged or not those of the model.
    """
    _check_files(directory)
    try:
        loaded: Any = kind.from_pretrained(
            directory,
            **{"dtype" if issubclass(kind, PreTrainedModel) else "torch_dtype": dtype},
            local_files_only=True,
            use_safetensors=use_safetensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else the error refers to a report that it does not hold
            **(_tensor_parallel() if sharded else {}),
        )
    except Exception as error:  # transformers raises whatever its parts do
        raise ZipARError(f"{directory} holds no {kind.__name__} that can be read: {reason(error)}") from error
    model, loading = loaded
    if mismatched := sorted(loading["mismatched_keys"]):
        name, held, wanted = mismatched[0]
        raise ZipARError(
            f"{directory}: {name} is of shape {tuple(held)}, but should be {tuple(wanted)}"
            f" ({len(mismatched)} tensors of its {kind.__name__} do not fit its config): fetch or convert it again"
        )
    if missing := sorted(loading["missing_keys"]):
        raise ZipARError(
            f"{directory} lacks {len(missing)} tensors of its {kind.__name__}, such as {missing[0]}: "
            "fetch or convert it again"
        )
    return model


def _tensor_parallel() -> dict[str, Any]:
    """How ``from_pretrained`` is asked for it."""
    from transformers.distributed.configuration_utils import DistributedConfig

    if hasattr(DistributedConfig(), "tp_plan"):
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    return {"tp_plan": "auto"}  # in older versions


def load_processor(kind: type[Any], directory: Path) -> Any:
    """What turns prompts into tokens, with no code but that of transformers.

    Raises:
        ZipARError: it is missing or damaged.
    """
    if not any((directory / name).exists() for name in TOKENIZERS):
        raise ZipARError(f"{directory} holds no tokenizer: put the tokenizer.json of the checkpoint there")
    _check_files(directory)
    try:
        return kind.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ZipARError(
            f"{directory} holds no {kind.__name__} that can be read ({reason(error)}): "
            "put the processor's files of the checkpoint there"
        ) from error


def _check_files(directory: Path) -> None:
    """Raise where a file of the checkpoint is forbidden, which transformers calls missing, or does without.

    Raises:
        ZipARError: names the file.
    """
    for path in directory.glob("*"):
        if path.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja") and os.path.isfile(path):
            check_readable(path, f"{path} is missing")
