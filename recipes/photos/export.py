"""Puts the trained parts together: an ordinary LlamaGen checkpoint directory."""

import shutil
from pathlib import Path

import torch

from photos import recipe
from photos.decoder import ClassToImage, config
from photos.image_tokenizer import untrained
from photos.pictures import Pictures
from zipar.conversion.llamagen import write
from zipar.decoding.sampling import Sampling
from zipar.models.llamagen import LlamaGen
from zipar.prompts import PromptVocabulary


def vocabulary(classes: list[str]) -> PromptVocabulary:
    """Prompts are names of classes."""
    values = {name: list(dict.fromkeys([name, name.replace("-", " ")])) for name in classes}
    return PromptVocabulary({"class": values}, ["class"], ["a", "an", "the"], classes[0])


def main() -> None:
    parser = recipe.parser(__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    args, made, build = recipe.parsed(parser)
    classes = Pictures.load(build, "test").classes
    trained = ClassToImage(config(made, len(classes)))
    # the averaged weights of the newest step, whether the training is done or still goes on
    trained.load_state_dict(torch.load(build / "decoder.pt", weights_only=True)["average"])
    image_tokenizer = untrained(made)
    image_tokenizer.load_state_dict(torch.load(build / "image_tokenizer_final.pt", weights_only=True))
    sampling = Sampling(guidance_scale=args.guidance_scale)
    model = LlamaGen(trained.decoder, image_tokenizer, defaults=sampling, vocabulary=vocabulary(classes))
    write(model, args.output, torch.bfloat16)
    if (notice := Path(__file__).parent / f"{args.recipe.upper()}.md").exists():
        shutil.copy(notice, args.output / "PICTURES.md")
    if (build / "judge").exists():
        shutil.copytree(build / "judge", args.output / "judge")
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
