"""What commands that paint share: a loaded model, and arguments that are the same for all its calls."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zipar.checkpoints.files import is_directory
from zipar.cli.options import DType, Quantization, as_text, parse_size
from zipar.cli.progress import spinner
from zipar.decoding.engine import Progress
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.decoding.zipar import ZipAR
from zipar.errors import ZipARError
from zipar.evaluation.images import CLIP_SUFFIXES, SUFFIXES, pictures
from zipar.evaluation.samples import Study, stamp
from zipar.grid import TokenGrid
from zipar.models import auto
from zipar.models.base import VideoModel, VisualModel
from zipar.pipeline import DecodingStats, Pipeline, PipelineOutput, pipeline
from zipar.pretrained import directory as embedded
from zipar.videos import Video, given_frames

EXAMPLES = 32
"""Images of each strategy where neither prompts nor a number is given."""


@dataclass(frozen=True)
class Session:
    """A pipeline and the arguments of its calls."""

    name: str
    directory: Path
    pipe: Pipeline
    prompts: list[str]
    negative_prompt: str | None
    sampling: Sampling
    size: tuple[int, int]
    grids: list[TokenGrid]
    """Of each decoding: of an image, its own last; of a clip, more where it goes on past its model's context."""
    frames: int | None
    """Of a clip; None of an image."""
    given: list[list[Image.Image]]
    """What clips go on from: nothing, or the frames of one for all or of several for a study."""
    seed: int
    num_images: int
    deterministic: bool

    @property
    def clips(self) -> bool:
        """Whether the model makes clips."""
        return isinstance(self.pipe.model, VideoModel)

    @property
    def held(self) -> int:
        """Given frames of each clip."""
        return len(self.given[0]) if self.given else 0

    @property
    def tokens(self) -> int:
        """To decode, of an image or a clip."""
        return sum(grid.tokens for grid in self.grids)

    def passes(self, strategy: Strategy) -> int:
        """See ``Strategy.passes``."""
        return sum(strategy.passes(grid) for grid in self.grids)

    def run(self, strategy: Strategy, callback: Callable[[Progress], None] | None = None) -> PipelineOutput:
        """Decode the images of all prompts.

        Raises:
            ZipARError: an argument that the model cannot honour.
        """
        with enough_memory():
            return self.pipe(
                self.prompts,
                strategy=strategy,
                seed=self.seed,
                negative_prompt=self.negative_prompt,
                num_images_per_prompt=self.num_images,
                height=self.size[0],
                width=self.size[1],
                frames=self.frames,
                given=self.given[0] if self.given else None,
                deterministic=self.deterministic,
                callback=callback,
                **dataclasses.asdict(self.sampling),
            )

    def record(self) -> dict[str, Any]:
        """The arguments, for a JSON file."""
        return {
            "model": self.name,
            "prompts": self.prompts,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "num_images": self.num_images,
            "size": list(self.size),
            **({"frames": self.frames, "given_frames": self.held} if self.clips else {}),
            "sampling": dataclasses.asdict(self.sampling),
            "dtype": str(self.pipe.model.dtype).removeprefix("torch."),
            "quantize": self.pipe.model.quantized,
            "device": str(self.pipe.model.device),
            "deterministic": self.deterministic,
        }


def start(
    prompts: Sequence[str],
    *,
    model: str,
    dtype: DType | None,
    quantize: Quantization | None,
    device: str | None,
    cuda_graphs: bool,
    size: str | None,
    seed: int,
    negative_prompt: str | None,
    num_images: int = 1,
    frames: int | None = None,
    given: Sequence[list[Image.Image]] = (),
    quiet: bool,
    deterministic: bool = False,
    **sampling: float | None,
) -> Session:
    """Load the model.

    Args: those of the options of that name, but for ``given``, see ``Session``; ``sampling`` are fields of
        ``Sampling``, None for the model's defaults.

    Raises:
        ZipARError: there is no such model, or an argument makes no sense.
    """
    prompts = [as_text(prompt) for prompt in prompts]
    negative_prompt = None if negative_prompt is None else as_text(negative_prompt)
    if negative_prompt is not None and not negative_prompt.strip():
        raise ZipARError("the negative prompt is empty: say what to steer away from, or leave it out")
    wanted = parse_size(size)
    directory = auto.find(model)
    if not all(prompt.strip() for prompt in prompts) and not auto.family(directory).wordless:
        raise ZipARError("the prompt is empty: say what to paint")
    pipe = load(model, directory, dtype, quantize, device, cuda_graphs, quiet)
    asked: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    pixels = wanted or pipe.model.image_size
    return Session(
        name=model,
        directory=directory,
        pipe=pipe,
        prompts=prompts,
        negative_prompt=negative_prompt,
        sampling=dataclasses.replace(pipe.model.defaults, **asked),
        size=pixels,
        grids=grids_of(pipe.model, pixels, frames, len(given[0]) if given else 0),
        frames=frames or getattr(pipe.model, "frames", None),
        given=list(given),
        seed=seed,
        num_images=num_images,
        deterministic=deterministic,
    )


def load(
    name: str,
    directory: Path,
    dtype: DType | None,
    quantize: Quantization | None,
    device: str | None,
    cuda_graphs: bool,
    quiet: bool,
    tensor_parallel: bool = False,
) -> Pipeline:
    """The pipeline of a checkpoint directory, with a spinner that tells of ``name``.

    Raises:
        ZipARError: it cannot be loaded.
    """
    hush()
    with spinner(f"loading {name}", quiet):
        return pipeline(
            directory,
            dtype=getattr(torch, dtype.value) if dtype else None,
            device=device,
            quantize=quantize.value if quantize else None,
            cuda_graphs=cuda_graphs,
            tensor_parallel=tensor_parallel,
        )


def anywhere(model: str) -> str | Path:
    """What ``zipar.pipeline`` takes for the model of that name in other directories too, and on other machines.

    Raises:
        ZipARError: there is no such model.
    """
    auto.find(model, weights=False)
    return Path(model).resolve() if not embedded(model) and is_directory(Path(model)) else model


def makes_clips(model: str) -> bool:
    """Whether the model of that name makes clips; no weights are loaded.

    Raises:
        ZipARError: there is no such model.
    """
    return issubclass(auto.family(auto.find(model, weights=False)), VideoModel)


def grids_of(model: VisualModel, size: tuple[int, int], frames: int | None, given: int) -> list[TokenGrid]:
    """The token grid of each decoding that an image or a clip takes.

    Raises:
        ZipARError: the model makes none of that size or of so many frames.
    """
    if isinstance(model, VideoModel):
        return model.decodings(*size, frames or model.frames, given)
    if frames is not None or given:
        raise ZipARError("this model makes images, which have no frames: leave the options of clips out")
    return model.grids(model.grid(*size))


def given_of(files: Sequence[Path] | None, last: int | None) -> list[list[Image.Image]]:
    """The frames of files, one after the other, as those of one clip; or the ``last`` so many of them.

    Raises:
        ZipARError: a file cannot be read, or there are fewer frames.
    """
    if not files:
        if last is not None:
            raise ZipARError(f"--given-frames {last} are of no file: name one by --given")
        return []
    return [_last([frame for file in files for frame in Video.load(file).frames], last, files[0])]


def starts_of(place: Path | None, last: int | None) -> list[list[Image.Image]]:
    """The frames, or the ``last`` so many, of a file, or of each file in a folder.

    Raises:
        ZipARError: a file cannot be read, there are fewer frames, or none.
    """
    if place is None or not is_directory(place):
        return given_of([place] if place else None, last)
    files = pictures(place, (*CLIP_SUFFIXES, *SUFFIXES))
    if not files:
        raise ZipARError(f"{place} holds neither videos nor pictures: name a folder of what clips should go on from")
    return [_last(Video.load(file).frames, last, file) for file in files]


def _last(frames: list[Image.Image], count: int | None, file: Path) -> list[Image.Image]:
    if count is not None and count > len(frames):
        raise ZipARError(f"--given-frames {count} is too many: {file} holds {len(frames)}")
    return frames[-(count or 0) :]


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn running out of the GPU's memory into an error that says what to do.

    Raises:
        ZipARError: it happened.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ZipARError(
            "the GPU has too little memory: use fewer images at a time, a smaller --dtype or --device cpu"
        ) from error


def study(started: Session, images: int | None, batch_size: int, folder: Path) -> Study:
    """The prompts of ``started``, or examples that suit its model, ``images`` in all.

    Raises:
        ZipARError: fewer than two images, which have no confidence interval, or a prompt that the model does not know.
    """
    model = started.pipe.model
    if started.clips and len(started.grids) > 1:
        raise ZipARError(
            f"clips of {started.frames} frames take {len(started.grids)} decodings, and what is measured takes one: "
            f"give --frames {getattr(model, 'context', 1)} at most"
        )
    given = given_frames(started.given, len(started.given), *started.size) if started.given else None
    prompts = started.prompts or model.examples(images or EXAMPLES)
    if model.vocabulary is not None:  # now, and not after hours
        for prompt in prompts:
            model.vocabulary.check(prompt)
    count = images or len(prompts)
    if count < 2:
        raise ZipARError("a single image says nothing: give more prompts, or --images 2 or more")
    return Study(
        model=model,
        stamp=stamp(started.directory),
        prompts=[prompts[i % len(prompts)] for i in range(count)],
        sampling=started.sampling,
        grid=started.grids[-1],
        seed=started.seed,
        batch_size=batch_size,
        folder=folder,
        cuda_graphs=started.pipe.cuda_graphs,
        given=given,
    )


def overlapping(started: Session) -> list[Strategy]:
    """Of clips: what shows how frames that advance together do."""
    grid = started.grids[0]
    return [ZipAR(4, first_row="wave", frame_delay=grid.columns)] if grid.frames - grid.given > 1 else []


def first(started: Session, made: PipelineOutput) -> tuple[list[Image.Image], np.ndarray]:
    """The first image, or the frames of the first clip, and the passes of its tokens, -1 for given ones."""
    born = made.born[0].copy()
    if not made.videos:
        return made.images[:1], born
    born[: started.grids[0].given] = -1
    return made.videos[0].frames, born


def seconds(stats: DecodingStats) -> float:
    """From the prompt to the picture."""
    return stats.prefill_seconds + stats.decode_seconds + stats.vision_seconds


def hush() -> None:
    """No bars of transformers' own beside ours; after ``find``, whose downloads do show one."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bars()
    disable_progress_bar()
