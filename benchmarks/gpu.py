"""Shapes of published models on a GPU: seconds an image, and how near a pass comes to what memory allows.

    python benchmarks/gpu.py --output benchmarks/results

Random weights are made on the device, bfloat16, with guidance where the model has it. They accept no sensible drafts,
so ``--acceptance`` says how often a guess comes true. Results go into ``gpu.json`` and ``gpu.md`` after each shape and
batch; a run that was cut off goes on where it stopped if it is started again with the same options. ``--toy`` tries all
of it on a CPU.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import (
    ChameleonConfig,
    Emu3Config,
    Emu3ForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from zipar.decoding.decodable import Prefix
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.lane import Lane
from zipar.decoding.raster import Raster
from zipar.decoding.sampling import Draw, Sampling, gumbel
from zipar.decoding.strategy import Evaluated, Schedule, Step, Strategy
from zipar.decoding.zipar import ZipAR
from zipar.grid import TokenGrid
from zipar.image_tokenizers.chameleon import ChameleonImageDecoder, code_name
from zipar.image_tokenizers.cosmos import CosmosDecoder, CosmosTokenizerConfig
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.backbone import TransformersModel
from zipar.models.base import VisualModel
from zipar.models.emu3 import AFTER_IMAGE, BEFORE_IMAGE, ROW_END, Emu3
from zipar.models.emu35 import IMAGE as EMU35
from zipar.models.emu35 import NAMED_IDS, Emu35
from zipar.models.glm_image import GlmImage
from zipar.models.janus import Janus
from zipar.models.liquid import Liquid
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer
from zipar.models.lumina_mgpt2 import LuminaMGPT2, WithoutImageEncoder
from zipar.models.mixed_modal import TOKEN_SIDE
from zipar.models.simplear import SimpleAR

STATIC: dict[str, Strategy] = {"raster": Raster(), "ZipAR 8": ZipAR(8), "ZipAR 4": ZipAR(4)}
DRAFTED: dict[str, Strategy] = {"ZipAR 4, 8 ahead": ZipAR(4, 8), "Jacobi, 16 ahead": CoupledJacobi(16)}
PROFILED = 4
"""Passes that are profiled."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What of a published model costs time: its decoder and its grid."""

    family: str
    layers: int
    dim: int
    heads: int
    hidden: int
    """Width of the SwiGLU layer; LlamaGen derives its own."""
    side: int
    prefix: int
    sampling: Sampling
    kv_heads: int | None = None
    text_vocabulary: int = 0
    codebook: int = 16384
    head_dim: int | None = None
    """Width of a head, where it is not ``dim / heads``."""


CLASS, JANUS, EMU3 = Sampling(4.0, top_k=2000), Sampling(5.0), Sampling(3.0, top_k=2048)
GLM = Sampling(temperature=0.9, top_p=0.75)
LIQUID, SIMPLEAR = Liquid.sampling, SimpleAR.sampling
SHAPES = {
    "LlamaGen-XL": Shape("llamagen", 36, 1280, 20, 0, 24, 1, CLASS),
    "LlamaGen-3B": Shape("llamagen", 24, 3200, 32, 0, 24, 1, CLASS),
    "Janus-Pro-1B": Shape("janus", 24, 2048, 16, 5632, 24, 32, JANUS, None, 102400),
    "Janus-Pro-7B": Shape("janus", 30, 4096, 32, 11008, 24, 32, JANUS, None, 102400),
    "Liquid-7B": Shape("liquid", 28, 3072, 16, 24576, 32, 32, LIQUID, None, 256000, 8192, 256),
    "SimpleAR-0.5B": Shape("simplear", 24, 896, 14, 4864, 64, 32, SIMPLEAR, 2, 151672, 64000),
    "SimpleAR-1.5B": Shape("simplear", 28, 1536, 12, 8960, 64, 32, SIMPLEAR, 2, 151672, 64000),
    # its own grid is 90 x 90, which takes minutes an image
    "Emu3-8B": Shape("emu3", 32, 4096, 32, 14336, 32, 64, EMU3, 8, 184622, 32768),
    "Emu3.5-34B": Shape("emu3_5", 64, 5120, 64, 25600, 64, 64, EMU35, 8, 282926, 131072, 128),
    "Lumina-mGPT 2.0": Shape("lumina_mgpt2", 32, 4096, 32, 11008, 96, 64, LuminaMGPT2.sampling, None, 171392),
    # the large grid of 1024 x 1024 pixels, behind 100 tokens of text and the small grid
    "GLM-Image": Shape("glm_image", 40, 4096, 32, 13696, 32, 100 + 256, GLM, 2, 168064),
}
TOYS = {
    "toy LlamaGen": Shape("llamagen", 2, 32, 4, 0, 6, 1, Sampling(4.0, top_k=20), None, 0, 64),
    "toy Janus": Shape("janus", 2, 32, 4, 48, 6, 3, Sampling(5.0), None, 64, 64),
    "toy Liquid": Shape("liquid", 2, 32, 4, 48, 6, 3, Sampling(7.0, top_k=20, top_p=0.9), None, 64, 64, 16),
    "toy SimpleAR": Shape("simplear", 2, 32, 4, 48, 6, 3, SIMPLEAR, 2, 64, 64),
    "toy Emu3": Shape("emu3", 2, 32, 4, 48, 6, 3, Sampling(3.0), 2, 128, 64),
    "toy Emu3.5": Shape("emu3_5", 2, 32, 4, 48, 6, 3, Sampling(5.0), 2, 128, 64, 16),
    "toy Lumina": Shape("lumina_mgpt2", 2, 32, 4, 48, 6, 3, Sampling(4.0, top_k=20), None, 128, 64),
    "toy GLM-Image": Shape("glm_image", 2, 32, 4, 48, 6, 3, GLM, 2, 128, 64),
}


@dataclass(frozen=True)
class Forced(Strategy):
    """A strategy whose guesses come true with probability ``rate``, each by itself, whatever the model says."""

    strategy: Strategy
    rate: float

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        return ForcedSchedule(self.strategy.schedule(grid, rows, device), self.rate)

    def passes(self, grid: TokenGrid) -> int:
        return self.strategy.passes(grid)

    def fewest_passes(self, grid: TokenGrid) -> int:
        return self.strategy.fewest_passes(grid)


class ForcedSchedule(Schedule):
    """Puts the guess, or another token, in place of each token sampled; chance belongs to (seed, pass, slot)."""

    def __init__(self, inner: Schedule, rate: float) -> None:
        self.inner, self.rate, self.width = inner, rate, inner.width  # no state of its own, so none is kept

    @property
    def rejections(self) -> Tensor:  # type: ignore[override]
        return self.inner.rejections

    @property
    def shown(self) -> Tensor | None:  # type: ignore[override]
        return self.inner.shown

    @property
    def done(self) -> Tensor:
        return self.inner.done

    def prepare(self, vocabulary: int) -> None:
        self.inner.prepare(vocabulary)

    def plan(self, tokens: Tensor) -> Step:
        step = self.inner.plan(tokens)
        self.guesses = tokens.gather(1, step.targets)
        return step

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        targets, vocabulary = evaluated.step.targets, evaluated.logits.shape[-1]
        noise = gumbel(evaluated.draw.seeds + evaluated.passes * 0x2545F4914F6CDD1D, targets, 1)[..., 0]
        true = (-(-noise).exp()).exp() <= self.rate
        guesses = self.guesses[:, : targets.shape[1]]  # a lane drops queries that are idle in all rows
        tokens.scatter_(1, targets, guesses.where(true, (guesses + 1) % vocabulary))
        self.inner.settle(tokens, evaluated)

    def bounds(self, number: int) -> tuple[int, int] | None:
        return self.inner.bounds(number)

    def reset(self, rows: slice) -> None:
        self.inner.reset(rows)

    def move(self, source: int, target: int) -> None:
        self.inner.move(source, target)

    def first(self, rows: int) -> Schedule:
        return ForcedSchedule(self.inner.first(rows), self.rate)


def passes_of(strategy: Strategy, grid: TokenGrid, seeds: list[int], vocabulary: int) -> int:
    """Passes until all images are done, prefill counted: exact, for no token of a model's decides them."""
    if not isinstance(strategy, Forced):
        return strategy.passes(grid)
    schedule = strategy.schedule(grid, len(seeds), torch.device("cpu"))
    tokens = F.pad(grid.blank(), (0, 1)).repeat(len(seeds), 1)
    draw, even = Draw.of(Sampling(), seeds), torch.zeros(())
    passes = torch.ones(len(seeds), dtype=torch.int64)
    while not schedule.done.all():
        step = schedule.plan(tokens)
        logits = even.expand(*step.targets.shape, vocabulary)
        schedule.settle(tokens, Evaluated(step, logits, draw, passes))
        passes += 1
    return int(passes[0])


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> VisualModel:
    """The model with random weights, which are made where and as they are needed."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = BUILDERS[shape.family](shape)
    finally:
        torch.set_default_dtype(default)
    model.eval().requires_grad_(False)
    for module in model.stepped():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.02)
    return model


def _llamagen(shape: Shape) -> VisualModel:
    config = LlamaGenConfig(
        shape.layers, shape.heads, shape.dim, vocab_size=shape.codebook, classes=1000, grid_side=shape.side
    )
    return LlamaGen(Transformer(config), VQModel(VQConfig(shape.codebook, 8, 32, (1, 1, 1, 1, 1), 1, 32)))


def _janus(shape: Shape) -> VisualModel:
    """What is not timed, the image encoder and tokenizer, is small."""
    config = JanusConfig(
        text_config=LlamaConfig(**_llama(shape)),
        vision_config=JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=shape.side * 16,
            patch_size=16,
            projection_dim=shape.dim,
            num_image_tokens=shape.side**2,
        ),
        vq_config=JanusVQVAEConfig(
            num_embeddings=shape.codebook,
            base_channels=32,
            num_res_blocks=1,
            projection_dim=shape.dim,
            image_token_embed_dim=shape.dim,
        ),
        image_token_id=3,
    )
    return Janus(JanusForConditionalGeneration(config))


def _emu3(shape: Shape) -> VisualModel:
    names = ("<image>", *BEFORE_IMAGE, ROW_END, *AFTER_IMAGE)
    first = shape.text_vocabulary - shape.codebook
    vocabulary = {name: number for number, name in enumerate(names)}
    vocabulary |= {f"<|visual token {code:06}|>": first + code for code in range(shape.codebook)}
    config = Emu3Config(
        vocabulary_map=vocabulary,
        text_config=_llama(shape) | {"num_key_value_heads": shape.kv_heads},
        vq_config={
            "codebook_size": shape.codebook,
            "base_channels": 32,
            "num_res_blocks": 1,
            "hidden_size": 32,
            "attn_resolutions": [1],
        },
    )
    return Emu3(Emu3ForConditionalGeneration(config))


def _emu35(shape: Shape) -> VisualModel:
    first = shape.text_vocabulary - shape.codebook
    ids = dict(zip(NAMED_IDS, (first - 3, first - 2, first - 1, first - 8), strict=True))
    return Emu35(Qwen3ForCausalLM(Qwen3Config(**_llama(shape), **ids, head_dim=shape.head_dim)))


def _lumina_mgpt2(shape: Shape) -> VisualModel:
    names = {name: number for number, name in enumerate(("<racm3:break>", "<eoss>", "<reserved08706>"))}
    first = shape.text_vocabulary - shape.codebook
    names |= {code_name(code): first + code for code in range(shape.codebook)}
    return LuminaMGPT2(WithoutImageEncoder(ChameleonConfig(**_llama(shape), vocabulary_map=names)))


def _glm_image(shape: Shape) -> VisualModel:
    half = shape.dim // shape.heads // 4  # of a head's channels half are turned, in pairs
    axes = [half // 4, *[(half - half // 4) // 2] * 2]
    text = _llama(shape) | {
        "num_key_value_heads": shape.kv_heads,
        "vision_vocab_size": shape.codebook + 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": axes,
        },
    }
    config = GlmImageConfig(
        text_config=text,
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 1, "intermediate_size": 16},
        vq_config={"embed_dim": 8, "num_embeddings": shape.codebook, "latent_channels": 16},
    )
    return GlmImage(GlmImageForConditionalGeneration(config)).of(grid_of(shape))


def _liquid(shape: Shape) -> VisualModel:
    image_decoder = ChameleonImageDecoder(VQConfig(shape.codebook, 8, 32, (1, 1, 1, 1, 1), 1, 32))
    network = GemmaForCausalLM(GemmaConfig(**_extended(shape), head_dim=shape.head_dim))
    return Liquid(network, None, image_decoder, TOKEN_SIDE * shape.side, shape.text_vocabulary)


def _simplear(shape: Shape) -> VisualModel:
    image_decoder = CosmosDecoder(CosmosTokenizerConfig(8, (1, 1, 1), 1, 8, (shape.codebook,)))
    network = Qwen2ForCausalLM(Qwen2Config(**_extended(shape), tie_word_embeddings=True))
    return SimpleAR(network, None, image_decoder, TOKEN_SIDE * shape.side, shape.text_vocabulary)


BUILDERS: dict[str, Callable[[Shape], VisualModel]] = {
    "llamagen": _llamagen,
    "janus": _janus,
    "emu3": _emu3,
    "emu3_5": _emu35,
    "lumina_mgpt2": _lumina_mgpt2,
    "liquid": _liquid,
    "simplear": _simplear,
    "glm_image": _glm_image,
}


def _extended(shape: Shape) -> dict[str, Any]:
    return _llama(shape) | {"vocab_size": shape.text_vocabulary + shape.codebook}


def _llama(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.text_vocabulary,
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "max_position_embeddings": 16384,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def grid_of(shape: Shape) -> TokenGrid:
    row_end, *end = range(shape.codebook, shape.codebook + 4)
    ends = {family: {"row_end": row_end} for family in ("emu3", "emu3_5", "lumina_mgpt2")}
    ends["emu3"]["frame_end"] = tuple(end)
    return TokenGrid(shape.side, shape.side, **ends.get(shape.family, {}))


def prefix_of(shape: Shape, batch: int, device: torch.device, dtype: torch.dtype) -> Prefix:
    """Noise in place of what precedes the images."""
    rows = batch * (1 + shape.sampling.guided)
    embeddings = torch.randn(rows, shape.prefix, shape.dim, device=device, dtype=dtype) * 0.02
    positions = None
    if shape.family == "glm_image":
        positions = torch.arange(shape.prefix, device=device)[None, :, None].repeat(rows, 1, 3)
    return Prefix(embeddings, torch.ones(rows, shape.prefix, dtype=torch.bool, device=device), positions=positions)


def weight_bytes(model: VisualModel) -> int:
    """Bytes of the weights that every pass reads: of embeddings a few rows alone, which do not count."""
    read = [module for part in model.stepped() for module in part.modules() if not isinstance(module, nn.Embedding)]
    weights = {id(weight): weight for module in read for weight in module.parameters(recurse=False)}
    total = sum(weight.nbytes for weight in weights.values())
    if isinstance(model, TransformersModel) and model.head_rows is not None:
        total += model.model.lm_head.weight[model.head_rows].nbytes
    return total


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_speed(device: torch.device, size: int) -> float:
    """Bytes a second of a copy within the device: each of ``size`` is read once and written once, and counts twice."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        synchronise(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * size / min(times[2:])  # the first ones warm up


@dataclass
class Run:
    """One filling of a lane."""

    prefill_seconds: float
    decode_seconds: float
    steps: int
    finished: bool


class Watched(Lane):
    """A lane that notes how many entries of the cache, over all rows of the model, each pass reads."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.read: list[int] = []

    def _shape(self) -> tuple[int, tuple[int, int] | None]:
        rows, bounds = super()._shape()
        extent = self.grid.slots if bounds is None else bounds[1]
        self.read.append(self.branches * rows * (self.cache.prefix + extent))
        return rows, bounds


class Bench:
    """A lane that is filled again and again, so that graphs captured while warming up are there when it is timed."""

    def __init__(
        self, model: VisualModel, shape: Shape, strategy: Strategy, batch: int, prefix: Prefix, cuda_graphs: bool
    ) -> None:
        self.sampling, self.prefix, self.seeds = shape.sampling, prefix, list(range(batch))
        self.device = prefix.embeddings.device
        self.lane = Watched(
            *(model, grid_of(shape), strategy, shape.sampling, batch, shape.prefix),
            device=self.device,
            dtype=prefix.embeddings.dtype,
            cuda_graphs=cuda_graphs,
        )

    def fill(self) -> None:
        """Fresh images; a lane lets none go that is not done, so those of a run that was cut short are forgotten."""
        self.lane.clear()
        self.lane.read.clear()
        self.lane.admit(self.prefix, self.sampling, self.seeds)

    def run(self, limit: int) -> Run:
        """Decode for ``limit`` passes after the prefill at most."""
        synchronise(self.device)
        started = time.perf_counter()
        self.fill()
        synchronise(self.device)
        prefilled = time.perf_counter()
        steps = 0
        while self.lane.busy and steps < limit:
            self.lane.step()
            self.lane.retire()
            steps += 1
        synchronise(self.device)
        return Run(prefilled - started, time.perf_counter() - prefilled, steps, not self.lane.busy)

    def profile(self) -> dict[str, float]:
        """What the device was asked for, a pass; of a CPU, nothing is."""
        if self.device.type != "cuda":
            return dict.fromkeys(COUNTED, 0.0)
        self.fill()
        synchronise(self.device)
        steps = 0
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            while self.lane.busy and steps < PROFILED:
                self.lane.step()
                self.lane.retire()
                steps += 1
            synchronise(self.device)
        counts: Counter[str] = Counter()
        for event in profiler.events():
            on_device = event.device_type == torch.autograd.DeviceType.CUDA
            counts[_kind(event.name, on_device)] += 1
        return {kind: counts[kind] / max(steps, 1) for kind in COUNTED}


COUNTED = ("kernels", "kernel_launches", "graph_launches", "stream_synchronisations", "event_waits", "copies_to_host")


def _kind(name: str, on_device: bool) -> str:
    """Which of ``COUNTED`` an event of the profiler is; "" for none. The profiler itself waits for the device."""
    if on_device:
        if name.startswith(("Memcpy", "Memset")):
            return "copies_to_host" if "DtoH" in name else ""
        return "kernels"
    calls = {
        "cudaGraphLaunch": "graph_launches",
        "cudaStreamSynchronize": "stream_synchronisations",
        "cudaEventSynchronize": "event_waits",
    }
    launches = ("cudaLaunchKernel", "cuLaunchKernel")  # also ...ExC and ...Ex
    return "kernel_launches" if name.startswith(launches) else calls.get(name, "")


@dataclass(frozen=True)
class Settings:
    """What a rerun must share with the results that it adds to."""

    acceptance: list[float]
    repeats: int
    passes_limit: int
    toy: bool
    machine: dict[str, str]


def strategies(acceptance: Iterable[float]) -> list[tuple[str, float | None, Strategy]]:
    """Name, acceptance and strategy of all that is timed."""
    found: list[tuple[str, float | None, Strategy]] = [(name, None, strategy) for name, strategy in STATIC.items()]
    found += [(name, rate, Forced(strategy, rate)) for name, strategy in DRAFTED.items() for rate in acceptance]
    return found


def measure(
    model: VisualModel,
    shape: Shape,
    strategy: Strategy,
    batch: int,
    cuda_graphs: bool,
    settings: Settings,
    speed: float,
) -> Row:
    """One row of the table. Passes beyond the limit are not timed but counted, as dear as the mean of the others."""
    device, dtype, grid = model.device, model.dtype, grid_of(shape)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    prefix = prefix_of(shape, batch, device, dtype)
    bench = Bench(model, shape, strategy, batch, prefix, cuda_graphs)
    cold = bench.run(settings.passes_limit if cuda_graphs else min(4, settings.passes_limit))
    runs = [bench.run(settings.passes_limit) for _ in range(settings.repeats)]
    read = statistics.mean(bench.lane.read)
    # on a GPU an image is known to be done a pass late
    total = passes_of(strategy, grid, bench.seeds, shape.codebook)
    steps = min(runs[0].steps, total - 1)
    a_pass = statistics.median(run.decode_seconds for run in runs) / runs[0].steps
    prefill = statistics.median(run.prefill_seconds for run in runs)
    keys = bench.lane.cache.layers[0].keys
    assert keys is not None
    entry = 2 * len(bench.lane.cache.layers) * keys.shape[1] * keys.shape[3] * keys.element_size()
    least = (weight_bytes(model) + read * entry) / speed
    idle = 0 if not runs[0].finished else runs[0].steps - steps
    seconds = prefill + a_pass * (total - 1 + idle)
    return {
        "cuda_graphs": cuda_graphs,
        "forward_passes": total,
        "timed_passes": steps,
        "extrapolated": not runs[0].finished,
        "seconds": seconds,
        "seconds_an_image": seconds / batch,
        "prefill_seconds": prefill,
        "cold_run_seconds": cold.prefill_seconds + cold.decode_seconds,
        "milliseconds_a_pass": 1000 * a_pass,
        "least_milliseconds_a_pass": 1000 * least,
        "share_of_bandwidth_limit": least / a_pass,
        "weight_bytes": weight_bytes(model),
        "mean_cache_bytes": read * entry,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "a_pass": bench.profile(),
    }


def attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What ``work`` gives, or in a word why it gives nothing; a failure leaves no memory behind."""
    found, problem = None, None
    try:
        found = work()
    except torch.OutOfMemoryError:
        problem = "does not fit in the memory"
    except RuntimeError as error:
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if problem is not None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found, problem


def measure_batch(model: VisualModel, shape: Shape, batch: int, settings: Settings, speed: float) -> list[Row]:
    """All rows of one shape and batch."""
    rows = []
    for name, rate, strategy in strategies(settings.acceptance):
        for cuda_graphs in (False, True) if model.device.type == "cuda" else (False,):
            row, problem = attempt(lambda: measure(model, shape, strategy, batch, cuda_graphs, settings, speed))  # noqa: B023
            row = {"cuda_graphs": cuda_graphs, "problem": problem} if row is None else row
            rows.append({"strategy": name, "acceptance": rate, **row})
            gc.collect()  # a lane holds itself, and with it its cache
    return rows


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers hang on."""
    found = {"device": str(device.type), "torch": torch.__version__, "driver": "none"}
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
        except (OSError, subprocess.CalledProcessError, IndexError):
            driver = "unknown"
        found |= {"device": torch.cuda.get_device_name(device), "driver": driver, "cuda": str(torch.version.cuda)}
    return found


def write(path: Path, text: str) -> None:
    """Replace a file whole, so that a run that is killed leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def table(report: Row) -> str:
    """The report in markdown."""
    settings = report["settings"]
    about = settings["machine"]
    lines = [
        f"Machine: {about['device']}, torch {about['torch']}, driver {about['driver']}. Random weights, "
        f"{'float32' if settings['toy'] else 'bfloat16'}, guidance (two rows an image; GLM-Image has none), median of "
        f"{settings['repeats']} after a warm-up. Copies within the device: {report['copy_bytes_a_second'] / 1e9:,.0f} "
        "GB/s, read and written bytes counted; the limit of a pass is the time that weights and the cache entries it "
        f"reads, on average, take at that speed. Runs stop after {settings['passes_limit']} passes: a * marks seconds "
        "that are extrapolated linearly from those passes, in which the cache is shorter than later on. Kernels, "
        "launches (of kernels and of graphs) and waits (for a stream or an event) are a pass's.",
    ]
    for name, shape in report["shapes"].items():
        side = shape["shape"]["side"]
        lines += ["", f"{name}, {side} x {side}" + (" (not its own 90 x 90)" if name == "Emu3-8B" else "")]
        if shape.get("problem"):
            lines += ["", f"Not measured: {shape['problem']}."]
        for batch, rows in shape["batches"].items():
            lines += [
                "",
                f"Batch {batch}",
                "",
                "| strategy | guesses true | CUDA graphs | passes | s an image | ms a pass | of the limit | kernels | "
                "launches | waits | copies to host | peak memory |",
                "| --- | ---: | --- |" + " ---: |" * 9,
                *map(_line, rows),
            ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    rate = "–" if row["acceptance"] is None else f"{row['acceptance']:.0%}"
    start = f"| {row['strategy']} | {rate} | {'on' if row['cuda_graphs'] else 'off'} |"
    if row.get("problem"):
        return f"{start} {row['problem']} |" + " |" * 8
    peak, did = row["peak_memory_bytes"], row["a_pass"]
    return (
        f"{start} {row['forward_passes']} | {row['seconds_an_image']:.2f}{'*' * row['extrapolated']} | "
        f"{row['milliseconds_a_pass']:.2f} | {row['share_of_bandwidth_limit']:.0%} | {did['kernels']:.0f} | "
        f"{did['kernel_launches'] + did['graph_launches']:.0f} | "
        f"{did['stream_synchronisations'] + did['event_waits']:.1f} | {did['copies_to_host']:.1f} | "
        f"{'–' if peak is None else f'{peak / 2**30:.2f} GiB'} |"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--toy", action="store_true", help="tiny shapes, float32, on the CPU")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES, *TOYS], help="default: all")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--acceptance", nargs="+", type=float, default=[0, 0.5, 0.9], help="how often guesses are true")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--passes-limit", type=int, default=96, help="passes of a run that are timed, at most")
    args = parser.parse_args(arguments)
    if min(args.repeats, args.passes_limit, *args.batches) < 1 or not all(0 <= rate <= 1 for rate in args.acceptance):
        parser.error("repeats, batches and the limit are 1 or more, acceptance rates lie between 0 and 1")
    if not args.toy and not torch.cuda.is_available():
        parser.error("there is no GPU: --toy tries everything on the CPU")
    device, dtype = (torch.device("cpu"), torch.float32) if args.toy else (torch.device("cuda", 0), torch.bfloat16)
    shapes = TOYS if args.toy else SHAPES
    if args.shapes and not shapes.keys() >= set(args.shapes):
        parser.error(f"{'with' if args.toy else 'without'} --toy, shapes are {', '.join(shapes)}")

    settings = Settings(args.acceptance, args.repeats, args.passes_limit, args.toy, machine(device))
    path = args.output / "gpu.json"
    report: Row = {"settings": asdict(settings), "shapes": {}}
    if path.exists():
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["settings"] != report["settings"]:
            parser.error(f"{path} was measured otherwise: use its options, or another --output")
        report = held
    speed = report["copy_bytes_a_second"] = copy_speed(device, 2**24 if args.toy else 2**31)  # the run's own
    if device.type == "cuda":
        torch.cuda.empty_cache()

    def save() -> None:
        write(path, json.dumps(report, indent=1) + "\n")
        write(args.output / "gpu.md", table(report) + "\n")

    for name in args.shapes or shapes:
        shape = shapes[name]
        entry = report["shapes"].setdefault(name, {"shape": asdict(shape), "batches": {}})
        missing = [batch for batch in args.batches if str(batch) not in entry["batches"]]
        if not missing or entry.get("problem"):
            continue
        model, problem = attempt(lambda: build(shape, device, dtype))  # noqa: B023
        if model is None:
            entry["problem"] = problem
            save()
        for batch in missing if model is not None else ():
            entry["batches"][str(batch)] = measure_batch(model, shape, batch, settings, speed)
            save()
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(table(report))


if __name__ == "__main__":
    main()
