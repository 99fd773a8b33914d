"""Teaches the text encoder to read before the decoder needs it: every token's features tell the whole scene.

The decoder sees a prompt through attention that is spread over all its tokens. Were the object's name to be found at
one of them alone, it would be all but lost; a text encoder that comes trained, as FLAN-T5 does, has no such trouble.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

import training
from emoji import scenes, text

WIDTH = 128
LENGTH = 24  # tokens of a prompt at most


def encoder(words: int) -> T5EncoderModel:
    """An untrained text encoder for ``words`` different tokens."""
    return T5EncoderModel(
        T5Config(
            vocab_size=words,
            d_model=WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


class Reader(nn.Module):
    """The text encoder, and a linear reading of all attributes off each token's features; "not said" is a value too."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.text_encoder = encoder(words)
        self.sizes = [len(values) + 1 for values in scenes.ATTRIBUTES.values()]
        self.head = nn.Linear(WIDTH, sum(self.sizes))

    def forward(self, words: Tensor, valid: Tensor) -> list[Tensor]:
        """Logits (batch, length, values + 1) of each attribute."""
        features = self.text_encoder(input_ids=words, attention_mask=valid).last_hidden_state
        return list(self.head(features).split(self.sizes, dim=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = text.tokenizer(LENGTH)
    reader = Reader(len(tokenizer))

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(args.seed, step)
        drawn = [scenes.sample(rng) for _ in range(args.batch)]
        prompts, mentioned = zip(*(scenes.say(scene, rng) for scene in drawn), strict=True)
        words = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        labels = torch.tensor([scene.labels() for scene in drawn])
        logits = reader(words["input_ids"], words["attention_mask"])
        valid = words["attention_mask"].bool()
        losses = []
        for i, name in enumerate(scenes.ATTRIBUTES):
            said = torch.tensor([name == "object" or name in names for names in mentioned])
            target = torch.where(said, labels[:, i], reader.sizes[i] - 1)[:, None].expand(valid.shape)
            losses.append(F.cross_entropy(logits[i][valid], target[valid]))
        return torch.stack(losses).sum()

    optimizer = torch.optim.Adam(reader.parameters(), lr=2e-3, betas=(0.9, 0.98))
    training.run(scenes.BUILD / "text_encoder.pt", reader, [optimizer], loss_of, steps=args.steps, decay=0.99)
    torch.save(reader.text_encoder.state_dict(), scenes.BUILD / "text_encoder_final.pt")


if __name__ == "__main__":
    main()
