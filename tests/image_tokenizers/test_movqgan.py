"""MoVQGAN's image decoder against its authors' code (see tests/data/lumina_mgpt2.py)."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from zipar.image_tokenizers.movqgan import PUBLISHED, MoVQGANDecoder, renamed
from zipar.image_tokenizers.vq import VQConfig

RECORDED = load_file(Path(__file__).parents[1] / "data" / "lumina_mgpt2.safetensors")


def test_the_published_decoder_has_the_parameters_of_the_authors():
    with torch.device("meta"):
        model = MoVQGANDecoder()
    assert PUBLISHED.downsampling == 8
    assert sum(weight.numel() for weight in model.decoder.parameters()) == 161_118_211


@torch.inference_mode()
def test_pixels_are_those_of_the_authors(lumina_recipe):
    shapes = {name.removeprefix("movqgan."): shape for name, shape in RECORDED.items() if name.startswith("movqgan.")}
    weights = lumina_recipe.made_up({name: torch.Size(shape.tolist()) for name, shape in shapes.items()}, 1)
    config = VQConfig(16384, 4, 32, (1, 1, 1, 2), 1, 4)
    model = MoVQGANDecoder(config).eval()
    model.load_state_dict(renamed({name: value for name, value in weights.items() if name[:6] != "quant_"}, config))
    codes = RECORDED["codes"][None, :2, :3].long()
    pixels = model.decode(codes)
    torch.testing.assert_close(pixels, RECORDED["pixels"], atol=1e-4, rtol=0)
    assert pixels.std() > 0.1
    together = model.decode(torch.cat([codes.flip(1), codes]))
    torch.testing.assert_close(together[1:], pixels, atol=1e-4, rtol=0)
