import copy
import gc
import importlib.util
import json
import os
import shutil
import tempfile
from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    ByT5Tokenizer,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageProcessor,
    GPT2Tokenizer,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5EncoderModel,
)
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from zipar import ZipARError
from zipar.conversion import emu35, liquid, llamagen, lumina_mgpt2, simplear
from zipar.conversion.lumina_mgpt import convert
from zipar.decoding.sampling import Sampling
from zipar.image_tokenizers.chameleon import ChameleonImageDecoder
from zipar.image_tokenizers.commavq import CommaVQTokenizer
from zipar.image_tokenizers.cosmos import CausalConv3d, CosmosTokenizer, CosmosTokenizerConfig, nearest
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.clips import Clips
from zipar.models.commavq import GPT, CommaVQ, CommaVQConfig
from zipar.models.cosmos import Cosmos, CosmosConfig
from zipar.models.cosmos import Transformer as CosmosDecoder
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer
from zipar.models.lumina_mgpt import Anole, LuminaMGPT
from zipar.prompts import PromptVocabulary

settings.register_profile("zipar", deadline=None, derandomize=True)
settings.load_profile("zipar")


def pytest_collection_finish():
    gc.freeze()  # what was imported stays, so no collection need look through it again


@pytest.fixture
def forbidding():
    """A folder open to all, and a context in which permissions count: that of nobody, where root runs the tests."""
    if not hasattr(os, "setresuid"):
        pytest.skip("permissions are those of Linux")
    folder, ids = Path(tempfile.mkdtemp()), os.getresuid()
    folder.chmod(0o777)

    @contextmanager
    def as_nobody():
        os.setresuid(*(65534, 65534, 0) if ids[1] == 0 else ids)
        try:
            yield
        finally:
            os.setresuid(*ids)

    with as_nobody():
        usable = os.access(folder, os.W_OK)
    if not usable:
        pytest.skip(f"nobody may use {folder.parent}")
    yield folder, as_nobody
    shutil.rmtree(folder)


@pytest.fixture
def small_files():
    """Lets no file grow beyond a number of bytes, as a full disk would: with small_files(600): ..."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def check_written(small_files, tmp_path):
    """Checks what makes a directory, check_written(make): the modes are the umask's; a full disk leaves nothing."""

    def check(make):
        with small_files(5000), pytest.raises(ZipARError, match=r"full cannot be written: .*File too large"):
            make(tmp_path / "full")
        before = os.umask(0o027)
        try:
            make(tmp_path / "made")
        finally:
            os.umask(before)
        assert {path.name for path in tmp_path.iterdir()} == {"made"}
        modes = {path: path.stat().st_mode & 0o777 for path in [tmp_path / "made", *(tmp_path / "made").rglob("*")]}
        assert all(mode == (0o750 if path.is_dir() else 0o640) for path, mode in modes.items()), modes

    return check


def _words(prompts):
    """A stand-in for T5's tokenizer: one id a word, and the end of sentence (1)."""
    return {"input_ids": [[2 + sum(map(ord, word)) % 60 for word in prompt.split()] + [1] for prompt in prompts]}


@pytest.fixture(scope="session")
def tiny_models():
    """Random LlamaGens of 6 x 6 tokens with grouped heads: of a class, and of text."""
    torch.manual_seed(0)
    shape = {"layers": 2, "heads": 4, "kv_heads": 2, "dim": 32, "vocab_size": 50, "grid_side": 6, "multiple_of": 16}
    by_class = Transformer(LlamaGenConfig(classes=10, **shape))
    by_text = Transformer(LlamaGenConfig(caption_dim=16, prefix_length=8, **shape))
    for decoder in by_class, by_text:
        for name, weight in decoder.named_parameters():
            if not name.endswith("norm.weight"):
                torch.nn.init.normal_(weight, std=0.3)
    text_encoder = T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2))
    image_tokenizer = VQModel(VQConfig(50, 4, 16, (1,), 1, 16, 4))
    models = SimpleNamespace(
        by_class=LlamaGen(by_class, image_tokenizer),
        by_text=LlamaGen(by_text, image_tokenizer, text_encoder, _words),
    )
    for model in vars(models).values():
        model.eval().requires_grad_(False)
    return models


@pytest.fixture(scope="session")
def tiny_clips():
    """A random Clips of text: 3 frames of 4 x 4 tokens, 8 x 8 pixels."""
    torch.manual_seed(0)
    shape = {
        "layers": 2,
        "heads": 2,
        "dim": 32,
        "vocab_size": 50,
        "grid_side": 4,
        "multiple_of": 16,
        "rope_base": 100.0,
        "frames": 3,
    }
    decoder = Transformer(LlamaGenConfig(caption_dim=16, prefix_length=8, **shape))
    for name, weight in decoder.named_parameters():
        if not name.endswith("norm.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    text_encoder = T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "</s>", *WORDS])}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    text_tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    image_tokenizer = VQModel(VQConfig(50, 4, 16, (1, 1), 1, 16, 4))
    sampling = Sampling(guidance_scale=2.0)
    clips = Clips(decoder, image_tokenizer, text_encoder, text_tokenizer, sampling, fps=8)
    return clips.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def clips_directory(tiny_clips, tmp_path_factory):
    """``tiny_clips`` as a checkpoint."""
    directory = tmp_path_factory.mktemp("models") / "clips"
    llamagen.write(tiny_clips, directory)
    return directory


@pytest.fixture(scope="session")
def class_names():
    """A vocabulary that names ten classes."""
    names = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
    values = {name: list(dict.fromkeys([name, name.replace("-", " ")])) for name in names}
    return PromptVocabulary({"class": values}, ["class"], ["a", "an", "the"], names[0])


@pytest.fixture(scope="session")
def janus_directory(tmp_path_factory):
    """A random Janus of 6 x 6 tokens with grouped heads and its processor, as transformers saves them."""
    directory = tmp_path_factory.mktemp("janus")
    special = ["<pad>", "<s>", "</s>", "<image>", "<begin_of_image>", "<end_of_image>", "<unk>"]
    words = ["User", "Assistant", ":", "a", "red", "fox", "in", "the", "snow", "two", "small", "birds", "blurry"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = ("pad", "bos", "eos", "image", "boi", "eoi", "unk")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": word for name, word in zip(names, special, strict=True)},
    )
    template = (
        "{% for message in messages %}User: {{ message.content[0].text }} {% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    image_processor = JanusImageProcessorPil(
        size={"height": 12, "width": 12}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    JanusProcessor(image_processor, tokenizer, template, num_image_tokens=36).save_pretrained(directory)

    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=12,
            patch_size=2,
            mlp_ratio=1.0,
            projection_dim=32,
            depth=1,
            num_image_tokens=36,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=4,
            num_embeddings=50,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=32,
            image_token_embed_dim=32,
        ),
        image_token_id=3,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, guidance_scale=5.0, temperature=1.0
    )
    model.generation_config.generation_kwargs = {"boi_token_id": 4}  # where the published checkpoints have it
    model.save_pretrained(directory)
    return directory


EMU3_CODEBOOK = 40


def _emu3_tokenizer(scrambled):
    """Bytes, and the special tokens of the published vocabulary; visual tokens in order, or in disorder."""
    visual = (
        torch.randperm(EMU3_CODEBOOK, generator=torch.Generator().manual_seed(0)) if scrambled else range(EMU3_CODEBOOK)
    )
    words = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"),
        *(f"<|extra_{i}|>" for i in range(1, 205)),
        *("<|image token|>", "<|image start|>", "<|image end|>"),
        *(f"<|visual token {code:06}|>" for code in visual),
    ]
    built = GPT2Tokenizer(
        {word: i for i, word in enumerate(words)},
        [],
        bos_token="<|extra_203|>",
        eos_token="<|extra_204|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<|image start|>",
            "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>",
            "eof_token": "<|extra_201|>",
        },
    )
    built.add_special_tokens({"additional_special_tokens": words[256:]}, replace_extra_special_tokens=False)
    return built


def _write_emu3(directory, scrambled):
    words = _emu3_tokenizer(scrambled)
    vocabulary = words.get_vocab()
    config = Emu3Config(
        vocabulary_map=vocabulary,
        text_config={
            "vocab_size": len(vocabulary) + 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 400,
            "initializer_range": 0.3,
            "bos_token_id": vocabulary["<|extra_203|>"],
            "eos_token_id": vocabulary["<|extra_204|>"],
            "pad_token_id": vocabulary["<|endoftext|>"],
        },
        vq_config={
            "codebook_size": EMU3_CODEBOOK,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [1],
            "hidden_size": 32,
            "temporal_downsample_factor": 2,
        },
    )
    torch.manual_seed(0)
    Emu3ForConditionalGeneration(config).eval().save_pretrained(directory)
    normalised = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    Emu3Processor(Emu3ImageProcessor(**normalised), words).save_pretrained(directory)


@pytest.fixture(scope="session")
def emu3_directories(tmp_path_factory):
    """Random Emu3s and their processors, as transformers saves them: emu3_directories(scrambled) -> a directory."""
    written = {}

    def make(scrambled):
        directory = tmp_path_factory.mktemp("emu3")
        _write_emu3(directory, scrambled)
        return directory

    return lambda scrambled: (
        written[scrambled] if scrambled in written else written.setdefault(scrambled, make(scrambled))
    )


def _recipe(name):
    """A script of tests/data that recorded what authors compute: its tiny models, and how their weights are made."""
    path = Path(__file__).parent / "data" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


@pytest.fixture(scope="session")
def lumina_recipe():
    return _recipe("lumina_mgpt")


@pytest.fixture(scope="session")
def emu35_recipe():
    return _recipe("emu35")


@pytest.fixture(scope="session")
def emu35_files(emu35_recipe, tmp_path_factory):
    """A folder with published files in small: model, the decoder with its words and the code of a hub, and vision."""
    recipe, folder = emu35_recipe, tmp_path_factory.mktemp("emu35")
    model, vision = folder / "model", folder / "vision"
    for directory in (model, vision):
        directory.mkdir()
        (directory / "modeling_emu3.py").write_text("raise SystemExit('code from a hub')")
    recipe.write_words(model)
    config = {"architectures": ["Emu3ForCausalLM"], "model_type": "Emu3", "rope_scaling": None, **recipe.DECODER}
    (model / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoConfig": "configuration_emu3.Emu3Config"}})
    )
    weights = list(recipe.published("decoder").items())
    index = {}
    for number, shard in enumerate((dict(weights[:9]), dict(weights[9:])), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(shard, model / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (vision / "config.yaml").write_text("ddconfig: {}\n")
    torch.save({"state_dict": recipe.published("image_tokenizer")}, vision / "model.ckpt")
    return folder


@pytest.fixture(scope="session")
def emu35_directory(emu35_files, tmp_path_factory):
    """The published files converted; small images are the sizes to make."""
    out = tmp_path_factory.mktemp("converted") / "emu35"
    emu35.convert(emu35_files / "model", emu35_files / "vision", out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"sizes": [[4, 6], [6, 4], [3, 5]]}))
    return out


@pytest.fixture(scope="session")
def janus_recipe():
    return _recipe("janus")


@pytest.fixture(scope="session")
def commavq_recipe():
    return _recipe("commavq")


@pytest.fixture(scope="session")
def commavq(commavq_recipe):
    """A commaVQ of 3 x 4 tokens a frame and 4 frames, with the weights that the recorded one has."""
    recipe = commavq_recipe
    shape = {"layers": recipe.DECODER["n_layer"], "heads": recipe.DECODER["n_head"], "dim": recipe.DECODER["dim"]}
    grid = {"codes": recipe.CODES, "rows": recipe.ROWS, "columns": recipe.COLUMNS, "frames": recipe.FRAMES}
    latent = recipe.IMAGE_TOKENIZER["z_channels"]
    image_tokenizer = CommaVQTokenizer(VQConfig(recipe.CODES, latent, 32, (1, 1, 2), 1, latent))
    decoder = GPT(CommaVQConfig(**shape, **grid))
    for part in (decoder, image_tokenizer.encoder, image_tokenizer.decoder):
        recipe.fill(part)
    return CommaVQ(decoder, image_tokenizer).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def cosmos_recipe():
    return _recipe("cosmos")


@pytest.fixture(scope="session")
def cosmos_tokenizer(cosmos_recipe):
    """The tiny video tokenizer of the recordings."""
    size = cosmos_recipe.TOKENIZER
    shape = (size["channels"], size["channels_mult"], size["num_res_blocks"], size["z_channels"], size["levels"])
    tokenizer = CosmosTokenizer(CosmosTokenizerConfig(*shape))
    tokenizer.load_state_dict(cosmos_recipe.made_up(cosmos_recipe.shapes_of(tokenizer)))
    return tokenizer.eval().requires_grad_(False)


class Buffers(nn.Module):
    """Something that the authors' tokenizer holds and never learnt."""

    def __init__(self, **buffers):
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)


class Quantizer(Buffers):
    def __init__(self, levels):
        levels = torch.tensor(levels, dtype=torch.int32)
        super().__init__(_levels=levels, _basis=levels.cumprod(0), implicit_codebook=torch.zeros(60, 3))

    def forward(self, latents):
        return nearest(latents, self._levels.tolist())


class Inverse(nn.Module):
    def __init__(self, levels):
        super().__init__()
        self.quantizer = Quantizer(levels)

    def forward(self, latents):
        return latents


def _publish_cosmos_tokenizer(folder, tokenizer, halves=True, idle=False):
    """A video tokenizer as it is published: the TorchScript of its halves, or of the whole.

    ``idle``: with convolutions between levels that the authors do not use, as in their first release.
    """
    folder.mkdir()
    tokenizer, pixels = copy.deepcopy(tokenizer), torch.zeros(1, 3, 9, 32, 32)
    if idle:
        half, double = tokenizer.encoder.down[1].downsample, tokenizer.decoder.up[2].upsample
        assert half.conv2 is None
        assert double.conv1 is None
        half.conv2, double.conv1 = (
            CausalConv3d(len(beside.conv3d.bias), len(beside.conv3d.bias), (3, 1, 1), stride=(stride, 1, 1))
            for beside, stride in ((half.conv3, 2), (double.conv3, 1))
        )
    levels = tokenizer.config.levels
    wavelets = {"wavelets": torch.ones(2), "_arange": torch.arange(2)}
    tokenizer.encoder.patcher3d = Buffers(**wavelets, patch_size_buffer=torch.full([1], 4, dtype=torch.int32))
    tokenizer.decoder.unpatcher3d = Buffers(**wavelets)
    parts = ("encoder", tokenizer.encoder), ("quant_conv", tokenizer.quant_conv), ("quantizer", Quantizer(levels))
    back = ("post_quant_conv", tokenizer.post_quant_conv), ("decoder", tokenizer.decoder)
    latents, trace = torch.zeros(1, len(levels), 2, 2, 2), partial(torch.jit.trace, check_trace=False)
    if halves:
        trace(nn.Sequential(OrderedDict(parts)), pixels).save(folder / "encoder.jit")
        inverse = [("inv_quant", Inverse(levels)), *back]
        trace(nn.Sequential(OrderedDict(inverse)), latents).save(folder / "decoder.jit")
    else:
        whole = nn.ModuleDict(OrderedDict([*parts, *back]))
        whole.forward = lambda latents: tokenizer.decoder(tokenizer.post_quant_conv(latents))
        trace(whole, latents).save(folder / "autoencoder.jit")
    return folder


@pytest.fixture(scope="session")
def publish_cosmos_tokenizer():
    return _publish_cosmos_tokenizer


@pytest.fixture(scope="session")
def cosmos_models(cosmos_recipe, cosmos_tokenizer):
    """The tiny models of the recordings, of 3 x 6 tokens a frame: cosmos_models("yarn"), or "plain"."""
    size = cosmos_recipe.DECODER
    shape = [size[name] for name in ("n_layers", "dim", "n_heads", "n_kv_heads", "head_dim", "ffn_hidden_size")]
    made = {}
    for name, trained in cosmos_recipe.YARN.items():
        config = CosmosConfig(*shape, cosmos_tokenizer.config.codebook_size, cosmos_recipe.GRID, trained)
        decoder = CosmosDecoder(config)
        decoder.load_state_dict(cosmos_recipe.made_up(cosmos_recipe.shapes_of(decoder), 1))
        made[name] = Cosmos(decoder, cosmos_tokenizer).eval().requires_grad_(False)
    return made.__getitem__


@pytest.fixture(scope="session")
def lumina2_recipe():
    return _recipe("lumina_mgpt2")


def _write_chameleon(directory, recipe, settings, network, vocabulary, words):
    """A published Lumina-mGPT in small: two shards, with a norm for each shard that it was trained in."""
    directory.mkdir()
    shapes = {key: value.shape for key, value in network.state_dict().items() if "vqmodel" not in key}
    head = settings["hidden_size"] // settings["num_attention_heads"]
    norm = torch.Size([settings["model_parallel_size"], head])
    shapes |= {key: norm for key in shapes if "q_norm" in key or "k_norm" in key}
    shards = [{}, {}]
    for number, (key, value) in enumerate(recipe.made_up(shapes, 0).items()):
        shards[number % 2][key] = value
    index = {}
    for number, shard in enumerate(shards, 1):
        save_file(shard, directory / f"model-{number}.safetensors", metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, f"model-{number}.safetensors"))
    published = {
        **settings,
        "model_type": "chameleon",
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "vocabulary_map": vocabulary,
        "vq_config": {"model_type": "chameleon_vqgan"},
        "z_loss_weight": 1e-05,
    }
    (directory / "config.json").write_text(json.dumps(published))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    first = "<s>" if "<s>" in vocabulary else "<|endoftext|>"
    tokenizer = Tokenizer(models.WordLevel(vocabulary | words, "<unk>" if "<unk>" in vocabulary else first))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in vocabulary if word.startswith("<")])
    special = [(first, vocabulary[first])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=special)
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="session")
def lumina2_files(lumina_recipe, lumina2_recipe, tmp_path_factory):
    """A folder with the published files of Lumina-mGPT 2.0 in small: lumina, the model, and movqgan_270M.ckpt."""
    folder, recipe = tmp_path_factory.mktemp("lumina2"), lumina2_recipe
    with torch.device("meta"):
        network = ChameleonForConditionalGeneration(ChameleonConfig(**recipe.DECODER, vocabulary_map={}))
    words = {word: 200 + i for i, word in enumerate([*PROMPT_WORDS, "32x64", "64x32", "64x64"])} | recipe.WORDS
    _write_chameleon(folder / "lumina", lumina_recipe, recipe.DECODER, network, recipe.vocabulary(), words)
    special = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}}
    (folder / "lumina" / "tokenizer_config.json").write_text(json.dumps(special))

    recorded = load_file(Path(__file__).parent / "data" / "lumina_mgpt2.safetensors")
    shapes = {name: torch.Size(shape.tolist()) for name, shape in recorded.items() if name.startswith("movqgan.")}
    shapes = {name.removeprefix("movqgan."): shape for name, shape in shapes.items()}
    training = {"encoder.conv_in.weight": torch.zeros(3), "ema_decoder.num_updates": torch.tensor(3)}
    torch.save(lumina_recipe.made_up(shapes, 1) | training, folder / "movqgan_270M.ckpt")
    return folder


@pytest.fixture(scope="session")
def lumina2_directory(lumina2_files, tmp_path_factory):
    """The published files converted."""
    out = tmp_path_factory.mktemp("converted") / "lumina_mgpt2"
    published = lumina2_files / "lumina", lumina2_files / "movqgan_270M.ckpt"
    lumina_mgpt2.convert(*published, out, image_size=64, dtype=torch.float32)
    return out


@pytest.fixture(scope="session")
def lumina_files(lumina_recipe, tmp_path_factory):
    """Writes published files in small: lumina_files("7b") -> a folder with lumina, the model, and vqgan.ckpt."""
    recipe, written = lumina_recipe, {}
    words = {word: 8900 + i for i, word in enumerate(WORDS)}
    multipliers = recipe.IMAGE_TOKENIZER["ch_mult"]
    vq_config = {
        "embed_dim": 4,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": multipliers,
        "num_res_blocks": 1,
    }

    def write(name):
        folder = tmp_path_factory.mktemp(name)
        settings = {**recipe.DECODER, **recipe.SIZES[name]}
        vocabulary = recipe.vocabulary()
        with torch.device("meta"):
            config = ChameleonConfig(**settings, vocabulary_map=vocabulary, vq_config=vq_config)
            network = ChameleonForConditionalGeneration(config)
            image_decoder = ChameleonImageDecoder(VQConfig(8192, 4, 32, multipliers, 1, 8))
        _write_chameleon(folder / "lumina", recipe, settings, network, vocabulary, words)
        shapes = {key: value.shape for key, value in network.model.vqmodel.state_dict().items()}
        shapes |= {key: value.shape for key, value in image_decoder.state_dict().items()}
        checkpoint = {"state_dict": {**recipe.made_up(shapes, 1), "loss.logvar": torch.zeros(1)}}
        torch.save(checkpoint, folder / "vqgan.ckpt")
        return folder

    return lambda name: written[name] if name in written else written.setdefault(name, write(name))


PROMPT_WORDS = ["Generate", "an", "image", "of", "according", "to", "the", "following", "prompt", ":"]
WORDS = [*PROMPT_WORDS, "96x64", "64x96", "96x96", "a", "red", "fox", "in", "snow", "bird"]
"""What the tiny Lumina-mGPT reads: ids from 8900 on."""


@pytest.fixture(scope="session")
def lumina_models(lumina_files, tmp_path_factory):
    """Converts the published files: lumina_models("7b") -> a directory for zipar.pipeline."""
    written = {}

    def make(name, family=LuminaMGPT):
        files, out = lumina_files(name), tmp_path_factory.mktemp("converted") / family.family
        convert(files / "lumina", files / "vqgan.ckpt", out, family=family, image_size=96, dtype=torch.float32)
        return out

    return lambda *key: written[key] if key in written else written.setdefault(key, make(*key))


SPOKEN = ["a", "red", "fox", "in", "the", "snow", "bird", "two", "small", "birds", "blurry", "image", "of", "A", "An"]
EXTENDED_CODES = 64
"""Of the tiny models whose vocabulary goes on with a codebook behind the words of their tokenizers."""


def _spoken(special):
    """A tokenizer of a few words, with special ones before them, the last of which stands for any other."""
    vocabulary = {word: i for i, word in enumerate([*special, *SPOKEN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, special[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    return tokenizer


def _publish(network, directory, **settings):
    """A random language model as its authors published it, in several files, with a config of older versions."""
    torch.manual_seed(0)
    for weight in network.parameters():
        weight.data = 0.3 * torch.randn_like(weight) if weight.ndim > 1 else weight + 0.1 * torch.randn_like(weight)
    network.save_pretrained(directory, max_shard_size="30KB")
    config = json.loads((directory / "config.json").read_text())
    for name in ("dtype", "rope_parameters", "layer_types"):
        config.pop(name, None)
    published = {**config, "rope_theta": 10000.0, "torch_dtype": "bfloat16", **settings}
    (directory / "config.json").write_text(json.dumps(published))


@pytest.fixture(scope="session")
def liquid_files(tmp_path_factory):
    """A Liquid as it is published, in small: a folder with liquid, the model, and vqgan.ckpt."""
    folder = tmp_path_factory.mktemp("liquid")
    tokenizer = _spoken(["<pad>", "<eos>", "<bos>", "<boi>", "<eoi>", "<unconditional>", "<unk>"])
    begin = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", begin)])
    config = GemmaConfig(
        vocab_size=tokenizer.get_vocab_size() + EXTENDED_CODES,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=150,
    )
    _publish(GemmaForCausalLM(config), folder / "liquid", hidden_act="gelu", hidden_activation=None)
    tokenizer.save(str(folder / "liquid" / "tokenizer.json"))
    image_decoder = ChameleonImageDecoder(VQConfig(EXTENDED_CODES, 4, 32, (1, 1, 1, 1, 2), 1, 8))
    weights = {**image_decoder.state_dict(), "encoder.conv_in.weight": torch.zeros(3), "loss.logvar": torch.zeros(1)}
    torch.save({"state_dict": weights}, folder / "vqgan.ckpt")
    return folder


@pytest.fixture(scope="session")
def liquid_directory(liquid_files, tmp_path_factory):
    """The same converted, for 96 x 96 pixels: 6 x 6 tokens."""
    directory = tmp_path_factory.mktemp("converted") / "liquid"
    liquid.convert(liquid_files / "liquid", liquid_files / "vqgan.ckpt", directory, image_size=96)
    return directory


@pytest.fixture(scope="session")
def simplear_files(cosmos_tokenizer, publish_cosmos_tokenizer, tmp_path_factory):
    """A SimpleAR as it is published, in small: a folder with simplear, the model, and tokenizer, that of images."""
    folder = tmp_path_factory.mktemp("simplear")
    tokenizer = _spoken(["<|endoftext|>", "<|t2i|>", "<|i2t|>", "<|soi|>", "<unk>"])
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size() + cosmos_tokenizer.config.codebook_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=150,
        tie_word_embeddings=True,
    )
    network = Qwen2ForCausalLM(config)
    _publish(network, folder / "simplear", architectures=["SimpARForCausalLM"], sliding_window=64)
    tokenizer.save(str(folder / "simplear" / "tokenizer.json"))
    publish_cosmos_tokenizer(folder / "tokenizer", cosmos_tokenizer, idle=True)
    return folder


@pytest.fixture(scope="session")
def simplear_directory(simplear_files, tmp_path_factory):
    """The same converted, for 128 x 128 pixels: 8 x 8 tokens, or 6 x 6, 4 x 4 and 2 x 2."""
    directory = tmp_path_factory.mktemp("converted") / "simplear"
    simplear.convert(simplear_files / "simplear", simplear_files / "tokenizer", directory, image_size=128)
    return directory


GLM_CODES = 64
"""Of the tiny GLM-Image; then come begin of image and end of image, which is padding too, and words."""


@pytest.fixture(scope="session")
def glm_directory(tmp_path_factory):
    """A random GLM-Image and its processor in the layout of diffusers."""
    directory = tmp_path_factory.mktemp("glm_image")
    special = {"bos": "<begin>", "pad": "<end>", "image": "<|image|>", "grid_bos": "<sop>", "grid_eos": "<eop>"}
    words = [
        *(f"<{code}>" for code in range(GLM_CODES)),
        *special.values(),
        "?",
        *["a", "red", "fox", "in", "the", "snow", "bird"],
    ]
    vocabulary = {word: i for i, word in enumerate([*words, *map(str, range(1, 65))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special.values()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        bos_token=special["bos"],
        pad_token=special["pad"],
        extra_special_tokens={f"{name}_token": special[name] for name in ("image", "grid_bos", "grid_eos")},
    )
    template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<begin><|image|><end>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    pixels = GlmImageImageProcessorPil(patch_size=4, merge_size=1, temporal_patch_size=1, size=GLM_PIXELS)
    GlmImageProcessor(pixels, fast, template).save_pretrained(directory / "processor")

    config = GlmImageConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "vision_vocab_size": GLM_CODES + 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 600,
            "pad_token_id": GLM_CODES + 1,
            "eos_token_id": GLM_CODES + 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "image_size": 32,
            "patch_size": 4,
        },
        vq_config={"embed_dim": 8, "num_embeddings": GLM_CODES, "latent_channels": 16},
        image_token_id=vocabulary[special["image"]],
        image_start_token_id=GLM_CODES,
        image_end_token_id=GLM_CODES + 1,
    )
    torch.manual_seed(0)
    model = GlmImageForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.4)
    with torch.no_grad():
        model.lm_head.weight[GLM_CODES:] = 0  # as likely as the mean code, so that none ends its image
    model.save_pretrained(directory / "vision_language_encoder")
    return directory


@pytest.fixture(scope="session")
def glm_pipeline_directory(glm_directory, tmp_path_factory):
    """A whole random GLM-Image in the layout that it is published in."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = GlmImageForConditionalGeneration.from_pretrained(glm_directory / "vision_language_encoder")
    model.generation_config.update(do_sample=True, top_k=1)  # what is drawn does not depend on whose noise it is
    pipe = diffusers.GlmImagePipeline(
        tokenizer=ByT5Tokenizer(),
        processor=GlmImageProcessor.from_pretrained(glm_directory / "processor"),
        text_encoder=T5EncoderModel(T5Config(vocab_size=384, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)),
        vision_language_encoder=model,
        vae=diffusers.AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
            mid_block_add_attention=False,
        ),
        transformer=diffusers.GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=8,
            condition_dim=4,
            prior_vq_quantizer_codebook_size=64,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    out = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(out)
    return out


GLM_PIXELS = {"shortest_edge": 8**2, "longest_edge": 32**2}


@pytest.fixture(scope="session")
def checkpoints(request):
    """A checkpoint of each family that transformers implements: checkpoints("emu3") -> a directory."""
    found = {
        "janus": lambda wanted: wanted("janus_directory"),
        "emu3": lambda wanted: wanted("emu3_directories")(scrambled=False),
        "emu3_5": lambda wanted: wanted("emu35_directory"),
        "lumina_mgpt": lambda wanted: wanted("lumina_models")("7b"),
        "lumina_mgpt2": lambda wanted: wanted("lumina2_directory"),
        "anole": lambda wanted: wanted("lumina_models")("7b", Anole),
        "liquid": lambda wanted: wanted("liquid_directory"),
        "simplear": lambda wanted: wanted("simplear_directory"),
        "glm_image": lambda wanted: wanted("glm_directory"),
    }
    return lambda family: found[family](request.getfixturevalue)
