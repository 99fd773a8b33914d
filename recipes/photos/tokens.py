"""Finds the vocabulary: k-means of patches of 2 x 2 pixels; then the tokens of all pictures."""

import torch

import kmeans
import training
from photos import recipe
from photos.pictures import Pictures
from photos.recipe import PATCH

SAMPLE = 400_000  # patches that the centres are found on


@torch.inference_mode()
def main() -> None:
    args, made, build = recipe.parsed(recipe.parser(__doc__))
    generator = torch.Generator().manual_seed(args.seed)
    train, test = Pictures.load(build, "train"), Pictures.load(build, "test")
    rows = kmeans.patches(train.images[: SAMPLE // 40], PATCH).flatten(0, 1)
    rows = rows[torch.randperm(len(rows), generator=generator)[:SAMPLE]]
    centres = kmeans.find_centres(rows, made.vocabulary, generator)
    views = {"train": train.images, "test": test.images}
    if made.flips:
        views["flipped"] = train.images[:, :, ::-1]
    tokens = {}
    for name, images in views.items():
        parts = (kmeans.patches(images[i : i + 1000], PATCH) for i in range(0, len(images), 1000))
        tokens[name] = torch.cat([kmeans.nearest(rows, centres).short() for rows in parts])
        print(f"tokens of {len(images)} pictures, {name}", flush=True)
    training.keep({"centres": centres, **tokens}, build / "tokens.pt")


if __name__ == "__main__":
    main()
