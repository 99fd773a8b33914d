"""How the classes of transformers that write images are asked for them through ``generate``, and how they answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from zipar.decoding.engine import Prefix
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.backbone import TransformersModel
from zipar.models.janus import Janus


class Call(NamedTuple):
    """A call of ``generate`` for images, prepared by transformers: a row an image."""

    input_ids: Tensor
    """int64 (images, length), padded on the left."""
    valid: Tensor
    """bool (images, length), False where padded."""
    negative_ids: Tensor | None
    """``negative_prompt_ids`` as they were given: transformers does not repeat them for several images a prompt."""
    negative_mask: Tensor | None
    config: GenerationConfig
    guided: bool


class Family(ABC):
    """What is peculiar to one class; ``generate`` and ``accelerate`` do the rest."""

    model_type: ClassVar[str]
    """Of its config."""
    arguments: ClassVar[frozenset[str]] = frozenset()
    """Arguments of ``generate`` that other families would refuse."""

    @abstractmethod
    def wanted(self, model: Any, arguments: dict[str, Any]) -> bool:
        """Whether a call of ``generate`` with these arguments asks for images."""

    @abstractmethod
    def visual(self, model: Any) -> TransformersModel:
        """The model as the engine wants it."""

    @abstractmethod
    def read(self, visual: Any, call: Call) -> tuple[Prefix, TokenGrid]:
        """The prefix of a call, with the unconditional branch if it is guided, and the grid that it asks for.

        Raises:
            ZipARError: the call cannot be honoured.
        """

    @abstractmethod
    def write(self, visual: Any, call: Call, tokens: Tensor) -> Tensor:
        """Decoded tokens, int64 (images, slots) -> the sequences that the model's own ``generate`` returns."""

    def guidance_scale(self, config: GenerationConfig) -> float:
        """The scale that the class uses where the config has this."""
        return 1.0 if config.guidance_scale is None else config.guidance_scale

    def run(self, model: Any, arguments: dict[str, Any], decoding: Callable[..., Any]) -> Any:
        """``generate`` of the model with ``decoding`` in place of its own loop."""
        return GenerationMixin.generate(model, custom_generate=decoding, **arguments)


class JanusFamily(Family):
    model_type = "janus"
    arguments = frozenset({"generation_mode"})

    def wanted(self, model: Any, arguments: dict[str, Any]) -> bool:
        return arguments.get("generation_mode", "text") != "text"

    def visual(self, model: Any) -> Janus:
        return Janus(model)

    def read(self, visual: Janus, call: Call) -> tuple[Prefix, TokenGrid]:
        grid = visual.grid(*visual.image_size)
        if call.guided:
            return visual.guided_prompt(call.input_ids, call.valid, call.config), grid
        return visual.prompt(call.input_ids, call.valid), grid

    def write(self, visual: Janus, call: Call, tokens: Tensor) -> Tensor:
        return tokens

    def guidance_scale(self, config: GenerationConfig) -> float:
        return 5.0 if config.guidance_scale is None else config.guidance_scale

    def run(self, model: Any, arguments: dict[str, Any], decoding: Callable[..., Any]) -> Any:
        """Past Janus's own ``generate``, whose image loop cannot be replaced, with what that makes of its config."""
        arguments.pop("generation_mode")
        config, rest = model._prepare_generation_config(arguments.pop("generation_config", None), **arguments)
        unset = {"guidance_scale": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # an explicit None means these
        config.update(**{name: value for name, value in unset.items() if getattr(config, name) is None})
        # it pays no heed to lengths, and its prompts may be longer than those
        config.max_length, config.max_new_tokens = None, model.config.vision_config.num_image_tokens
        return GenerationMixin.generate(model, generation_config=config, custom_generate=decoding, **rest)


FAMILIES: dict[str, Family] = {family.model_type: family for family in (JanusFamily(),)}


def family_of(model: PreTrainedModel) -> Family:
    """The family that a model of transformers belongs to.

    Raises:
        ZipARError: none that is supported.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES or not isinstance(model, GenerationMixin):
        raise ZipARError(
            f"{type(model).__name__} is no model of transformers whose images zipar can decode; "
            f"give one that generates, of type {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]
