"""Trains the decoder on prompts and tokens of random clips; then on its own mistakes, to recover from them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import reading
import training
from clips import scenes, text
from clips.image_tokenizer import CONFIG as IMAGE_TOKENIZER
from clips.image_tokenizer import Tokens
from prompted import Prompted, conditions
from zipar.models.clips import rotary_3d
from zipar.models.llamagen import LlamaGenConfig

CONFIG = LlamaGenConfig(
    layers=6,
    heads=6,
    dim=192,
    vocab_size=IMAGE_TOKENIZER.codebook_size,
    prefix_length=reading.LENGTH,
    caption_dim=reading.WIDTH,
    grid_side=scenes.GRID,
    multiple_of=32,
    rope_base=100.0,
    frames=scenes.FRAMES,
)
FRAME = scenes.GRID**2  # tokens
# (share of the steps, frames that are seen until then): the first frames hold most of what there is to learn
LENGTHS = ((0.5, 2), (0.8, 4), (1.0, 8))
HELD_OUT = 24  # clips that the loss is reported on


def untrained(words: int) -> Prompted:
    """Text encoder and decoder for ``words`` different tokens of text."""
    return Prompted(CONFIG, rotary_3d(CONFIG.frames, CONFIG.grid_side, CONFIG.head_dim, CONFIG.rope_base), words)


def main() -> None:
    parser = scenes.parser(__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--own-steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--muon-rate", type=float, default=2.5e-3)
    parser.add_argument("--adam-rate", type=float, default=1e-3)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    drawn_from, held_out = scenes.split()
    known = Tokens.load(args.build)
    tokenizer = reading.tokenizer(text.vocabulary())
    model = untrained(len(tokenizer))
    model.text_encoder.load_state_dict(torch.load(args.build / "text_encoder_final.pt", weights_only=True))

    def batch(
        combinations: list[tuple[str, ...]], rng: np.random.Generator, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Words, which of them are valid, and tokens, of random clips."""
        drawn = [scenes.sample(combinations, rng) for _ in range(count)]
        prompts = [scenes.say(scene, rng)[0] for scene in drawn]
        words = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        return words["input_ids"], words["attention_mask"], torch.stack([known.clip(scene) for scene in drawn])

    def loss_of(step: int, own: bool = False) -> Tensor:
        rng = training.batch_rng(args.seed + 1000 * own, step)
        words, valid, tokens = batch(drawn_from, rng, args.batch)
        if not own:
            frames = next(frames for share, frames in LENGTHS if step < share * args.steps)
            tokens = tokens[:, : frames * FRAME]
        dropped, masked = conditions(rng, args.batch, FRAME)
        # later frames stay visible, for they tell how it moves
        hidden = F.pad(masked, (0, tokens.shape[1] - FRAME))
        return model.loss(words, valid, dropped, tokens, hidden, rng if own else None)

    checked = batch(held_out, np.random.default_rng(args.seed), HELD_OUT)

    @torch.no_grad()
    def report(step: int) -> str:
        """Nats a token in each frame of clips that are not learned from."""
        words, valid, tokens = checked
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        logits = model(words, valid, nothing[:, 0], tokens, nothing)
        nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        frames = nats.view(-1, scenes.FRAMES, FRAME).mean((0, 2)).tolist()
        return "held out, frame by frame: " + " ".join(f"{each:.3f}" for each in frames)

    parameters = sum(w.numel() for w in model.parameters())
    print(f"decoder: {parameters / 1e6:.2f} M parameters, {args.steps * args.batch} clips", flush=True)
    optimizers = model.optimizers(args.muon_rate, args.adam_rate)
    training.run(
        args.build / "decoder.pt", model, optimizers, loss_of, steps=args.steps, decay=0.99, report=report, every=50
    )
    print(f"averaged: {report(args.steps)}", flush=True)
    training.run(
        args.build / "decoder_own.pt",
        model,
        model.optimizers(args.muon_rate / 2, args.adam_rate / 2),
        lambda step: loss_of(step, own=True),
        steps=args.own_steps,
        decay=0.99,
        report=report,
        every=50,
    )
    print(f"averaged: {report(args.own_steps)}", flush=True)


if __name__ == "__main__":
    main()
