"""Liquid (Wu et al., "Liquid: Language Models are Scalable and Unified Multi-modal Generators", arXiv 2412.04332).

A Gemma whose vocabulary goes on with the 8,192 codes of Chameleon's image tokenizer, of which it writes 32 x 32 in
raster order, without row ends, after a prompt (evaluation/inference_t2i.py of FoundationVision/Liquid). The modules are
those of transformers' ``GemmaForCausalLM``.
"""

from transformers import GemmaForCausalLM

from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.extended import Extended
from zipar.models.mixed_modal import TOKEN_SIDE

REQUEST = " Generate an image based on this description."
"""Of the ten requests that it was trained on, the one that its authors use."""
BEGIN, BEGIN_IMAGE, UNCONDITIONAL = "<bos>", "<boi>", "<unconditional>"


class Liquid(Extended):
    """Liquid: square images of one size. Logits are those of image tokens alone, which the authors draw alone too."""

    family = "liquid"
    network = GemmaForCausalLM
    special = (BEGIN, BEGIN_IMAGE, UNCONDITIONAL)
    sampling = Sampling(guidance_scale=7.0, temperature=0.99, top_k=4096, top_p=0.96)

    def grid(self, height: int, width: int) -> TokenGrid:
        if (height, width) != self.image_size:
            raise ZipARError(
                f"this Liquid makes no images of {height}x{width} pixels (height x width): "
                f"it was trained on {self.image_size[0]}x{self.image_size[1]} alone"
            )
        return TokenGrid(height // TOKEN_SIDE, width // TOKEN_SIDE)

    def conditional(self, prompt: str, grid: TokenGrid) -> list[int]:
        words = self.read(prompt, f"{prompt}{REQUEST}{BEGIN_IMAGE}")
        return [self.ids[BEGIN], *words]

    def unconditional(self, grid: TokenGrid) -> list[int]:
        return [self.ids[name] for name in (BEGIN, UNCONDITIONAL, BEGIN_IMAGE)]
