"""What the decoders of prompts have in common while they learn."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reading
import training
from zipar.models.llamagen import LlamaGenConfig, Transformer, prefix_rotary

PROMPT_DROPOUT = 0.1  # how often the prompt is left out, for classifier-free guidance
# Half of the pictures are seen through a mask: half of those wholly hidden, of the others a random share of the tokens.
# Otherwise the object's name is worth next to nothing, for a few tokens give the object away, and it is hardly learned.
MASKED_PICTURES = 0.5
WHOLLY_MASKED = 0.5
OWN_TEMPERATURE = 1.5  # of the tokens that a decoder draws itself


def conditions(rng: np.random.Generator, count: int, slots: int) -> tuple[Tensor, Tensor]:
    """Which of ``count`` prompts are left out, bool (count,); which tokens are hidden, bool (count, slots)."""
    dropped = rng.random(count) < PROMPT_DROPOUT
    share = rng.random((count, 1)) + (rng.random((count, 1)) < WHOLLY_MASKED)
    share *= rng.random((count, 1)) < MASKED_PICTURES
    return torch.from_numpy(dropped), torch.from_numpy(rng.random((count, slots)) < share)


class Prompted(nn.Module):
    """Text encoder, which stays as it is, and decoder; sequences are (prefix, visual tokens).

    ``rotary`` (slots, head_dim / 2) holds the complex rotations of the visual tokens.
    """

    def __init__(self, config: LlamaGenConfig, rotary: Tensor, words: int) -> None:
        super().__init__()
        self.text_encoder = reading.encoder(words).requires_grad_(False)
        self.decoder = Transformer(config)
        self.rotary = rotary
        self.mask = nn.Embedding(1, config.dim)  # needed in training alone
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
        if self.decoder.places is not None:
            shown = shown + self.decoder.places(torch.arange(tokens.shape[1]))
        states = torch.cat([prefix, shown[:, :-1]], dim=1)
        length = states.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen = seen & F.pad(valid.bool(), (0, length - valid.shape[1]), value=True)[:, None]
        seen = seen | torch.eye(length, dtype=torch.bool)
        mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None]
        rotary = torch.cat([prefix_rotary(self.decoder.config, valid.shape[1]), self.rotary])
        states = self.decoder(states, rotary[None, :length], mask)
        return self.decoder.output(states[:, valid.shape[1] - 1 :])

    def optimizers(self, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
        """Muon for the matrices between embeddings and output, Adam for the rest."""
        between = (self.decoder.layers, self.decoder.cls_embedding.cap_proj)
        return training.make_optimizers(self, between, muon_rate, adam_rate)

    def loss(
        self,
        words: Tensor,
        valid: Tensor,
        dropped: Tensor,
        tokens: Tensor,
        hidden: Tensor,
        own: np.random.Generator | None = None,
    ) -> Tensor:
        """Nats a token.

        With a generator ``own``, some of the tokens shown are those that the model itself would have drawn, and it
        still has to find the right ones: scheduled sampling, in parallel (Mihaylova & Martins, 2019).
        """
        shown = tokens
        if own is not None:
            with torch.no_grad():
                logits = self(words, valid, dropped, tokens, hidden).float() / OWN_TEMPERATURE
            noise = torch.from_numpy(own.gumbel(size=logits.shape).astype("float32"))
            replaced = torch.from_numpy(own.random(tokens.shape) < own.random((len(tokens), 1)))
            shown = (logits + noise).argmax(-1).where(replaced, tokens)
        logits = self(words, valid, dropped, shown, hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
