"""Image decoding behind ``generate`` of transformers, as a callable for its ``custom_generate``."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from zipar.decoding.names import strategy_of
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.errors import ZipARError
from zipar.integrations.families import Call, Family, family_of
from zipar.models.decodings import decodings

_HONOURED = {
    *("bos_token_id", "do_sample", "eos_token_id", "guidance_scale", "min_p", "num_return_sequences", "pad_token_id"),
    *("return_dict_in_generate", "temperature", "top_k", "top_p"),
}
# an image is decoded whole, with a cache as large, whatever these say; max_new_tokens then cuts the sequence
_MOOT = {
    *("cache_config", "cache_implementation", "compile_config", "continuous_batching_config", "disable_compile"),
    *("max_cache_len", "max_length", "max_new_tokens", "prefill_chunk_size", "transformers_version", "use_cache"),
}

_PROCESSORS = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
    UnbatchedClassifierFreeGuidanceLogitsProcessor: "guidance_scale",
}
"""What transformers makes of the config, and of which setting."""


def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    strategy: Strategy | str | None = None,
    image_guidance_scale: float | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decode images: ``model.generate(**inputs, custom_generate=zipar.generate, strategy=zipar.ZipAR(8))``.

    transformers prepares the arguments and calls this in place of its own loop. Seeds are drawn from torch's
    global generator, so ``torch.manual_seed`` makes sampling reproducible; the processes of a tensor-parallel
    group must be seeded alike, as for transformers' own sampling. transformers keeps ``streamer``,
    ``assistant_model`` and ``synced_gpus`` from such a callable; ``zipar.accelerate`` refuses them.

    Args:
        model: a model of a family that zipar supports.
        input_ids: int64 (images, length), padded on the left.
        strategy: the order of decoding, or its name, such as "zipar:8"; None for ``zipar.DEFAULT``.
        image_guidance_scale: used instead of ``guidance_scale``. Janus needs it: its ``generate`` takes
            ``custom_generate`` in text mode alone, that is without ``generation_mode``, where it discards
            ``guidance_scale`` (and ``logits_processor``). ``zipar.accelerate`` has no such restriction.

    Returns:
        Sequences in the layout of the model's own ``generate``.

    Raises:
        ZipARError: an argument that cannot be honoured, by its name.
    """
    family = family_of(model)
    strategy = strategy_of(strategy)
    if not (isinstance(generation_config, GenerationConfig) and isinstance(input_ids, Tensor) and input_ids.ndim == 2):
        raise ZipARError(
            "zipar.generate runs inside of transformers: call model.generate(..., custom_generate=zipar.generate)"
        )
    processors, criteria = list(logits_processor or ()), list(stopping_criteria or ())
    _check_config(generation_config)
    _check_objects(family, generation_config, processors, criteria)
    _check_inputs(model, family, input_ids, model_kwargs)
    if image_guidance_scale is None:
        image_guidance_scale = family.guidance_scale(generation_config)
    sampling = _sampling(generation_config, image_guidance_scale)
    constraints = [processor for processor in processors if isinstance(processor, PrefixConstrainedLogitsProcessor)]
    mask = model_kwargs.get("attention_mask")
    valid = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if not bool(valid[:, -1].all()):
        raise ZipARError("attention_mask has padding after the tokens of a prompt: pad on the left")
    call = Call(input_ids, valid, *_negative(processors), constraints, generation_config, sampling.guided, model_kwargs)
    _bring_back(model)
    visual = family.visual(model, call)
    graphs = not generation_config.disable_compile and visual.capturable()
    images = len(input_ids)
    seeds = torch.randint(2**63 - 1, (images,)).tolist() if generation_config.do_sample else [0] * images
    with torch.inference_mode(), torch.autocast(visual.device.type, enabled=False):
        prefix, grids = family.read(visual, call)
        visual.fitting(prefix, *grids)
        done = decodings(visual, prefix, grids, strategy, sampling, seeds, cuda_graphs=graphs)
        tokens = torch.cat([each.decoded.tokens for each in done], 1)
    # cloned: autograd refuses tensors made in inference mode, and the caller may not be in it
    sequences = family.write(visual, call, tokens.clone()).to(input_ids)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
    return sequences


def refusal(name: str, value: Any) -> ZipARError:
    """The error over an argument of ``generate`` that would be passed over."""
    return ZipARError(
        f"{name} ({value}) cannot be honoured where zipar decodes an image: leave it out, "
        "or let the model's own generate do it"
    )


def _bring_back(model: Any) -> None:
    """Have a model that accelerate keeps elsewhere between calls, as diffusers offloads it, where it runs."""
    hook: Any = getattr(model, "_hf_hook", None)
    if hasattr(hook, "prev_module_hook"):  # of accelerate's hooks, the one that moves the whole model
        hook.pre_forward(model)


def _sampling(config: GenerationConfig, guidance_scale: float) -> Sampling:
    if not config.do_sample:
        return Sampling(guidance_scale, temperature=0)
    temperature = 1.0 if config.temperature is None else config.temperature
    top_p = 1.0 if config.top_p is None else config.top_p
    return Sampling(guidance_scale, temperature, config.top_k or 0, top_p, config.min_p or 0.0)


def _negative(processors: list[Any]) -> tuple[Tensor | None, Tensor | None]:
    """``negative_prompt_ids`` and their mask, which transformers hands over inside a processor."""
    for processor in processors:
        if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            context: dict[str, Any] = processor.unconditional_context
            return context["input_ids"], context["attention_mask"]
    return None, None


def _check_config(config: GenerationConfig) -> None:
    defaults = config._get_default_generation_params()
    for name in sorted(vars(GenerationConfig()).keys() - _HONOURED - _MOOT, reverse=True):  # new_tokens sets length
        value = getattr(config, name, None)
        if not name.startswith("_") and value not in (None, False, defaults.get(name)):
            raise refusal(name, value)


def _check_objects(family: Family, config: GenerationConfig, processors: list[Any], criteria: list[Any]) -> None:
    for processor in processors:
        if isinstance(processor, PrefixConstrainedLogitsProcessor) and "prefix_allowed_tokens_fn" in family.arguments:
            continue
        # one that transformers made of the config agrees with it; one that was given may not, and would be passed over
        name = _PROCESSORS.get(type(processor), "")
        if not name or getattr(processor, name) != getattr(config, name):
            raise refusal("logits_processor", type(processor).__name__)
    if "negative_prompt_ids" not in family.arguments and (ids := _negative(processors)[0]) is not None:
        raise refusal("negative_prompt_ids", f"of shape {tuple(ids.shape)}")
    for criterion in criteria:
        if not isinstance(criterion, EosTokenCriteria | MaxLengthCriteria):
            raise refusal("stopping_criteria", type(criterion).__name__)


def _check_inputs(model: Any, family: Family, input_ids: Tensor, inputs: dict[str, Any]) -> None:
    """Raise for inputs of the model other than those that transformers itself prepares from the prompt."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    for name in ("cache", "past_key_values"):  # its name before transformers 5.24
        if (cache := inputs.get(name)) is not None and cache.get_seq_length() > 0:
            raise refusal(name, f"of {cache.get_seq_length()} tokens")
    if positions is not None:
        usual = model._prepare_position_ids_for_generation(input_ids, {"attention_mask": mask})
        if positions.shape[-1] != usual.shape[-1] or bool((positions != usual).any()):
            raise refusal("position_ids", "other than those that the attention mask tells")
    if inputs.get("mm_encoder_outputs") and "mm_encoder_outputs" not in family.arguments:
        raise refusal("pixel_values", "an image to read")
    prepared = {
        *("attention_mask", "cache", "logits_to_keep", "mm_encoder_outputs", "past_key_values", "position_ids"),
        "use_cache",
    }
    for name, value in inputs.items():
        if name not in prepared | family.arguments and value is not None:
            raise refusal(name, type(value).__name__)
