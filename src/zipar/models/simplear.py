"""SimpleAR (Wang et al., "SimpleAR: Pushing the Frontier of Autoregressive Visual Generation", arXiv 2504.11455).

A Qwen2 whose vocabulary goes on with the 64,000 codes of NVIDIA's video tokenizer Cosmos DV8x16x16, of which it writes
one frame: 64 x 64 tokens in raster order, without row ends, after a prompt (generate.py of wdrink/SimpleAR). The
modules are those of transformers' ``Qwen2ForCausalLM``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM

from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.cosmos import CosmosDecoder, CosmosTokenizerConfig
from zipar.models.extended import Extended
from zipar.models.mixed_modal import TOKEN_SIDE

BEGIN, BEGIN_IMAGE = "<|t2i|>", "<|soi|>"
POSITIVE_PROMPT = "A highly realistic image of "
"""Of the beginnings that it was trained on, the one that its authors use."""
NEGATIVE_PROMPT = (
    "An image of aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, "
    "bad eyes, bad limbs, distortion"
)
"""What the authors steer away from."""


class SimpleAR(Extended):
    """SimpleAR: square images, as large as it was trained on or a quarter, a half or three quarters as high and wide.

    Logits are those of image tokens alone. Guidance does not mind, for it takes each token by itself, but for a
    constant.
    """

    family = "simplear"
    network = Qwen2ForCausalLM
    special = (BEGIN, BEGIN_IMAGE)
    sampling = Sampling(guidance_scale=6.0)

    @classmethod
    def image_decoder(cls, shape: dict[str, Any]) -> nn.Module:
        return CosmosDecoder(CosmosTokenizerConfig(**shape))

    def grid(self, height: int, width: int) -> TokenGrid:
        *most, last = sides = [self.image_size[0] * quarters // 4 for quarters in (1, 2, 3, 4)]
        if height != width or height not in sides:
            raise ZipARError(
                f"this SimpleAR makes no images of {height}x{width} pixels (height x width): they are squares of "
                f"{', '.join(map(str, most))} or {last}, and best of {last}, on which it was trained last"
            )
        return TokenGrid(height // TOKEN_SIDE, width // TOKEN_SIDE)

    def conditional(self, prompt: str, grid: TokenGrid) -> list[int]:
        return self._around(prompt, POSITIVE_PROMPT + prompt.removeprefix(POSITIVE_PROMPT))

    def negative(self, prompt: str, grid: TokenGrid) -> list[int]:
        return self._around(prompt, prompt)

    def unconditional(self, grid: TokenGrid) -> list[int]:
        return self.negative(NEGATIVE_PROMPT, grid)

    def _around(self, prompt: str, text: str) -> list[int]:
        return self.read(prompt, f"{BEGIN}{text}{BEGIN_IMAGE}")

    def decoded(self, codes: Tensor) -> Tensor:
        frames = super().decoded
        return torch.cat([frames(image[:, None])[:, :, 0] for image in codes.split(1)])  # one alone takes gigabytes
