"""Trains the image tokenizer: 64 px pictures <-> 16 x 16 tokens out of 512 (f4)."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

import artwork
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
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pictures = artwork.load(training.BUILD / "artwork")
    model = VQModel(CONFIG).to(memory_format=torch.channels_last)
    used = torch.zeros(CONFIG.codebook_size)

    def loss_of(step: int) -> Tensor:
        _, pixels = training.draw_batch(pictures, training.batch_rng(args.seed, step), args.batch)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.latents(pixels)
        latents = F.normalize(latents.float(), dim=1)
        if step % 50 == 0:
            if 0 < step < 0.6 * args.steps:
                revive(latents)
            used.zero_()
        indices = model.quantize.nearest(latents)
        codes = model.quantize.lookup(indices)
        with torch.autocast("cpu", torch.bfloat16):
            restored = model.decode_latents(latents + (codes - latents).detach())
        used.add_(torch.bincount(indices.flatten(), minlength=len(used)))
        commitment = F.mse_loss(latents, codes.detach()) * 0.25 + F.mse_loss(codes, latents.detach())
        error = restored.float() - pixels
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()  # blur costs most here
        return error.abs().mean() + error.square().mean() + edges + commitment * CONFIG.codebook_dim

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
    torch.save(model.state_dict(), training.BUILD / "image_tokenizer_final.pt")


if __name__ == "__main__":
    main()
