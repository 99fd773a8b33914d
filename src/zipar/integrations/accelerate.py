"""Parallel decoding under the ``generate`` of a model that is already loaded."""

import functools
import inspect
from types import TracebackType
from typing import Any

from zipar.decoding.strategy import Strategy
from zipar.integrations.families import family_of
from zipar.integrations.generate import generate, refusal
from zipar.models.packing import forget

_REFUSED = (
    *("assistant_model", "assistant_tokenizer", "cache", "custom_generate", "inputs_embeds", "logits_processor"),
    *("mm_encoder_outputs", "negative_prompt_attention_mask", "negative_prompt_ids", "past_key_values"),
    *("pixel_values", "position_ids", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer", "synced_gpus"),
)
"""Arguments of ``generate`` that have no meaning here, or none yet; a family may take some of them."""


class Acceleration:
    """A model whose images are decoded in parallel until ``undo``, or until the end of a ``with``."""

    def __init__(self, model: Any, strategy: Strategy | None) -> None:
        self._model = model
        self._hidden = vars(model).get("generate")  # an acceleration outside this one, say
        self._generate = _accelerated(model, strategy)
        model.generate = self._generate

    def undo(self) -> None:
        """Give the model its former ``generate`` back; does nothing when that was done before."""
        if vars(self._model).get("generate") is not self._generate:
            return
        if self._hidden is None:
            del self._model.generate
        else:
            self._model.generate = self._hidden
        forget(self._model)

    def __enter__(self) -> Any:
        return self._model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def accelerate(model: Any, strategy: Strategy | None = None) -> Acceleration:
    """Decode the images that ``model.generate`` makes in parallel, from now on or in a ``with`` block.

    ::

        with zipar.accelerate(model, zipar.ZipAR(window=8)):
            ids = model.generate(**inputs, generation_mode="image", do_sample=True)

    Arguments of ``generate`` keep their names, defaults and meanings, and sequences their layout. With
    ``return_dict_in_generate`` there are sequences alone. Text generation is left as it is. Sampling draws
    its seeds from torch's global generator.

    An image is wanted where Janus's ``generation_mode`` says so, and where the prompts of Emu3 and of a Chameleon
    (Lumina-mGPT, Anole) end at the first token of an image: with Emu3's ``return_for_image_generation``, or with
    Chameleon's begin-of-image and Lumina-mGPT's size. Emu3 needs no ``prefix_allowed_tokens_fn`` then, and takes the
    documented one. ``max_new_tokens`` cuts their sequences as ever; ``max_length``, 20 more by default, does not.

    Args:
        model: a ``JanusForConditionalGeneration``, ``Emu3ForConditionalGeneration`` or
            ``ChameleonForConditionalGeneration``, plain or compiled, on any devices.
        strategy: the order of decoding; None for ``ZipAR()``.

    Returns:
        A handle: ``undo()`` it, or use it as a context manager, which gives the model and undoes at its end.

    Raises:
        ZipARError: a model of another class. ``model.generate`` then raises it for an argument that cannot be honoured.
    """
    return Acceleration(getattr(model, "_orig_mod", model), strategy)


def _accelerated(model: Any, strategy: Strategy | None) -> Any:
    family = family_of(model)
    own = model.generate
    signature = inspect.signature(own)
    decoding = functools.partial(generate, strategy=strategy)

    @functools.wraps(own)
    def accelerated(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        if not family.wanted(model, arguments):
            return own(*args, **kwargs)
        for name in _REFUSED:
            value = arguments.get(name)
            if name not in family.arguments and value is not None and value is not False and value != []:
                raise refusal(name, type(value).__name__)
        return family.run(model, arguments, decoding)

    return accelerated
