"""Options that several commands share."""

import os
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from zipar.arguments import shown
from zipar.errors import ZipARError, reason

DEFAULT_STRATEGY, DEFAULT_WINDOW = "zipar:12:16:4:wave", "4"
"""As text for the help; they are ``names.DEFAULT`` and that of ``ZipAR()``, which take too long to import for it."""

MOST_IMAGES = 65_536
"""That a pipeline decodes together, which takes too long to import as well."""
MOST_FRAMES = 65_536
"""Of a clip."""


class DType(str, Enum):
    """Number formats of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(str, Enum):
    """What weights can be quantised to."""

    int8 = "int8"


class Features(str, Enum):
    """Networks that tell how alike pictures are."""

    inception = "inception"
    efficientnet = "efficientnet"
    judge = "judge"


class FirstRow(str, Enum):
    """When the second row may start."""

    alone = "alone"
    wave = "wave"


def _seed(number: int) -> int:
    if not 0 <= number < 2**63:
        raise typer.BadParameter(f"{number} is not possible: use 0 or more, below 2 ** 63.")
    return number


Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT", help="What to paint; see `zipar prompts` for what the model knows.", show_default=False
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="An embedded model, a checkpoint directory (./emoji, if it has the name of one) or a hub id (owner/name).",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...", show_default="a GPU where there is one", metavar="DEVICE")
]
WeightType = Annotated[
    DType | None, typer.Option("--dtype", help="Of the weights.", show_default="bfloat16 on a GPU, else float32")
]
Quantize = Annotated[
    Quantization | None, typer.Option("--quantize", help="The decoder's weights in int8.", show_default="not at all")
]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs",
        help="On a GPU: replay forward passes as CUDA graphs, where the model bears it.",
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Compute with shapes that do not depend on how many images there are: slower, but then an image of a seed "
        "is the same in any batch in bfloat16 too.",
        rich_help_panel="Sampling",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(help="Height x width in pixels, such as 384x384.", metavar="HxW", show_default="the model's own"),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        "-w",
        metavar="TOKENS",
        help="ZipAR starts a row when the row above holds this many tokens: smaller is faster, larger is safer.",
        show_default=DEFAULT_WINDOW,
    ),
]
Lookahead = Annotated[
    int | None,
    typer.Option(
        "--lookahead",
        "-l",
        metavar="TOKENS",
        help="Tokens that are evaluated ahead, as drafts: more take fewer passes, each of which costs more.",
        show_default="1; 16 for jacobi",
    ),
]
Nats = Annotated[
    float | None,
    typer.Option(
        "--nats",
        metavar="NUMBER",
        help="ZipAR's window ends earlier where its tokens have this much surprise, -log p: 4, say, with window 8.",
        show_default="it does not",
    ),
]
FrameDelay = Annotated[
    int | None,
    typer.Option(
        "--frame-delay",
        min=1,
        metavar="PASSES",
        help="A frame of a clip starts so many passes after the one before; smaller is faster.",
        show_default="once that is complete",
    ),
]

Frames = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_FRAMES,
        metavar="NUMBER",
        help="Of a clip, given ones included.",
        rich_help_panel="Clips",
        show_default="the model's own",
    ),
]
Given = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="What clips go on from: a picture or a video, or several, one after the other.",
        rich_help_panel="Clips",
    ),
]
Starts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What clips go on from: a picture or a video, or a folder of them, gone through again and again.",
        rich_help_panel="Clips",
    ),
]
GivenFrames = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_FRAMES,
        metavar="NUMBER",
        help="Of --given: the last so many.",
        rich_help_panel="Clips",
        show_default="all",
    ),
]

CAPACITY = "Capacity"
Rows = Annotated[
    int,
    typer.Option(min=1, max=1024, metavar="IMAGES", help="That a lane decodes together.", rich_help_panel=CAPACITY),
]
LongestPrompt = Annotated[
    int,
    typer.Option(
        "--longest-prompt",
        min=1,
        max=65536,
        metavar="TOKENS",
        help="Lanes have memory for prompts of so many.",
        rich_help_panel=CAPACITY,
    ),
]

RAY: dict[str, Any] = {"rich_help_panel": "Many machines: the extra zipar-torch\\[ray]"}
Ray = Annotated[
    bool, typer.Option("--ray", help="On a Ray cluster, of this machine alone unless there is an address.", **RAY)
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        envvar="RAY_ADDRESS",
        metavar="HOST:PORT",
        help="With --ray: of a cluster; auto for the one that this machine is of.",
        show_default=False,
        **RAY,
    ),
]

PromptFile = Annotated[
    Path | None,
    typer.Argument(metavar="PROMPTS.txt", help="A prompt a line.", show_default="examples that suit the model"),
]
BatchSize = Annotated[
    int, typer.Option(min=1, max=MOST_IMAGES, metavar="NUMBER", help="Images that are decoded together.")
]
Strategies = Annotated[
    list[str] | None,
    typer.Option(
        "--strategy",
        "-s",
        metavar="NAME[:NUMBER...]",
        help="Such as zipar:8, zipar:8:wave, zipar:4:16 (lookahead 16), zipar:8:16:4 (4 nats), jacobi:16; may be given "
        "several times; for clips @ and a frame delay, as in zipar:4@8. Raster order always comes first.",
        show_default="several",
    ),
]

_OWN: dict[str, Any] = {"show_default": "the model's own", "rich_help_panel": "Sampling"}
Seed = Annotated[
    int,
    typer.Option(callback=_seed, metavar="NUMBER", help="Same seed, same image.", rich_help_panel="Sampling"),
]
GuidanceScale = Annotated[
    float | None, typer.Option(metavar="SCALE", help="Pull towards the prompt; 1 for none.", **_OWN)
]
NegativePrompt = Annotated[
    str | None, typer.Option(metavar="PROMPT", help="What to steer away from.", rich_help_panel="Sampling")
]
Temperature = Annotated[
    float | None, typer.Option(metavar="NUMBER", help="0 always takes the likeliest token.", **_OWN)
]
TopK = Annotated[
    int | None, typer.Option("--top-k", metavar="TOKENS", help="Draw among the likeliest k; 0 for all.", **_OWN)
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="SHARE", help="Draw among the likeliest that make up this share.", **_OWN),
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", metavar="SHARE", help="Leave out what has less than this share of the likeliest.", **_OWN),
]

Stats = Annotated[
    Path | None, typer.Option(metavar="FILE.json", help="What it cost, as JSON.", rich_help_panel="Output")
]
Animate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.gif",
        help="The decoding as an animation: a frame for each forward pass.",
        rich_help_panel="Output",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.", rich_help_panel="Output")
]


def as_text(prompt: str) -> str:
    """A prompt of the command line: in locales that have less than Unicode, its bytes are taken for UTF-8.

    Raises:
        ZipARError: they are not.
    """
    try:
        prompt.encode()
        return prompt
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(prompt).decode()
    except UnicodeError as error:
        raise ZipARError(f"the prompt {prompt!r} holds bytes that are no text: write it in UTF-8") from error


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a prompt file, blank ones left out; none where there is no file.

    Raises:
        ZipARError: it cannot be read, or holds no prompt.
    """
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ZipARError(
            f"{path} cannot be read: give a UTF-8 text file with a prompt a line ({reason(error)})"
        ) from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ZipARError(f"{path} holds no prompt: write one a line")
    return prompts


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of a size such as 384x384.

    Raises:
        ZipARError: it is none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text.strip().lower(), re.ASCII)
    if not found:
        raise ZipARError(f"size {shown(text)} is none: give height x width in pixels, such as 384x384")
    return int(found[1]), int(found[2])
