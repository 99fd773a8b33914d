"""Trains the image tokenizer: 64 px pictures <-> 16 x 16 tokens out of 1024 (f4); then its decoder alone, to sharpen.

Every token tells of its own 4 x 4 pixels alone (see :class:`PatchEncoder`). An object then has the same tokens
wherever it is and, but for its edges, on any background, which is what a small decoder can learn in an hour.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import training
from emoji import artwork, scenes
from zipar.image_tokenizers.vq import Encoder, VQConfig, VQModel

CONFIG = VQConfig(
    codebook_size=1024,
    codebook_dim=8,
    channels=32,
    channel_multipliers=(1, 2, 2),
    residual_blocks=1,
    latent_channels=64,
    norm_groups=1,
)


class PatchEncoder:
    """Confines an encoder to one patch a token, by its weights alone: the architecture stays the published one.

    - Kernels keep the taps inside the patch, and attention adds nothing.
    - Normalisation, which looks at the whole picture, finds the same statistics in all: what it normalises carries
      constants of both signs beside which the picture is small, and which no weight adds to.
    """

    CONSTANT = 16.0

    def __init__(self, encoder: Encoder) -> None:
        layers = dict(encoder.named_modules())
        self.silent = [layer for name, layer in layers.items() if name.endswith("proj_out")]
        self.convolutions = [
            layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer not in self.silent
        ]
        self.normalised = [layer for layer in self.convolutions if layer is not encoder.conv_out]
        for layer in self.convolutions:
            nn.init.normal_(layer.weight, std=(layer.in_channels * layer.stride[0] ** 2) ** -0.5)
        for name, layer in layers.items():
            if layer in self.normalised:
                # the second convolution of a residual block adds to what has its constants already
                signs = self.signs(layer) * (0 if name.endswith("conv2") else self.CONSTANT)
                layer.bias = nn.Parameter(signs, requires_grad=False)
            elif isinstance(layer, nn.GroupNorm):
                nn.init.constant_(layer.weight, self.CONSTANT)
                layer.bias = nn.Parameter(torch.randn(layer.num_channels) / 2 - self.CONSTANT * self.signs(layer))
        self.apply()

    @staticmethod
    def signs(layer: nn.Conv2d | nn.GroupNorm) -> Tensor:
        """+1, -1, +1, ... over the channels that a layer puts out."""
        width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.num_channels
        return 1 - 2 * (torch.arange(width) % 2).float()

    @torch.no_grad()
    def apply(self) -> None:
        """To be called after every change of the weights."""
        for layer in self.silent:
            layer.weight.zero_()
            layer.bias.zero_()
        for layer in self.convolutions:
            if layer.stride[0] == 2:
                layer.weight[..., 2, :] = 0
                layer.weight[..., 2] = 0
            elif layer.kernel_size[0] == 3:
                centre = layer.weight[..., 1, 1].clone()
                layer.weight.zero_()
                layer.weight[..., 1, 1] = centre
        for layer in self.normalised:
            for parity in (0, 1):  # so that weights neither add to the constants nor pass them on
                layer.weight[parity::2] -= layer.weight[parity::2].mean(0)
                if layer.in_channels > 3:
                    layer.weight[:, parity::2] -= layer.weight[:, parity::2].mean(1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--refine-steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pictures = artwork.load(scenes.BUILD / "artwork")
    drawn_from, _ = scenes.split()
    model = VQModel(CONFIG).to(memory_format=torch.channels_last)
    confined = PatchEncoder(model.encoder)
    _, pixels = scenes.draw_batch(drawn_from, pictures, training.batch_rng(args.seed, 0), 64)
    with torch.no_grad():  # latents around zero, that their directions differ
        model.quant_conv.bias -= model.quant_conv(model.encoder(pixels)).mean((0, 2, 3))
    used = torch.zeros(CONFIG.codebook_size)

    def loss_of(step: int) -> Tensor:
        confined.apply()
        _, pixels = scenes.draw_batch(drawn_from, pictures, training.batch_rng(args.seed, step), args.batch)
        latents = model.latents(pixels.contiguous(memory_format=torch.channels_last))
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
        return reconstruction_loss(restored, pixels) + commitment * CONFIG.codebook_dim

    @torch.no_grad()
    def revive(latents: Tensor) -> None:
        """Codes that no latent has chosen lately move to latents of this batch."""
        dead = (used == 0).nonzero().flatten()
        candidates = latents.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randperm(len(candidates))[: len(dead)]
        model.quantize.embedding.weight[dead] = candidates[chosen]

    def report(step: int) -> str:
        return f"codes used {int((used > 0).sum())}"

    optimizer = torch.optim.Adam(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-3, betas=(0.9, 0.99)
    )
    training.run(
        scenes.BUILD / "image_tokenizer.pt", model, [optimizer], loss_of, steps=args.steps, decay=0.99, report=report
    )
    confined.apply()
    for part in (model.encoder, model.quant_conv, model.quantize):
        part.to(torch.bfloat16).float()  # as they ship, so that the tokens learned are the tokens shipped
    refine(model, pictures, args)
    training.keep(model.state_dict(), scenes.BUILD / "image_tokenizer_final.pt")
    training.keep(encode(model, drawn_from, pictures), scenes.BUILD / "tokens.pt")


def refine(model: VQModel, pictures: artwork.Artwork, args: argparse.Namespace) -> None:
    """Train the decoder on the tokens of the encoder, which stays as it is: what tokens mean does not change."""
    for part in (model.encoder, model.quant_conv, model.quantize):
        part.requires_grad_(False)
    drawn_from, _ = scenes.split()

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed + 1000, step)
        _, pixels = scenes.draw_batch(drawn_from, pictures, rng, args.batch)
        with torch.no_grad():
            codes = model.quantize.lookup(model.encode(pixels.contiguous(memory_format=torch.channels_last)))
        with torch.autocast("cpu", torch.bfloat16):
            restored = model.decode_latents(codes)
        return reconstruction_loss(restored, pixels)

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3, betas=(0.9, 0.99))
    training.run(scenes.BUILD / "image_decoder.pt", model, [optimizer], loss_of, steps=args.refine_steps, decay=0.99)


@torch.inference_mode()
def encode(model: VQModel, drawn: list[scenes.Scene], pictures: artwork.Artwork) -> Tensor:
    """Tokens of scenes, int16 (scenes, slots)."""
    chunks = []
    for first in range(0, len(drawn), 64):
        pixels = training.to_pixels([scenes.draw(scene, pictures) for scene in drawn[first : first + 64]])
        chunks.append(model.encode(pixels.contiguous(memory_format=torch.channels_last)).flatten(1).short())
        if first % 1024 == 0:
            print(f"encoded {first}/{len(drawn)} scenes", flush=True)
    return torch.cat(chunks)


def reconstruction_loss(restored: Tensor, pixels: Tensor) -> Tensor:
    """Absolute and squared error, and the error of edges, where blur costs most."""
    error = restored.float() - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + edges


if __name__ == "__main__":
    main()
