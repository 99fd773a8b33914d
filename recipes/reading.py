"""Text encoders of small models: a word-level tokenizer, and a T5 encoder that can read before it is needed.

A decoder sees a prompt through attention that is spread over all its tokens. Were the object's name to be found at
one of them alone, it would be all but lost; a text encoder that comes trained, as FLAN-T5 does, has no such trouble.
So here it learns first to tell, by every token's features, the whole scene.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

import training

WIDTH = 128
LENGTH = 24  # tokens of a prompt at most


def tokenizer(vocabulary: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Words of a vocabulary (as ``zipar.prompts`` has it) become tokens; whatever else a prompt says is passed over."""
    phrases = [p for values in vocabulary["attributes"].values() for ps in values.values() for p in ps]
    words = sorted({word for phrase in [*phrases, *vocabulary["fillers"]] for word in re.findall(r"\w+", phrase)})
    ids = {word: i for i, word in enumerate(["<pad>", "</s>", *words])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    backend.normalizer = normalizers.Lowercase()
    known = Regex(rf"\b({'|'.join(words)})\b")
    backend.pre_tokenizer = pre_tokenizers.Split(known, behavior="removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", model_max_length=LENGTH, padding_side="left"
    )


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
    """The text encoder, and a linear reading of all attributes off each token's features; "not said" is a value too.

    ``values`` tells how many values each attribute has.
    """

    def __init__(self, words: int, values: Sequence[int]) -> None:
        super().__init__()
        self.text_encoder = encoder(words)
        self.sizes = [count + 1 for count in values]
        self.head = nn.Linear(WIDTH, sum(self.sizes))

    def forward(self, words: Tensor, valid: Tensor) -> list[Tensor]:
        """Logits (batch, length, values + 1) of each attribute."""
        features = self.text_encoder(input_ids=words, attention_mask=valid).last_hidden_state
        return list(self.head(features).split(self.sizes, dim=-1))


def learn(
    vocabulary: dict[str, Any],
    attributes: dict[str, list[str]],
    said: Callable[[np.random.Generator], tuple[str, dict[str, str]]],
    build: Path,
    *,
    steps: int,
    batch: int,
    seed: int,
) -> None:
    """Train a text encoder on prompts, and keep it in ``build``.

    ``said`` gives a random prompt, and the value of each attribute that it mentions.
    """
    torch.manual_seed(seed)
    reading = tokenizer(vocabulary)
    reader = Reader(len(reading), [len(values) for values in attributes.values()])

    def loss_of(step: int) -> Tensor:
        rng = training.batch_rng(seed, step)
        prompts, meant = zip(*(said(rng) for _ in range(batch)), strict=True)
        words = reading(list(prompts), padding=True, truncation=True, return_tensors="pt")
        logits = reader(words["input_ids"], words["attention_mask"])
        valid = words["attention_mask"].bool()
        losses = []
        for i, (name, values) in enumerate(attributes.items()):
            labels = [values.index(each[name]) if name in each else len(values) for each in meant]
            target = torch.tensor(labels)[:, None].expand(valid.shape)
            losses.append(F.cross_entropy(logits[i][valid], target[valid]))
        return torch.stack(losses).sum()

    optimizer = torch.optim.Adam(reader.parameters(), lr=2e-3, betas=(0.9, 0.98))
    training.run(build / "text_encoder.pt", reader, [optimizer], loss_of, steps=steps, decay=0.99)
    training.keep(reader.text_encoder.state_dict(), build / "text_encoder_final.pt")
