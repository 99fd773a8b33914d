"""Finds the family that a checkpoint belongs to, and loads it."""

import os
from pathlib import Path

import torch

import zipar.pretrained
from zipar.arguments import path, shown
from zipar.checkpoints.files import is_directory, read_config
from zipar.checkpoints.pretrained import PIPELINE, load_diffusers
from zipar.errors import ZipARError, reason
from zipar.models import quantization
from zipar.models.backbone import TransformersModel
from zipar.models.base import VisualModel
from zipar.models.clips import Clips
from zipar.models.commavq import CommaVQ
from zipar.models.cosmos import Cosmos
from zipar.models.emu3 import Emu3
from zipar.models.emu35 import Emu35
from zipar.models.glm_image import GlmImage
from zipar.models.janus import Janus
from zipar.models.liquid import Liquid
from zipar.models.llamagen import LlamaGen
from zipar.models.lumina_mgpt import Anole, LuminaMGPT
from zipar.models.lumina_mgpt2 import LuminaMGPT2
from zipar.models.packing import pack
from zipar.models.simplear import SimpleAR

FAMILIES: dict[str, type[VisualModel]] = {
    model.family: model
    for model in (
        *(LlamaGen, Janus, Emu3, Emu35, LuminaMGPT, LuminaMGPT2, Anole, Liquid, SimpleAR, GlmImage),
        *(Clips, CommaVQ, Cosmos),
    )
}
PUBLISHED = {"gemma": "a Liquid, `zipar convert liquid`", "qwen2": "a SimpleAR, `zipar convert simplear`"}
"""What families are published as, by the type of language model."""


def load(
    name: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantize: str | None = None,
    tensor_parallel: bool = False,
) -> VisualModel:
    """The model of a checkpoint.

    Args:
        name: a directory, the name of an embedded model ("emoji"), or a hub id.
        dtype: of the weights; None for bfloat16 on a GPU, float32 elsewhere.
        device: None for a GPU where there is one.
        quantize: "int8" for the linear layers of the decoder in int8; None leaves them as they are.
        tensor_parallel: the processes that torchrun started hold the model together, each on a device of its own.

    Raises:
        ZipARError: there is no such checkpoint, it is damaged, its family is not supported, or it cannot be quantised
            or sharded.
    """
    directory = find(name)
    found = family(directory)
    own = "cuda" if torch.cuda.is_available() else "cpu"
    if tensor_parallel:
        _check_shards(directory, device, quantize)
        own = f"cuda:{os.environ['LOCAL_RANK']}" if own == "cuda" else own
    place = usable(own if device is None else device)
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    if quantize is not None:
        quantization.check(quantize, place)
    shards = {"sharded": True} if tensor_parallel else {}
    model = found.load(directory, dtype, place, **shards)
    if quantize is not None:
        quantization.quantize(model.stepped(), quantize, place)
        model.quantized = quantize
    pack(model.stepped())
    return model


def _check_shards(directory: Path, device: str | torch.device | None, quantize: str | None) -> None:
    """Raise where processes cannot hold a model together.

    Raises:
        ZipARError: that is so, or an argument is not possible then.
    """
    found = outline(directory)
    if not (isinstance(found, TransformersModel) and found.model.supports_tp_plan):
        raise ZipARError(
            f"{directory} holds a model that has no plan for tensor parallelism, as a Janus or an Emu3.5 has: run it "
            "in one process"
        )
    if not {"LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise ZipARError("tensor parallelism takes several processes: start them with torchrun")
    heads, processes = found.decoder.config.num_key_value_heads, int(os.environ["WORLD_SIZE"])
    if heads % processes:
        raise ZipARError(
            f"{processes} processes cannot share the {heads} key-value heads of {directory}: start as many as divide "
            "them evenly"
        )
    for name, value in (("device", device), ("quantize", quantize)):
        if value is not None:
            raise ZipARError(f"{name} {shown(value)} is not possible with tensor parallelism: leave it out")


def usable(device: str | torch.device) -> torch.device:
    """The device of a name.

    Raises:
        ZipARError: nothing can be computed on it here.
    """
    try:
        place = torch.device(device)
        torch.empty(1, device=place).item()  # the meta device holds no values, others may not be there
    except Exception as error:  # torch's own, and Python's over what is no device at all
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ZipARError(f"device {shown(device)} cannot be used here: {reason[:200]}") from error
    return place


def outline(name: str | Path) -> VisualModel:
    """The model of a checkpoint without its weights, on the meta device.

    Raises:
        ZipARError: there is no such checkpoint, it is damaged, or its family is not supported.
    """
    directory = find(name, weights=False)
    return family(directory).outline(_decoder(directory))


def family(directory: Path) -> type[VisualModel]:
    """The family of a checkpoint directory.

    Raises:
        ZipARError: it is no checkpoint, or its family is not supported.
    """
    kind = read_config(_decoder(directory)).get("model_type")
    if kind == "chameleon":
        raise ZipARError(
            f"{directory} holds a Chameleon without its image decoder: `zipar convert lumina-mgpt`, "
            "`zipar convert lumina-mgpt-2` and `zipar convert anole` add it"
        )
    if kind == "Emu3":
        raise ZipARError(
            f"{directory} holds an Emu3 or Emu3.5 in the layout of its authors: `zipar convert emu3`, `zipar convert "
            "emu3.5` or `zipar convert emu3.5-image` makes it loadable"
        )
    if kind == "multi_modality":
        raise ZipARError(f"{directory} holds a Janus in DeepSeek's layout: `zipar convert janus` makes it loadable")
    if kind in PUBLISHED:
        raise ZipARError(f"{directory} holds a {kind}: if it is {PUBLISHED[kind]} makes it loadable")
    if kind not in FAMILIES:
        raise ZipARError(
            f"{directory} holds a model of type {kind!r}, which is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def _decoder(directory: Path) -> Path:
    """Where the model that writes tokens is: in a part of it, if it is a pipeline of diffusers."""
    return directory / "vision_language_encoder" if (directory / PIPELINE).exists() else directory


def find(name: str | Path, weights: bool = True) -> Path:
    """The directory of a checkpoint; one that is only on the hub is downloaded first, without ``weights`` its configs.

    An embedded name wins over a directory of that name here: that is ``./emoji``, or a ``Path``.

    Raises:
        ZipARError: there is no such checkpoint.
    """
    place = path("model", name)
    if isinstance(name, str) and (embedded := zipar.pretrained.directory(name)):
        return embedded
    if is_directory(place):
        return place
    known = ", ".join(zipar.pretrained.names())
    unknown = f"{name} is no checkpoint: give a directory, a hub id such as owner/name, or an embedded model ({known})"
    if place.exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise ZipARError(unknown)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        configs = Path(snapshot_download(str(name), allow_patterns=["*.json"]))
        if not weights:
            return configs
        if (configs / PIPELINE).exists():
            load_diffusers(str(name))  # or tens of gigabytes would come for nothing
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except ZipARError:
        raise
    except HFValidationError as error:
        raise ZipARError(unknown) from error
    except Exception as error:  # of the hub, of the network, of the disk
        raise ZipARError(
            f"{name} is neither a directory here nor could it be had from the hub: {reason(error)}"
        ) from error
