"""Trains the decoder on prompts and tokens of random scenes; then on its own mistakes, to recover from them."""

import argparse

import torch
from torch import Tensor

import reading
import training
from emoji import scenes, text
from emoji.image_tokenizer import CONFIG as IMAGE_TOKENIZER
from prompted import Prompted, conditions
from zipar.models.llamagen import LlamaGenConfig, rotary_2d

CONFIG = LlamaGenConfig(
    layers=6,
    heads=8,
    dim=256,
    vocab_size=IMAGE_TOKENIZER.codebook_size,
    prefix_length=reading.LENGTH,
    caption_dim=reading.WIDTH,
    grid_side=16,
    multiple_of=32,
)


def untrained(words: int) -> Prompted:
    """Text encoder and decoder for ``words`` different tokens of text."""
    return Prompted(CONFIG, rotary_2d(CONFIG.grid_side, CONFIG.head_dim, CONFIG.rope_base), words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--own-steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--muon-rate", type=float, default=2.5e-3)
    parser.add_argument("--adam-rate", type=float, default=1e-3)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    drawn_from, _ = scenes.split()
    pictures = torch.load(scenes.BUILD / "tokens.pt", weights_only=True)
    tokenizer = reading.tokenizer(text.vocabulary())
    model = untrained(len(tokenizer))
    model.text_encoder.load_state_dict(torch.load(scenes.BUILD / "text_encoder_final.pt", weights_only=True))

    def loss_of(step: int, own: bool = False) -> Tensor:
        rng = training.batch_rng(args.seed + 1000 * own, step)
        chosen = rng.integers(len(drawn_from), size=args.batch)
        tokens = pictures[chosen].long()
        prompts = [scenes.say(drawn_from[i], rng)[0] for i in chosen]
        words = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        dropped, hidden = conditions(rng, args.batch, CONFIG.grid_side**2)
        valid = words["attention_mask"]
        with torch.autocast("cpu", torch.bfloat16):
            return model.loss(words["input_ids"], valid, dropped, tokens, hidden, rng if own else None)

    parameters = sum(w.numel() for w in model.parameters())
    print(f"decoder: {parameters / 1e6:.2f} M parameters, {args.steps * args.batch} pictures", flush=True)
    optimizers = model.optimizers(args.muon_rate, args.adam_rate)
    training.run(scenes.BUILD / "decoder.pt", model, optimizers, loss_of, steps=args.steps, decay=0.998, every=50)
    optimizers = model.optimizers(args.muon_rate / 2, args.adam_rate / 2)
    training.run(
        scenes.BUILD / "decoder_own.pt",
        model,
        optimizers,
        lambda step: loss_of(step, own=True),
        steps=args.own_steps,
        decay=0.99,
        every=50,
    )


if __name__ == "__main__":
    main()
