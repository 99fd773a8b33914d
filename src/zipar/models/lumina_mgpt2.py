"""Lumina-mGPT 2.0 (Xin et al., arXiv 2507.17801): a Chameleon trained anew, on tokens of 8 x 8 pixels.

It writes what Lumina-mGPT writes, under other ids: the names that its tokenizer knows, and images of MoVQGAN's codes.
"""

from typing import Any

from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from zipar.checkpoints.pretrained import load_diffusers
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.image_tokenizers.movqgan import MoVQGANDecoder
from zipar.image_tokenizers.vq import VQConfig
from zipar.models.lumina_mgpt import LuminaMGPT


class WithoutImageEncoder(ChameleonForConditionalGeneration):
    """A Chameleon that has none: MoVQGAN's is another one than transformers has."""

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__(config)
        model: Any = self.model
        del model.vqmodel


class LuminaMGPT2(LuminaMGPT):
    """Lumina-mGPT 2.0. Prompts begin with what the config of its decoder says.

    A guidance scale holds for the whole image; in the authors' code one above 4 falls to 4 on the way.
    """

    family = "lumina_mgpt2"
    network = WithoutImageEncoder
    sampling = Sampling(guidance_scale=4.0, top_k=4096)
    """As in the README of the authors' repository."""
    token_side = 8
    image_side = 768

    @classmethod
    def image_decoder(cls, shape: dict[str, Any]) -> MoVQGANDecoder:
        load_diffusers("the image decoder of Lumina-mGPT 2.0", "lumina")
        return MoVQGANDecoder(VQConfig(**shape))

    def first_id(self) -> int:
        token = self.model.config.bos_token_id
        if token is None or not 0 <= token < self.model.config.vocab_size:
            raise ZipARError(f"the decoder's config says that prompts begin with token {token}, which it has not")
        return token
