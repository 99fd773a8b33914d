"""Trains the image tokenizer: frames of 64 px <-> 8 x 8 tokens out of 1024 (f8); then keeps the tokens of all frames.

k-means of all patches that occur gives the vocabulary. The encoder, which sees one patch a token
(:class:`emoji.image_tokenizer.PatchEncoder`), learns to name the nearest centre; then the decoder learns to draw what
the encoder names. A patch has the same token whatever is around it, so a moving object is a pattern that moves.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import kmeans
import training
from clips import scenes
from clips.scenes import GRID, PATCH, Painter, Scene
from emoji import artwork
from emoji.image_tokenizer import PatchEncoder, reconstruction_loss
from zipar.image_tokenizers.vq import VQConfig, VQModel

CONFIG = VQConfig(
    codebook_size=1024,
    codebook_dim=12,
    channels=16,
    channel_multipliers=(1, 2, 4, 4),
    residual_blocks=1,
    latent_channels=64,
    norm_groups=1,
)
SHARPNESS = 16.0  # of the encoder's choice between codes, which are unit vectors
HELD_OUT = 100  # clips that the quality is reported on


def barless() -> list[Scene]:
    """One scene of each object, size and background, in the order of ``ATTRIBUTES``."""
    kinds = itertools.product(*(scenes.ATTRIBUTES[name] for name in ("object", "size", "background")))
    return [Scene(*kind, "left", "slow", "no bar", (0, 0), scenes.NO_BAR) for kind in kinds]


def all_patches(painter: Painter) -> Tensor:
    """Every patch that occurs, once: float32 (patches, 3 * 8 * 8)."""
    phases = list(itertools.product(range(PATCH, 2 * PATCH, scenes.STEP), repeat=2))
    frames = [painter.frame(scene, place) for scene in barless() for place in phases]
    bar = np.full((1, PATCH, PATCH, 3), scenes.BAR, np.uint8)
    return torch.cat([kmeans.patches(np.stack(frames), PATCH).flatten(0, 1), kmeans.patches(bar, PATCH)[0]]).unique(
        dim=0
    )


def vocabulary(rows: Tensor, seed: int) -> Tensor:
    """Centres (codebook_size, 3 * 8 * 8); the first are the patches of one colour, that these are drawn exactly."""
    colours = rows.unflatten(1, (3, -1))
    plain = (colours == colours[:, :, :1]).all(-1).all(-1)
    count = CONFIG.codebook_size - int(plain.sum())
    centres = kmeans.find_centres(rows[~plain], count, torch.Generator().manual_seed(seed))
    return torch.cat([rows[plain], centres])


def codes_of(centres: Tensor) -> Tensor:
    """Unit vectors (n, codebook_dim) that are close where the centres are: their principal components."""
    centred = centres - centres.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    parts = centred @ axes[: CONFIG.codebook_dim].T
    return F.normalize(parts / parts.std(0).sqrt(), dim=-1)


def learn_to_name(
    model: VQModel, rows: Tensor, centres: Tensor, build: Path, steps: int, batch: int, seed: int
) -> None:
    """Train the encoder and the codes, on mosaics of patches."""
    names = kmeans.nearest(rows, centres)
    confined = PatchEncoder(model.encoder)
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(codes_of(centres))

    def loss_of(step: int) -> Tensor:
        confined.apply()
        chosen = torch.from_numpy(training.batch_rng(seed, step).integers(len(rows), size=(batch, GRID, GRID)))
        tiles = rows[chosen].unflatten(-1, (3, PATCH, PATCH))
        pixels = tiles.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, scenes.SIDE, scenes.SIDE)
        latents = model.latents(pixels.contiguous(memory_format=torch.channels_last))
        named = torch.einsum("bdhw,nd->bnhw", latents, model.quantize.codes) * SHARPNESS
        right.append((named.argmax(1) == names[chosen]).float().mean().item())
        return F.cross_entropy(named, names[chosen])

    right: list[float] = []
    trained = [w for part in (model.encoder, model.quant_conv, model.quantize) for w in part.parameters()]
    optimizer = torch.optim.Adam([w for w in trained if w.requires_grad], lr=2e-3, betas=(0.9, 0.99))
    training.run(
        build / "image_encoder.pt",
        model,
        [optimizer],
        loss_of,
        steps=steps,
        decay=0.99,
        report=lambda step: f"right on {np.mean(right[-100:]):.1%}",
    )
    confined.apply()
    for part in (model.encoder, model.quant_conv, model.quantize):
        part.to(torch.bfloat16).float()  # as they ship, so that the tokens learned are the tokens shipped
        part.requires_grad_(False)


def learn_to_draw(model: VQModel, painter: Painter, build: Path, steps: int, batch: int, seed: int) -> None:
    """Train the decoder on the tokens of the encoder, which stays as it is."""
    drawn_from, _ = scenes.split()

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(seed + 1000, step)
        pixels = training.to_pixels(some_frames(painter, drawn_from, rng, batch))
        with torch.no_grad():
            codes = model.quantize.lookup(model.encode(pixels))
        restored = model.decode_latents(codes.contiguous(memory_format=torch.channels_last))
        return reconstruction_loss(restored, pixels)

    trained = [w for part in (model.decoder, model.post_quant_conv) for w in part.parameters()]
    optimizer = torch.optim.Adam(trained, lr=2e-3, betas=(0.9, 0.99))
    training.run(build / "image_decoder.pt", model, [optimizer], loss_of, steps=steps, decay=0.99)


def some_frames(
    painter: Painter, drawn_from: list[tuple[str, ...]], rng: np.random.Generator, count: int
) -> list[np.ndarray]:
    """``count`` frames, each of another scene."""
    drawn = [scenes.sample(drawn_from, rng) for _ in range(count)]
    return [painter.frame(scene, scenes.positions(scene)[rng.integers(scenes.FRAMES)]) for scene in drawn]


class Tokens:
    """Tokens of clips, put together from those of all frames without a bar; a bar hides whole columns of tokens."""

    def __init__(self, frames: dict[str, Tensor], bar: Tensor) -> None:
        self.frames, self.bar = frames, bar

    @classmethod
    @torch.inference_mode()
    def of(cls, model: VQModel, painter: Painter) -> "Tokens":
        """As the encoder of ``model`` names them."""
        frames = {}
        for scene in barless():
            drawn = np.stack([painter.frame(scene, place) for place in scenes.places_of(scene.size)])
            pixels = training.to_pixels(list(drawn))
            named = [model.encode(part.contiguous(memory_format=torch.channels_last)) for part in pixels.split(64)]
            frames[" ".join((scene.object, scene.size, scene.background))] = torch.cat(named).short()
        bar = np.full((scenes.SIDE, scenes.SIDE, 3), scenes.BAR, np.uint8)
        return cls(frames, model.encode(training.to_pixels([bar]))[0, 0, 0].short())

    @classmethod
    def load(cls, build: Path) -> "Tokens":
        """What this script kept."""
        return cls(**torch.load(build / "tokens.pt", weights_only=True))

    def save(self, build: Path) -> None:
        training.keep({"frames": self.frames, "bar": self.bar}, build / "tokens.pt")

    def clip(self, scene: Scene) -> Tensor:
        """Tokens of a scene, int64 (frames * 8 * 8)."""
        known = self.frames[" ".join((scene.object, scene.size, scene.background))]
        across = (scenes.SIDE - scenes.SIZES[scene.size]) // scenes.STEP + 1
        places = [top // scenes.STEP * across + left // scenes.STEP for left, top in scenes.positions(scene)]
        clip = known[places]
        if scene.bar_column != scenes.NO_BAR:
            clip[:, :, scene.bar_column] = self.bar
        return clip.flatten().long()


@torch.inference_mode()
def quality(model: VQModel, painter: Painter, tokens: Tokens, seed: int) -> str:
    """How well held-out clips come out, and how often their tokens are those that ``tokens`` puts together."""
    _, held_out = scenes.split()
    rng = np.random.default_rng(seed)
    drawn = [scenes.sample(held_out, rng) for _ in range(HELD_OUT)]
    pixels = training.to_pixels([frame for scene in drawn for frame in painter.render(scene)])
    named = torch.cat([model.encode(part) for part in pixels.split(64)])
    same = named.flatten() == torch.cat([tokens.clip(scene) for scene in drawn])
    restored = torch.cat([model.decode(part).clamp(-1, 1) for part in named.split(64)])
    decibels = 10 * torch.log10(4 / (restored - pixels).square().mean())
    return f"held out: {decibels:.2f} dB; tokens put together are right on {same.float().mean():.2%}"


def main() -> None:
    parser = scenes.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of the encoder")
    parser.add_argument("--draw-steps", type=int, default=1500, help="of the decoder")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    painter = Painter(artwork.load(args.build / "artwork"))
    rows = all_patches(painter)
    model = VQModel(CONFIG).to(memory_format=torch.channels_last)
    learn_to_name(model, rows, vocabulary(rows, args.seed), args.build, args.steps, args.batch, args.seed)
    tokens = Tokens.of(model, painter)
    tokens.save(args.build)
    learn_to_draw(model, painter, args.build, args.draw_steps, args.batch, args.seed)
    training.keep(model.state_dict(), args.build / "image_tokenizer_final.pt")
    print(quality(model, painter, tokens, args.seed))


if __name__ == "__main__":
    main()
