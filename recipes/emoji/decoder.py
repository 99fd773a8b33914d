"""Trains the decoder on prompts and tokens of random scenes; then on its own mistakes, to recover from them."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import training
from emoji import scenes, text, text_encoder
from emoji.image_tokenizer import CONFIG as IMAGE_TOKENIZER
from zipar.models.llamagen import LlamaGenConfig, Transformer, prefix_rotary, rotary_2d

CONFIG = LlamaGenConfig(
    layers=6,
    heads=8,
    dim=256,
    vocab_size=IMAGE_TOKENIZER.codebook_size,
    prefix_length=text_encoder.LENGTH,
    caption_dim=text_encoder.WIDTH,
    grid_side=16,
    multiple_of=32,
)
PROMPT_DROPOUT = 0.1  # how often the prompt is left out, for classifier-free guidance
# Half of the pictures are seen through a mask: half of those wholly hidden, of the others a random share of the tokens.
# Otherwise the object's name is worth next to nothing, for a few tokens give the object away, and it is hardly learned.
MASKED_PICTURES = 0.5
WHOLLY_MASKED = 0.5
OWN_TEMPERATURE = 1.5  # of the tokens that it draws itself in the second part


class TextToImage(nn.Module):
    """Text encoder, which stays as it is, and decoder; sequences are (prefix, image tokens)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder.encoder(words).requires_grad_(False)
        self.decoder = Transformer(CONFIG)
        self.rotary = rotary_2d(CONFIG.grid_side, CONFIG.head_dim, CONFIG.rope_base)
        self.mask = nn.Embedding(1, CONFIG.dim)  # needed in training alone
        nn.init.normal_(self.mask.weight, std=0.1)
        training.initialise(self.decoder)

    def forward(self, words: Tensor, valid: Tensor, dropped: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Logits (batch, slots, vocabulary) of each token after those in ``tokens`` (batch, slots) and the prompt.

        ``dropped`` (batch,) prompts count as absent; ``hidden`` (batch, slots) tokens are not shown to later ones.
        """
        captions = self.text_encoder(input_ids=words, attention_mask=valid).last_hidden_state
        embedder = self.decoder.cls_embedding
        absent = embedder.uncond_embedding[-captions.shape[1] :]
        prefix = embedder(torch.where(dropped[:, None, None], absent, captions))
        shown = torch.where(hidden[..., None], self.mask.weight, self.decoder.tok_embeddings(tokens))
        states = torch.cat([prefix, shown[:, :-1]], dim=1)
        length = states.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen = seen & F.pad(valid.bool(), (0, length - valid.shape[1]), value=True)[:, None]
        seen = seen | torch.eye(length, dtype=torch.bool)
        mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None]
        rotary = torch.cat([prefix_rotary(CONFIG, valid.shape[1]), self.rotary])
        states = self.decoder(states, rotary[None, :length], mask)
        return self.decoder.output(states[:, valid.shape[1] - 1 :])


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
    tokenizer = text.tokenizer(CONFIG.prefix_length)
    model = TextToImage(len(tokenizer))
    model.text_encoder.load_state_dict(torch.load(scenes.BUILD / "text_encoder_final.pt", weights_only=True))

    def loss_of(step: int, own: bool = False) -> Tensor:
        rng = training.batch_rng(args.seed + 1000 * own, step)
        chosen = rng.integers(len(drawn_from), size=args.batch)
        tokens = pictures[chosen].long()
        prompts = [scenes.say(drawn_from[i], rng)[0] for i in chosen]
        words = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        dropped = torch.from_numpy(rng.random(args.batch) < PROMPT_DROPOUT)
        share = rng.random((args.batch, 1)) + (rng.random((args.batch, 1)) < WHOLLY_MASKED)
        share *= rng.random((args.batch, 1)) < MASKED_PICTURES
        hidden = torch.from_numpy(rng.random((args.batch, CONFIG.grid_side**2)) < share)
        prompt = (words["input_ids"], words["attention_mask"], dropped)
        shown = tokens
        with torch.autocast("cpu", torch.bfloat16):
            if own:
                with torch.no_grad():
                    logits = model(*prompt, tokens, hidden).float() / OWN_TEMPERATURE
                noise = torch.from_numpy(rng.gumbel(size=logits.shape).astype("float32"))
                replaced = torch.from_numpy(rng.random(tokens.shape) < rng.random((args.batch, 1)))
                shown = (logits + noise).argmax(-1).where(replaced, tokens)
            logits = model(*prompt, shown, hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

    parameters = sum(w.numel() for w in model.parameters())
    print(f"decoder: {parameters / 1e6:.2f} M parameters, {args.steps * args.batch} pictures", flush=True)
    between = (model.decoder.layers, model.decoder.cls_embedding.cap_proj)
    optimizers = training.make_optimizers(model, between, args.muon_rate, args.adam_rate)
    training.run(scenes.BUILD / "decoder.pt", model, optimizers, loss_of, steps=args.steps, decay=0.998, every=50)
    # Scheduled sampling, in parallel (Mihaylova & Martins, 2019): some tokens of the context are now those that the
    # model itself would have drawn, and it still has to find the right ones.
    optimizers = training.make_optimizers(model, between, args.muon_rate / 2, args.adam_rate / 2)
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
