"""``zipar convert``: published checkpoint files to a directory that the other commands take."""

from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipar.cli import outputs
from zipar.cli.options import DType
from zipar.errors import ZipARError

if TYPE_CHECKING:
    import torch

app = typer.Typer(help="Convert published checkpoint files to a directory that the other commands take.")


class ImageSize(str, Enum):
    """Image sizes that LlamaGen was published for."""

    small = "256"
    medium = "384"
    large = "512"


class LuminaSize(str, Enum):
    """Image sizes that Lumina-mGPT was published for."""

    small = "512"
    medium = "768"
    large = "1024"


class JanusTemplate(str, Enum):
    """Models whose prompts ``zipar.conversion.janus.ROLES`` has."""

    janus = "janus"
    pro = "janus-pro"
    four_o = "janus-4o"
    r1 = "t2i-r1"


ModelSource = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", exists=True, file_okay=False, help="The published model, with config.json and tokenizer.json."
    ),
]
VQGAN = Annotated[
    Path, typer.Argument(metavar="VQGAN.ckpt", exists=True, dir_okay=False, help="Meta's image tokenizer of Chameleon.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The directory to make.")]
Stored = Annotated[
    DType | None, typer.Option(help="Number format to store the weights in.", show_default="each tensor's own")
]


@app.callback(invoke_without_command=True)
def _convert(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("commavq")
def commavq(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The published files, commaai/commavq-gpt2m."),
    ],
    out: Out,
    dtype: Stored = None,
) -> None:
    """Convert commaVQ's world model: zipar convert commavq DIR OUT."""
    outputs.check_directory(out)

    from zipar.conversion.commavq import convert

    _tell(out, convert(source, out, dtype=_torch(dtype)), clips=True)


@app.command("cosmos")
def cosmos(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.pt", exists=True, dir_okay=False, help="A base model, of 4B or 12B.")
    ],
    tokenizer: Annotated[
        Path,
        typer.Argument(metavar="TOKENIZER_DIR", exists=True, file_okay=False, help="Cosmos-Tokenize1-DV8x16x16-720p."),
    ],
    out: Out,
    dtype: Stored = None,
) -> None:
    """Convert a Cosmos: zipar convert cosmos MODEL.pt TOKENIZER_DIR OUT."""
    outputs.check_directory(out)

    from zipar.conversion.cosmos import convert

    _tell(out, convert(model, tokenizer, out, dtype=_torch(dtype)), clips=True)


@app.command("emu3")
def emu3(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL_DIR", exists=True, file_okay=False, help="The language model, BAAI/Emu3-Gen."),
    ],
    image_tokenizer: Annotated[
        Path,
        typer.Argument(
            metavar="TOKENIZER_DIR",
            exists=True,
            file_okay=False,
            help="The image tokenizer, BAAI/Emu3-VisionTokenizer.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to make.")],
    dtype: Stored = None,
) -> None:
    """Convert an Emu3 to transformers' layout: zipar convert emu3 MODEL_DIR TOKENIZER_DIR OUT."""
    outputs.check_directory(out)

    from zipar.conversion.emu3 import convert

    _tell(out, convert(model, image_tokenizer, out, dtype=_torch(dtype)))


Emu35Model = Annotated[
    Path, typer.Argument(metavar="MODEL_DIR", exists=True, file_okay=False, help="The decoder, as published.")
]
Emu35Tokenizer = Annotated[
    Path,
    typer.Argument(
        metavar="TOKENIZER_DIR", exists=True, file_okay=False, help="The image tokenizer, BAAI/Emu3.5-VisionTokenizer."
    ),
]
Emu35Directories = Annotated[
    list[Path],
    typer.Argument(
        metavar="[WORDS_DIR] OUT",
        help="Where emu3.tiktoken is, if not in MODEL_DIR (in the authors' repository: src/tokenizer_emu3_ibq), then "
        "the directory to make.",
    ),
]


@app.command("emu3.5")
def emu35(
    model: Emu35Model, image_tokenizer: Emu35Tokenizer, directories: Emu35Directories, dtype: Stored = None
) -> None:
    """Convert BAAI/Emu3.5: zipar convert emu3.5 MODEL_DIR TOKENIZER_DIR [WORDS_DIR] OUT."""
    _emu35(model, image_tokenizer, directories, dtype, image=False)


@app.command("emu3.5-image")
def emu35_image(
    model: Emu35Model, image_tokenizer: Emu35Tokenizer, directories: Emu35Directories, dtype: Stored = None
) -> None:
    """Convert BAAI/Emu3.5-Image: zipar convert emu3.5-image MODEL_DIR TOKENIZER_DIR [WORDS_DIR] OUT."""
    _emu35(model, image_tokenizer, directories, dtype, image=True)


def _emu35(model: Path, image_tokenizer: Path, directories: list[Path], dtype: DType | None, image: bool) -> None:
    words, out = _optional(directories, "TOKENIZER_DIR", "WORDS_DIR", "with emu3.tiktoken")
    outputs.check_directory(out)

    from zipar.conversion.emu35 import convert
    from zipar.models.emu35 import GENERAL, IMAGE

    sampling = IMAGE if image else GENERAL
    _tell(out, convert(model, image_tokenizer, out, words=words, sampling=sampling, dtype=_torch(dtype)))


@app.command("janus")
def janus(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", exists=True, file_okay=False, help="The published files, such as deepseek-ai/Janus-Pro-7B."
        ),
    ],
    out: Out,
    template: Annotated[
        JanusTemplate | None,
        typer.Option(help="Whose prompts it reads.", show_default="janus or janus-pro, as the tokenizer tells"),
    ] = None,
    dtype: Stored = None,
) -> None:
    """Convert a Janus from DeepSeek's layout: zipar convert janus DIR OUT."""
    outputs.check_directory(out)

    from zipar.conversion.janus import convert, template_of

    read = template.value if template else template_of(source)
    _tell(out, convert(source, out, template=read, dtype=_torch(dtype)))
    print(f"{out}: prompts are put as {read} reads them (--template {'|'.join(each.value for each in JanusTemplate)})")


@app.command("liquid")
def liquid(source: ModelSource, vqgan: VQGAN, out: Out, dtype: Stored = None) -> None:
    """Convert a Liquid: zipar convert liquid DIR VQGAN.ckpt OUT."""
    outputs.check_directory(out)

    from zipar.conversion.liquid import convert

    _tell(out, convert(source, vqgan, out, dtype=_torch(dtype)))


@app.command("llamagen")
def llamagen(
    gpt: Annotated[
        Path, typer.Argument(metavar="GPT.pt", exists=True, dir_okay=False, help="The decoder, such as c2i_B_384.pt.")
    ],
    vq: Annotated[
        Path,
        typer.Argument(metavar="VQ.pt", exists=True, dir_okay=False, help="The image tokenizer, vq_ds16_c2i.pt."),
    ],
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="[T5_DIR] OUT",
            help="The T5 encoder (for text-conditional models), then the directory to make.",
        ),
    ],
    image_size: Annotated[
        ImageSize | None,
        typer.Option(help="Height and width, in pixels, of its images.", show_default="as the checkpoint says"),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Attention heads.", show_default="as published")
    ] = None,
    dtype: Stored = None,
) -> None:
    """Convert a LlamaGen: zipar convert llamagen GPT.pt VQ.pt [T5_DIR] OUT --image-size 384."""
    text_encoder, out = _optional(directories, "VQ.pt", "T5_DIR", "of the T5 encoder")
    outputs.check_directory(out)

    from zipar.conversion.llamagen import convert

    formats = convert(
        gpt,
        vq,
        text_encoder,
        out,
        image_size=int(image_size.value) if image_size else None,
        heads=heads,
        dtype=_torch(dtype),
    )
    _tell(out, formats)


@app.command("lumina-mgpt")
def lumina_mgpt(
    source: ModelSource,
    vqgan: VQGAN,
    out: Out,
    image_size: Annotated[LuminaSize, typer.Option(help="Height and width, in pixels, of its square images.")],
    dtype: Stored = None,
) -> None:
    """Convert a Lumina-mGPT: zipar convert lumina-mgpt DIR VQGAN.ckpt OUT --image-size 768."""
    outputs.check_directory(out)

    from zipar.conversion.lumina_mgpt import convert

    _tell(out, convert(source, vqgan, out, image_size=int(image_size.value), dtype=_torch(dtype)))


@app.command("lumina-mgpt-2")
def lumina_mgpt2(
    source: ModelSource,
    movqgan: Annotated[
        Path,
        typer.Argument(
            metavar="MOVQGAN.ckpt", exists=True, dir_okay=False, help="Its image tokenizer, movqgan_270M.ckpt."
        ),
    ],
    out: Out,
    dtype: Stored = None,
) -> None:
    """Convert a Lumina-mGPT 2.0: zipar convert lumina-mgpt-2 DIR MOVQGAN.ckpt OUT."""
    outputs.check_directory(out)

    from zipar.conversion.lumina_mgpt2 import convert

    _tell(out, convert(source, movqgan, out, dtype=_torch(dtype)))


@app.command("anole")
def anole(source: ModelSource, vqgan: VQGAN, out: Out, dtype: Stored = None) -> None:
    """Convert an Anole in the format of transformers: zipar convert anole DIR VQGAN.ckpt OUT."""
    outputs.check_directory(out)

    from zipar.conversion.lumina_mgpt import convert
    from zipar.models.lumina_mgpt import Anole

    _tell(out, convert(source, vqgan, out, family=Anole, dtype=_torch(dtype)))


@app.command("simplear")
def simplear(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The published model, SimpleAR-1.5B-RL."),
    ],
    tokenizer: Annotated[
        Path,
        typer.Argument(metavar="TOKENIZER_DIR", exists=True, file_okay=False, help="Cosmos-1.0-Tokenizer-DV8x16x16."),
    ],
    out: Out,
    dtype: Stored = None,
) -> None:
    """Convert a SimpleAR: zipar convert simplear DIR TOKENIZER_DIR OUT."""
    outputs.check_directory(out)

    from zipar.conversion.simplear import convert

    _tell(out, convert(source, tokenizer, out, dtype=_torch(dtype)))


def _optional(directories: list[Path], before: str, name: str, what: str) -> tuple[Path | None, Path]:
    """``[NAME] OUT`` behind the argument ``before``: the directory ``what``, if it is given, and the one to make."""
    if len(directories) > 2:
        raise ZipARError(f"{len(directories)} paths after {before}: give [{name}] OUT, two at most")
    *given, out = directories
    if given and not given[0].is_dir():
        raise ZipARError(f"{given[0]} is no directory: give that {what}, or leave it out")
    return given[0] if given else None, out


def _torch(dtype: DType | None) -> "torch.dtype | None":
    import torch

    return getattr(torch, dtype.value) if dtype else None


def _tell(out: Path, formats: "Collection[torch.dtype]", clips: bool = False) -> None:
    stored = " and ".join(sorted(str(each).removeprefix("torch.") for each in formats))
    use = f'zipar.pipeline("{out}")("", given=frames)' if clips else f"zipar generate PROMPT --model {out}"
    print(f"{out}: weights stored in {stored}; try `{use}`")
