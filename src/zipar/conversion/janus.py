"""Conversion of Janus from DeepSeek's layout to that of transformers, running none of the code published with it.

The published class is ``MultiModalityCausalLM`` of https://github.com/deepseek-ai/Janus, ``model_type`` multi_modality.
"""

import dataclasses
import re
from collections.abc import Iterator
from functools import partial
from math import isqrt
from pathlib import Path
from string import Template
from typing import Any, cast

import safetensors.torch
import torch
from tokenizers import Tokenizer, processors
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from zipar.checkpoints.files import build, check_tensors, outline, read_config, read_tokenizer
from zipar.conversion.published import (
    Weights,
    count,
    find_shards,
    in_format,
    read_pickle,
    shape_of,
    widest,
    write_shards,
)
from zipar.conversion.vqgan import vqgan_config
from zipar.errors import ZipARError
from zipar.writing import new_directory

ROLES = {
    "janus": ("User", "Assistant"),
    "janus-pro": ("<|User|>", "<|Assistant|>"),
    "janus-4o": ("<|User|>", "<|Assistant|>"),
    "t2i-r1": ("User", "Assistant"),
}
"""What each model was taught to call those who speak. No file says it: the authors' scripts do."""

CHAT = Template(
    "{% set names = {'user': '$user', 'assistant': '$assistant'} %}"
    "{% set ends = {'system': '\\n\\n', 'user': '\\n\\n', 'assistant': '$end'} %}"
    "{% for message in messages %}"
    "{% set parts = [{'text': message.content}] if message.content is string else message.content %}"
    "{% set text = parts | map(attribute='text', default='$image') | join('\\n') | trim %}"
    "{% if message.role in names %}{{ names[message.role] + ':' + (' ' if text else '') }}{% endif %}"
    "{% if text %}{{ text + ends[message.role] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ names.assistant + ':' }}{% endif %}"
)
"""The authors' conversations (``janus/utils/conversation.py``, "deepseek"), as transformers writes such."""

UNUSED = re.compile(r"^vision_model\.vision_tower\.attn_pool\.|^gen_vision_model\.quantize\.codebook_used$")
"""Published tensors that nothing is computed with."""

NAMES = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^gen_embed\.", "model.generation_embeddings."),
    (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"^gen_head\.", "model.generation_head."),
    (r"^gen_aligner\.", "model.generation_aligner."),
    (r"^aligner\.", "model.aligner."),
    (r"aligner\.layers\.0\.", "aligner.fc1."),
    (r"aligner\.layers\.2\.", "aligner.hidden_layers.0."),
    (r"^vision_model\.vision_tower\.", "model.vision_model."),
    (r"vision_model\.pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"vision_model\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"vision_model\.norm\.", "vision_model.post_layernorm."),
    (r"vision_model\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
    (r"vision_model\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection_layer."),
    (r"vision_model\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"vision_model\.blocks\.", "vision_model.encoder.layers."),
    (r"^gen_vision_model\.", "model.vqmodel."),
    (r"vqmodel\.encoder\.conv_blocks\.", "vqmodel.encoder.down."),
    (r"vqmodel\.decoder\.conv_blocks\.", "vqmodel.decoder.up."),
    (r"^(model\.vqmodel\..*)\.res\.", r"\1.block."),
    (r"^(model\.vqmodel\..*)\.mid\.0\.", r"\1.mid.block_1."),
    (r"^(model\.vqmodel\..*)\.mid\.1\.", r"\1.mid.attn_1."),
    (r"^(model\.vqmodel\..*)\.mid\.2\.", r"\1.mid.block_2."),
)
"""Published names of tensors -> transformers', by substitution, one after the other."""


def convert(
    source: Path, out: Path, *, template: str | None = None, dtype: torch.dtype | None = None
) -> set[torch.dtype]:
    """Turn a Janus in DeepSeek's layout into a directory that ``zipar.pipeline`` and transformers load.

    It is converted file by file: no more than one is in memory.

    Args:
        source: directory of the published model, such as deepseek-ai/Janus-Pro-7B: ``config.json``, weights in
            safetensors or pickles, ``tokenizer.json`` and the configs of tokenizer, processor and image processor.
        out: the directory to make.
        template: whose prompts it reads, one of ``ROLES``; None for ``template_of`` its tokenizer.
        dtype: of the stored model, which the authors run in bfloat16; None for each tensor's own.

    Returns:
        The number formats of the stored model.

    Raises:
        ZipARError: a file that is missing, damaged, or not what it should be, files that do not belong
            together, or ``out`` exists. Nothing is written then.
    """
    settings = read_config(source)
    kind = settings.get("model_type")
    if kind != "multi_modality" or "gen_head_config" not in settings:
        raise ZipARError(
            f"{source} holds a model of type {kind!r} that writes no image tokens: give a Janus in DeepSeek's layout, "
            "such as deepseek-ai/Janus-Pro-7B (JanusFlow and DeepSeek-VL are other models)"
        )
    tokenizer = _tokenizer(source)
    files = find_shards(source, ("model.safetensors", "pytorch_model.bin"))
    outlines = {name: tensor.to("meta") for file in files for name, tensor in _renamed(file).items()}
    with build(source), torch.device("meta"):
        config = _config(settings, tokenizer, outlines, source)
        network = JanusForConditionalGeneration(config)
    check_tensors(outlines, network, source)
    processor = _processor(source, tokenizer, template or template_of(source), config)
    formats: set[torch.dtype] = set()

    def converted() -> Iterator[Weights]:
        for file in files:
            tensors = {name: in_format(tensor, dtype).contiguous() for name, tensor in _renamed(file).items()}
            formats.update(tensor.dtype for tensor in tensors.values())
            yield tensors

    with build(source), new_directory(out) as scratch:  # tensors that share their numbers are not written
        write_shards(scratch, converted(), len(files))
        config.dtype = widest(formats)
        config.architectures = [JanusForConditionalGeneration.__name__]
        config.save_pretrained(scratch)
        _generation_config(tokenizer).save_pretrained(scratch)
        processor.save_pretrained(scratch)
    return formats


def template_of(source: Path) -> str:
    """The template of a published directory, by its tokenizer: "janus-pro", unless that knows no such speakers.

    T2I-R1 has the tokenizer of Janus-Pro, but not its template.

    Raises:
        ZipARError: the tokenizer is missing or damaged.
    """
    words = read_tokenizer(source / "tokenizer.json")
    return "janus-pro" if words.token_to_id(ROLES["janus-pro"][0]) is not None else "janus"


def _renamed(file: Path) -> Weights:
    """The tensors of a published file by transformers' names, in its shapes; they are mapped where the file can be.

    Raises:
        ZipARError: the file is missing or damaged.
    """
    if file.suffix == ".safetensors":
        outline(file)  # raises where it is damaged
        weights = safetensors.torch.load_file(file)
    else:
        weights, _ = read_pickle(file, ())
    renamed: Weights = {}
    for name, tensor in weights.items():
        if UNUSED.search(name):
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if ".self_attn.qkv." in name and tensor.ndim:
            parts = zip("qkv", tensor.chunk(3), strict=False)
            renamed |= {name.replace("qkv", f"{letter}_proj"): part for letter, part in parts}
        else:
            renamed[name] = tensor.squeeze(0) if name.endswith("position_embedding.weight") else tensor
    return renamed


def _config(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast, weights: Weights, source: Path
) -> JanusConfig:
    """The config, by the published one for text, and by the shapes of tensors for images.

    Raises:
        ZipARError: these are not the weights of a Janus.
    """
    shape, vision = partial(shape_of, weights, source, "Janus"), "model.vision_model."
    width, _, patch, _ = shape(f"{vision}embeddings.patch_embedding.weight", 4)
    patches, _ = shape(f"{vision}embeddings.position_embedding.weight", 2)
    inner, _ = shape(f"{vision}encoder.layers.0.mlp.fc1.weight", 2)
    vq = vqgan_config({name.removeprefix("model.vqmodel."): each for name, each in weights.items()}, source, "Janus")
    hidden, text_dim = shape("model.generation_head.proj_out.weight", 2)
    known = {field.name for field in dataclasses.fields(LlamaConfig)} | {"rope_theta", "rope_scaling"}
    text = {name: value for name, value in settings["language_config"].items() if name in known}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return JanusConfig(
        text_config=LlamaConfig(**text),
        vision_config=JanusVisionConfig(
            hidden_size=width,
            num_hidden_layers=count(weights, f"{vision}encoder.layers."),
            num_attention_heads=max(width // 64, 1),  # of SigLIP
            image_size=isqrt(patches) * patch,
            patch_size=patch,
            mlp_ratio=inner / width,
            projection_dim=shape("model.aligner.fc1.weight", 2)[0],
            depth=1 + count(weights, "model.aligner.hidden_layers."),
            num_image_tokens=patches,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=vq.codebook_dim,
            num_embeddings=vq.codebook_size,
            latent_channels=vq.latent_channels,
            base_channels=vq.channels,
            channel_multiplier=list(vq.channel_multipliers)[::-1],  # decoders of Janus begin with the deepest level
            num_res_blocks=vq.residual_blocks,
            projection_dim=hidden,
            num_hidden_layers=1 + count(weights, "model.generation_aligner.hidden_layers."),
            image_token_embed_dim=text_dim,
        ),
        image_token_id=cast(int, tokenizer.convert_tokens_to_ids(tokenizer.image_token)),
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )


def _tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """The published tokenizer, which begins all text as the authors' class has it, whatever its file says.

    Raises:
        ZipARError: a file is missing or damaged, or the vocabulary lacks a special word.
    """
    tokenizer: Tokenizer = read_tokenizer(source / "tokenizer.json")
    settings, tags = read_config(source, "tokenizer_config.json"), read_config(source, "processor_config.json")
    words = {
        "pad_token": tags.get("pad_tag", "<｜▁pad▁｜>"),
        "image_token": tags.get("image_tag", "<image_placeholder>"),
        "boi_token": tags.get("image_start_tag", "<begin_of_image>"),
        "eoi_token": tags.get("image_end_tag", "<end_of_image>"),
    }
    for name in ("bos_token", "eos_token"):
        word = settings.get(name)
        words[name] = word.get("content") if isinstance(word, dict) else word
    for name, word in words.items():
        known = isinstance(word, str) and (name == "image_token" or tokenizer.token_to_id(word) is not None)
        if not known:
            raise ZipARError(f"{source}: tokenizer.json has no {name} {word!r}: fetch the files of the tokenizer again")
    if settings.get("add_bos_token", True):
        bos = words["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **words)


def _processor(source: Path, tokenizer: PreTrainedTokenizerFast, template: str, config: JanusConfig) -> JanusProcessor:
    """What turns prompts and images into what the model reads.

    Raises:
        ZipARError: no such template, or the settings of images are missing or damaged.
    """
    if template not in ROLES:
        raise ZipARError(f"template {template!r} is not possible: use {', '.join(ROLES)}")
    (user, assistant), vision = ROLES[template], cast(JanusVisionConfig, config.vision_config)
    chat = CHAT.substitute(user=user, assistant=assistant, end=tokenizer.eos_token, image=tokenizer.image_token)
    settings = read_config(source, "preprocessor_config.json")
    kept = ("image_mean", "image_std", "min_size", "rescale_factor", "do_normalize")
    with build(source / "preprocessor_config.json"):
        images = JanusImageProcessorPil(
            size=dict.fromkeys(("height", "width"), cast(int, vision.image_size)),
            **{name: settings[name] for name in kept if name in settings},
        )
    # T2I-R1 has a system prompt of its own
    return JanusProcessor(images, tokenizer, chat, template != "t2i-r1", num_image_tokens=vision.num_image_tokens)


def _generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = GenerationConfig(do_sample=True, guidance_scale=5.0, temperature=1.0, top_k=0, **ids)
    # where transformers looks for it
    config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids(tokenizer.boi_token)}  # type: ignore[attr-defined]
    return config
