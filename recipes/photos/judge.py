"""Trains the judge: a classifier of pictures that class accuracy and FID are measured with."""

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import training
from photos import recipe
from photos.image_tokenizer import untrained
from photos.pictures import Pictures
from zipar.evaluation.fid import Moments, frechet_distance
from zipar.evaluation.judge import Judge, JudgeConfig

KEPT = 600  # features for precision and recall
SHIFT = 2  # pixels that a picture is moved at most


def main() -> None:
    parser = recipe.parser(__doc__)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=64)
    args, made, build = recipe.parsed(parser)
    torch.manual_seed(args.seed)
    pictures, test = Pictures.load(build, "train"), Pictures.load(build, "test")
    held = torch.load(build / "tokens.pt", weights_only=True)
    image_tokenizer = untrained(made)
    image_tokenizer.load_state_dict(torch.load(build / "image_tokenizer_final.pt", weights_only=True))

    @torch.inference_mode()
    def restored(tokens: Tensor) -> Tensor:
        return image_tokenizer.decode(tokens.long().unflatten(1, (made.grid, made.grid)))

    judge = Judge(JudgeConfig({"class": pictures.classes}, made.side, made.judge))

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed, step)
        chosen = rng.integers(len(pictures.labels), size=args.batch)
        quarter = args.batch // 4  # as the image tokenizer shows them
        pixels = training.to_pixels(list(pictures.images[chosen]))
        pixels[:quarter] = restored(held["train"][chosen[:quarter]])
        if made.flips:
            pixels = torch.where(torch.from_numpy(rng.random((args.batch, 1, 1, 1)) < 0.5), pixels.flip(-1), pixels)
        down, right = rng.integers(2 * SHIFT + 1, size=2)
        pixels = F.pad(pixels, (SHIFT,) * 4, mode="replicate")[:, :, down : down + made.side, right : right + made.side]
        logits = judge.logits(judge(pixels))["class"]
        return F.cross_entropy(logits, torch.from_numpy(pictures.labels[chosen]), label_smoothing=0.1)

    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.05)
    steps = args.steps or made.judge_steps
    training.run(build / "judge.pt", judge, [optimizer], loss_of, steps=steps, decay=0.99)
    folder = build / "judge"
    judge.save(folder)

    judge = Judge.load(folder)  # what ships: rounded to 16 bit
    features = judge.features(test.images)
    reference = Moments.of(features)
    reference.save(folder / "reference.safetensors", features[:KEPT])
    parts = [training.to_images(restored(tokens)).numpy() for tokens in held["test"].split(200)]
    report = {}
    for name, images in {"held-out pictures": test.images, "their reconstructions": np.concatenate(parts)}.items():
        seen = judge.classify(images)["class"]
        right = np.mean([test.classes[label] == value for label, value in zip(test.labels, seen, strict=True)])
        distance = frechet_distance(reference, Moments.of(judge.features(images)))
        report[name] = {"class": float(right), "images": len(images), "fid": distance}
        print(f"{len(images)} {name}: class {right:.2%}; FID against held-out pictures {distance:.3f}")
    (folder / "held_out.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
