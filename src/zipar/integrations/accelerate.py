"""Parallel decoding under the ``generate`` of a model that is already loaded."""

import functools
import inspect
from types import TracebackType
from typing import Any

from zipar.decoding.names import strategy_of
from zipar.decoding.strategy import Strategy
from zipar.errors import ZipARError
from zipar.integrations.families import family_of
from zipar.integrations.generate import generate, refusal
from zipar.models.packing import forget

_REFUSED = (
    *("assistant_model", "assistant_tokenizer", "cache", "custom_generate", "inputs_embeds", "logits_processor"),
    *("mm_encoder_outputs", "negative_prompt_attention_mask", "negative_prompt_ids", "past_key_values"),
    *("pixel_values", "position_ids", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer", "synced_gpus"),
)
"""Arguments of ``generate`` that have no meaning here, or none yet; a family may take some of them."""


class _Generate:
    """``generate`` of a model, images in parallel; that of a copy of the model is a copy, and belongs to it."""

    def __init__(self, model: Any, strategy: Strategy) -> None:
        self.model, self.strategy, self.undone = model, strategy, False
        self.hidden = vars(model).get("generate")  # an acceleration outside this one, say
        self.__wrapped__, self.__doc__ = model.generate, model.generate.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own, family = self.__wrapped__, family_of(self.model)
        arguments = inspect.signature(own).bind(*args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        if self.undone or not family.wanted(self.model, arguments):
            return own(*args, **kwargs)
        for name in _REFUSED:
            value = arguments.get(name)
            if name not in family.arguments and value is not None and value is not False and value != []:
                raise refusal(name, type(value).__name__)
        return family.run(self.model, arguments, functools.partial(generate, strategy=self.strategy))


class Acceleration:
    """A model whose images are decoded in parallel until ``undo``, or until the end of a ``with``.

    Several may be on one model: the newest that is not undone decodes.
    """

    def __init__(self, model: Any, strategy: Strategy | str | None) -> None:
        self._given, self._model = getattr(model, "_orig_mod", model), _generating(model)
        family_of(self._model)  # raises where there is none
        self._generate = self._model.generate = _Generate(self._model, strategy_of(strategy))

    def undo(self) -> None:
        """Take this acceleration away, whichever others there are; does nothing when that was done before."""
        self._generate.undone = True
        while isinstance(outermost := vars(self._model).get("generate"), _Generate) and outermost.undone:
            if outermost.hidden is None:
                del self._model.generate
                forget(self._model)
            else:
                self._model.generate = outermost.hidden

    def __enter__(self) -> Any:
        return self._given

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def accelerate(model: Any, strategy: Strategy | str | None = None) -> Acceleration:
    """Decode the images that ``model.generate`` makes in parallel, from now on or in a ``with`` block.

    ::

        with zipar.accelerate(model, zipar.ZipAR(window=8)):
            ids = model.generate(**inputs, generation_mode="image", do_sample=True)

    Arguments of ``generate`` keep their names, defaults and meanings, and sequences their layout. With
    ``return_dict_in_generate`` there are sequences alone. Text generation is left as it is. Sampling draws
    its seeds from torch's global generator.

    An image is wanted where Janus's ``generation_mode`` says so, and where the prompts of Emu3, Emu3.5 and of a
    Chameleon (Lumina-mGPT, Anole) end at the first token of an image: with Emu3's ``return_for_image_generation``,
    with Emu3.5's ``<|image token|>``, or with Chameleon's begin-of-image and Lumina-mGPT's size. Emu3 needs no
    ``prefix_allowed_tokens_fn`` then, and takes the documented one. GLM-Image always writes an image, of the grids that
    ``image_grid_thw`` tells; codes alone are drawn, so that none ends early. ``max_new_tokens`` cuts their sequences as
    ever; ``max_length``, 20 more by default, does not.

    Args:
        model: a ``JanusForConditionalGeneration``, ``Emu3ForConditionalGeneration``,
            ``ChameleonForConditionalGeneration`` or ``GlmImageForConditionalGeneration``, or the ``Qwen3ForCausalLM``
            that ``zipar convert`` makes of an Emu3.5, plain or compiled, on any devices; one of peft around it, whose
            adapters count; or a ``GlmImagePipeline`` of diffusers, whose autoregressive stage is meant.
        strategy: the order of decoding, or its name, such as "zipar:8"; None for ``zipar.DEFAULT``.

    Accelerations of one model may be nested, and undone in any order. A copy of an accelerated model is accelerated
    itself, for good. Passes compute in the model's own number format, whatever ``torch.autocast`` says.

    Returns:
        A handle: ``undo()`` it, or use it as a context manager, which gives the model and undoes at its end.

    Raises:
        ZipARError: a model of another class. ``model.generate`` then raises it for an argument that cannot be honoured.
    """
    return Acceleration(model, strategy)


def _generating(model: Any) -> Any:
    """The model whose ``generate`` runs in the end.

    peft's wraps one, with adapters in place of its layers; a pipeline of diffusers has one beside others.

    Raises:
        ZipARError: peft's keeps what it learned outside, as tokens before the prompt.
    """
    model = getattr(model, "vision_language_encoder", model)
    model = getattr(model, "_orig_mod", model)
    if not callable(getattr(model, "get_base_model", None)):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise ZipARError(
            f"{type(model).__name__} has learned tokens before the prompt, which would be passed over: give one whose "
            "adapters are in the layers, such as LoRA"
        )
    return model.get_base_model()
