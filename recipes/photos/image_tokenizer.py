"""Trains the network from tokens to pixels; and the encoder, to name the k-means token of each patch."""

import torch
import torch.nn.functional as F
from torch import Tensor

import training
from photos import recipe
from photos.pictures import Pictures
from photos.recipe import Recipe
from zipar.image_tokenizers.vq import VQConfig, VQModel

SHARPNESS = 8.0  # of the encoder's choice between codes, which are unit vectors


def untrained(made: Recipe) -> VQModel:
    """The image tokenizer, f2."""
    return VQModel(
        VQConfig(
            codebook_size=made.vocabulary,
            codebook_dim=12,
            channels=made.channels,
            channel_multipliers=(1, 2),
            residual_blocks=1,
            latent_channels=32,
            norm_groups=8,
        )
    )


def main() -> None:
    parser = recipe.parser(__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    args, made, build = recipe.parsed(parser)
    torch.manual_seed(args.seed)
    pictures = Pictures.load(build, "train")
    held = torch.load(build / "tokens.pt", weights_only=True)
    model = untrained(made)
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(F.normalize(held["centres"] + 0.1, dim=-1))

    def loss_of(step: int) -> Tensor:
        chosen = training.batch_rng(args.seed, step).integers(len(pictures.labels), size=args.batch)
        pixels = training.to_pixels(list(pictures.images[chosen]))
        tokens = held["train"][chosen].long().unflatten(1, (made.grid, made.grid))
        error = model.decode(tokens) - pixels
        named = torch.einsum("bdhw,nd->bnhw", model.latents(pixels), model.quantize.codes) * SHARPNESS
        return error.abs().mean() + error.square().mean() + F.cross_entropy(named, tokens) / 10

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
    training.run(build / "image_tokenizer.pt", model, [optimizer], loss_of, steps=args.steps, decay=0.99)
    training.keep(model.state_dict(), build / "image_tokenizer_final.pt")
    with torch.inference_mode():
        test = Pictures.load(build, "test").images[:500]
        pixels, tokens = training.to_pixels(list(test)), held["test"][:500].long().unflatten(1, (made.grid, made.grid))
        error = (model.decode(tokens).clamp(-1, 1) - pixels).square().mean()
        right = (model.encode(pixels) == tokens).float().mean()
    print(
        f"held out: pixels of tokens {10 * torch.log10(4 / error):.2f} dB; encoder right on {right:.1%} of the tokens"
    )


if __name__ == "__main__":
    main()
