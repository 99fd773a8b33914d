"""Trains the decoder on prompts and tokens of random scenes."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import artwork
import scenes
import text
import text_encoder
import training
from image_tokenizer import CONFIG as IMAGE_TOKENIZER
from zipar.image_tokenizers.vq import VQModel
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
    attend_to_prefix=True,
)
PROMPT_DROPOUT = 0.1  # how often the prompt is left out, for classifier-free guidance
# Half of the pictures are seen through a mask: half of those wholly hidden, of the others a random share of the tokens.
# Otherwise the object's name is worth next to nothing, for a few tokens give the object away, and it is hardly learned.
MASKED_PICTURES = 0.5
WHOLLY_MASKED = 0.5


class TextToImage(nn.Module):
    """Text encoder, which stays as it is, and decoder; sequences are (prefix, image tokens)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder.encoder(words).requires_grad_(False)
        self.decoder = Transformer(CONFIG)
        self.rotary = rotary_2d(CONFIG.grid_side, CONFIG.head_dim, CONFIG.rope_base)
        self.mask = nn.Embedding(1, CONFIG.dim)  # needed in training alone
        for embedding in (self.mask, self.decoder.tok_embeddings):
            nn.init.normal_(embedding.weight, std=0.1)
        for layer in self.decoder.layers:
            nn.init.normal_(layer.attention.wqkv.weight, std=0.03)
            nn.init.zeros_(layer.attention.wo.weight)
            nn.init.zeros_(layer.feed_forward.w2.weight)
        nn.init.zeros_(self.decoder.output.weight)

    def forward(self, words: Tensor, valid: Tensor, dropped: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Logits (batch, slots, vocabulary) of ``tokens`` (batch, slots), given left-padded prompts.

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
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--muon-rate", type=float, default=2.5e-3)
    parser.add_argument("--adam-rate", type=float, default=1e-3)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pictures = artwork.load(training.BUILD / "artwork")
    image_tokenizer = VQModel(IMAGE_TOKENIZER).to(memory_format=torch.channels_last).eval()
    image_tokenizer.load_state_dict(torch.load(training.BUILD / "image_tokenizer_final.pt", weights_only=True))
    tokenizer = text.tokenizer(CONFIG.prefix_length)
    model = TextToImage(len(tokenizer))
    model.text_encoder.load_state_dict(torch.load(training.BUILD / "text_encoder_final.pt", weights_only=True))

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed, step)
        batch, pixels = training.draw_batch(pictures, rng, args.batch)
        prompts = [scenes.say(scene, rng)[0] for scene in batch]
        words = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
        dropped = torch.from_numpy(rng.random(args.batch) < PROMPT_DROPOUT)
        share = rng.random((args.batch, 1)) + (rng.random((args.batch, 1)) < WHOLLY_MASKED)
        share *= rng.random((args.batch, 1)) < MASKED_PICTURES
        hidden = torch.from_numpy(rng.random((args.batch, CONFIG.grid_side**2)) < share)
        with torch.no_grad():
            tokens = image_tokenizer.encode(pixels.contiguous(memory_format=torch.channels_last)).flatten(1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(words["input_ids"], words["attention_mask"], dropped, tokens, hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

    matrices = [
        w
        for part in (model.decoder.layers, model.decoder.cls_embedding.cap_proj)
        for w in part.parameters()
        if w.ndim == 2
    ]
    chosen = {id(w) for w in matrices}
    others = [w for w in model.parameters() if id(w) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, lr=args.adam_rate, betas=(0.9, 0.98)),
    ]
    parameters = sum(w.numel() for w in model.parameters())
    print(f"decoder: {parameters / 1e6:.2f} M parameters, {args.steps * args.batch} pictures", flush=True)
    training.run("decoder", model, optimizers, loss_of, steps=args.steps, decay=0.998, every=50)


if __name__ == "__main__":
    main()
