"""The image decoder of Chameleon; that its pixels are Meta's is tested in tests/models/test_lumina_mgpt.py."""

import pytest
import torch

import zipar
from zipar.image_tokenizers.chameleon import ChameleonImageDecoder, code_ids
from zipar.image_tokenizers.vq import AttnBlock, VQConfig


def test_the_published_decoder_has_attention_in_its_middle_alone_and_metas_parameters():
    with torch.device("meta"):
        decoder = ChameleonImageDecoder()
    assert [name for name, module in decoder.named_modules() if isinstance(module, AttnBlock)] == ["decoder.mid.attn_1"]
    assert sum(weight.numel() for weight in decoder.parameters()) == 41_457_795


@torch.inference_mode()
def test_shapes_for_images_that_are_not_square():
    torch.manual_seed(0)
    decoder = ChameleonImageDecoder(VQConfig(32, 4, 16, (1, 2), 1, 8, norm_groups=4)).eval()
    indices = torch.randint(0, 32, (2, 3, 5))
    pixels = decoder.decode(indices)
    assert pixels.shape == (2, 3, 6, 10)
    torch.testing.assert_close(decoder.decode(indices[1:]), pixels[1:])


def test_codes_are_named_by_digits_as_letters():
    names = {"IMGIMGAZ": 7, "IMGIMGCZ": 5, "IMGIMGBZ": 9, "IMGIMG": 1, "IMGIMGKZ": 2, "IMGIMGB": 3, "fox": 4}
    assert code_ids(names).tolist() == [7, 9, 5]
    letters = dict(zip("0123456789", "ABCDEFGHIJ", strict=True))
    many = {f"IMGIMG{''.join(letters[d] for d in str(code))}Z": 9999 - code for code in range(8192)}
    assert code_ids(many).equal(9999 - torch.arange(8192))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"fox": 3}, "names no image tokens"),
        ({"IMGIMGAZ": 3, "IMGIMGDZ": 4}, "lacks 2 image tokens, such as that of code 1"),
    ],
)
def test_a_vocabulary_of_another_model(names, message):
    with pytest.raises(zipar.ZipARError, match=message):
        code_ids(names)
