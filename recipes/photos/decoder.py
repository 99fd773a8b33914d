"""Trains the class-conditional LlamaGen decoder on the tokens of the pictures."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import training
from photos import recipe
from photos.pictures import Pictures
from photos.recipe import Recipe
from zipar.models.llamagen import LlamaGenConfig, Transformer, prefix_rotary, rotary_2d

CLASS_DROPOUT = 0.1  # how often the class is left out, for classifier-free guidance
HELD_OUT = 500  # pictures that the loss is reported on


def config(made: Recipe, classes: int) -> LlamaGenConfig:
    return LlamaGenConfig(
        layers=made.layers,
        heads=made.dim // 32,
        dim=made.dim,
        vocab_size=made.vocabulary,
        classes=classes,
        grid_side=made.grid,
        multiple_of=32,
    )


class ClassToImage(nn.Module):
    """The decoder, over sequences of (class, image tokens)."""

    def __init__(self, shape: LlamaGenConfig) -> None:
        super().__init__()
        self.decoder = Transformer(shape)
        training.initialise(self.decoder)
        length = shape.grid_side**2
        rotary = torch.cat([prefix_rotary(shape, 1), rotary_2d(shape.grid_side, shape.head_dim, shape.rope_base)])[
            :length
        ]
        self.register_buffer("rotary", rotary[None], persistent=False)
        mask = torch.full((length, length), float("-inf")).triu(1)
        self.register_buffer("mask", mask[None, None], persistent=False)

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Logits (batch, slots, vocabulary) of each token, after those before it and the class (batch,)."""
        shown = [self.decoder.cls_embedding(labels), self.decoder.tok_embeddings(tokens[:, :-1])]
        return self.decoder.output(self.decoder(torch.cat(shown, dim=1), self.rotary, self.mask))


@torch.no_grad()
def held_out_loss(model: ClassToImage, build: Path, side: int) -> tuple[float, float]:
    """Nats a token on pictures that were not learned from: of all, and of those that begin a row."""
    labels = torch.from_numpy(Pictures.load(build, "test").labels[:HELD_OUT])
    tokens = torch.load(build / "tokens.pt", weights_only=True)["test"][:HELD_OUT].long()
    parts = zip(labels.split(50), tokens.split(50), strict=True)
    losses = [F.cross_entropy(model(*part).transpose(1, 2), part[1], reduction="none") for part in parts]
    nats = torch.cat(losses)
    return nats.mean().item(), nats[:, side::side].mean().item()


def main() -> None:
    parser = recipe.parser(__doc__)
    parser.add_argument("--steps", type=int, help="more than were made before prolong the training")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--muon-rate", type=float, default=2.5e-3)
    parser.add_argument("--adam-rate", type=float, default=1e-3)
    args, made, build = recipe.parsed(parser)
    torch.manual_seed(args.seed)
    pictures = Pictures.load(build, "train")
    held = torch.load(build / "tokens.pt", weights_only=True)
    views = torch.stack([held["train"], held["flipped"]]) if made.flips else held["train"][None]
    classes = len(pictures.classes)
    model = ClassToImage(config(made, classes))

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed, step)
        chosen = rng.integers(len(pictures.labels), size=args.batch)
        tokens = views[rng.integers(len(views), size=args.batch), chosen].long()
        labels = torch.from_numpy(pictures.labels[chosen])
        labels[torch.from_numpy(rng.random(args.batch) < CLASS_DROPOUT)] = classes  # stands for no class
        return F.cross_entropy(model(labels, tokens).flatten(0, 1), tokens.flatten())

    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"decoder: {parameters / 1e6:.2f} M parameters", flush=True)
    optimizers = training.make_optimizers(model, model.decoder.layers, args.muon_rate, args.adam_rate)
    steps = args.steps or made.steps
    training.run(build / "decoder.pt", model, optimizers, loss_of, steps=steps, decay=0.995, every=50)
    nats, first = held_out_loss(model, build, made.grid)
    print(f"held out: {nats:.3f} nats a token, {first:.3f} where it begins a row")


if __name__ == "__main__":
    main()
