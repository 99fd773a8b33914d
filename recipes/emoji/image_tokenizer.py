"""Trains the image tokenizer: 64 px pictures <-> 16 x 16 tokens out of 512 (f4); then its decoder alone, to sharpen."""

import argparse
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import artwork
import scenes
import training
from zipar.image_tokenizers.vq import VQConfig, VQModel

CONFIG = VQConfig(
    codebook_size=512,
    codebook_dim=8,
    channels=32,
    channel_multipliers=(1, 2, 2),
    residual_blocks=1,
    latent_channels=64,
    norm_groups=8,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4400)
    parser.add_argument("--refine-steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pictures = artwork.load(training.BUILD / "artwork")
    model = VQModel(CONFIG).to(memory_format=torch.channels_last)
    used = torch.zeros(CONFIG.codebook_size)

    def loss_of(step: int) -> Tensor:
        pixels = draw_pairs(pictures, training.batch_rng(args.seed, step), args.batch)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.latents(pixels)
        latents = F.normalize(latents.float(), dim=1)
        if step % 50 == 0:
            if 0 < step < 0.6 * args.steps:
                revive(latents)
            used.zero_()
        indices = model.quantize.nearest(latents)
        codes = model.quantize.lookup(indices)
        used.add_(torch.bincount(indices.flatten(), minlength=len(used)))
        with torch.autocast("cpu", torch.bfloat16):
            restored = model.decode_latents(latents + (codes - latents).detach())
        commitment = F.mse_loss(latents, codes.detach()) * 0.25 + F.mse_loss(codes, latents.detach())
        vectors = commitment * CONFIG.codebook_dim + 2 * locality_loss(latents, pixels)
        return reconstruction_loss(restored, pixels) + vectors

    @torch.no_grad()
    def revive(latents: Tensor) -> None:
        """Codes that no latent has chosen lately move to latents of this batch."""
        dead = (used == 0).nonzero().flatten()
        candidates = latents.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randperm(len(candidates))[: len(dead)]
        model.quantize.embedding.weight[dead] = candidates[chosen]

    def report(step: int) -> str:
        return f"codes used {int((used > 0).sum())}"

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    training.run("image_tokenizer", model, [optimizer], loss_of, steps=args.steps, decay=0.99, report=report, every=110)
    if args.refine_steps:
        refine(model, pictures, args)
    torch.save(model.state_dict(), training.BUILD / "image_tokenizer_final.pt")


def refine(model: VQModel, pictures: artwork.Artwork, args: argparse.Namespace) -> None:
    """Train the decoder on the tokens of the encoder, which stays as it is: what tokens mean does not change."""
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    model.quantize.requires_grad_(False)

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed + 1000, step)
        _, pixels = training.draw_batch(pictures, rng, args.batch)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            codes = model.quantize.lookup(model.encode(pixels))
        with torch.autocast("cpu", torch.bfloat16):
            restored = model.decode_latents(codes)
        return reconstruction_loss(restored, pixels)

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3, betas=(0.9, 0.99))
    training.run("image_decoder", model, [optimizer], loss_of, steps=args.refine_steps, decay=0.99)


def draw_pairs(pictures: artwork.Artwork, rng: np.random.Generator, size: int) -> Tensor:
    """Pixels of ``size / 2`` scenes, then of the same scenes on other backgrounds."""
    drawn = [scenes.sample(rng) for _ in range(size // 2)]
    others = [dataclasses.replace(scene, background=rng.choice(list(scenes.COLOURS))) for scene in drawn]
    places = rng.integers(2**32, size=len(drawn))
    images = [
        scenes.draw(scene, pictures, np.random.default_rng(place))
        for half in (drawn, others)
        for scene, place in zip(half, places, strict=True)
    ]
    return training.to_pixels(images).contiguous(memory_format=torch.channels_last)


def locality_loss(latents: Tensor, pixels: Tensor) -> Tensor:
    """How far latents of equal patches differ, within a pair of scenes and over a plain background.

    Group normalisation and attention let a token depend on the whole picture. Tokens that depend on their own patch
    alone are far easier to learn for the decoder: an object looks the same on any background.
    """
    patches = F.pixel_unshuffle(pixels, scenes.TOKEN)
    one, other = patches.chunk(2)
    same = (one - other).abs().amax(1) < 1e-3
    pairs = (latents.chunk(2)[0] - latents.chunk(2)[1]).square().sum(1)
    by_channel = patches.unflatten(1, (3, -1))
    plain = ((by_channel.amax(2) - by_channel.amin(2)).amax(1, keepdim=True) < 1e-3).float()
    mean = (latents * plain).sum((2, 3), keepdim=True) / plain.sum((2, 3), keepdim=True).clamp(min=1)
    spread = ((latents - mean).square() * plain).sum() / plain.sum()
    return pairs[same].mean() + spread


def reconstruction_loss(restored: Tensor, pixels: Tensor) -> Tensor:
    """Absolute and squared error, and the error of edges, where blur costs most."""
    error = restored.float() - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + edges


if __name__ == "__main__":
    main()
