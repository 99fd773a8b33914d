import pytest
import torch
import torch.nn.functional as F

from zipar.image_tokenizers.vq import AttnBlock, Codebook, Downsample, VQConfig, VQModel


@pytest.mark.parametrize(
    ("multipliers", "downsampling", "parameters"),
    [((1, 1, 2, 2, 4), 16, 71_883_403), ((1, 2, 2, 4), 8, 70_109_835)],
    ids=["VQ-16", "VQ-8"],
)
def test_published_tokenizers_have_the_parameters_of_the_authors_models(multipliers, downsampling, parameters):
    config = VQConfig(channel_multipliers=multipliers)
    with torch.device("meta"):
        model = VQModel(config)
    assert config.downsampling == downsampling
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@torch.inference_mode()
def test_shapes_for_images_that_are_not_square():
    torch.manual_seed(0)
    model = VQModel(VQConfig(32, 4, 16, (1, 2, 2), 1, 8, norm_groups=4)).eval()
    indices = model.encode(torch.rand(2, 3, 16, 24) * 2 - 1)
    assert indices.shape == (2, 4, 6)
    assert indices.dtype == torch.int64
    assert model.decode(indices).shape == (2, 3, 16, 24)


@torch.inference_mode()
def test_the_nearest_code_is_nearest_on_the_unit_sphere():
    torch.manual_seed(0)
    codebook = Codebook(50, 4)
    latents = F.normalize(torch.randn(2, 4, 3, 5), dim=1)
    codes = codebook.embedding.weight / codebook.embedding.weight.norm(dim=1, keepdim=True)
    distances = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 4), codes)
    assert torch.equal(codebook.nearest(latents).flatten(), distances.argmin(1))


@torch.inference_mode()
def test_codes_are_looked_up_in_place_and_found_again():
    torch.manual_seed(0)
    codebook = Codebook(50, 4)
    indices = torch.randint(0, 50, (2, 3, 5))
    codes = codebook.lookup(indices)
    assert torch.equal(codes[1, :, 2, 4], codebook.codes[indices[1, 2, 4]])
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2, 3, 5))
    assert torch.equal(codebook.nearest(codes), indices)


@torch.inference_mode()
def test_attention_is_softmax_over_all_positions():
    torch.manual_seed(0)
    block = AttnBlock(8, groups=2)
    x = torch.randn(1, 8, 3, 4)
    q, k, v = ((layer(block.norm(x))).flatten(2)[0] for layer in (block.q, block.k, block.v))
    weights = (q.T @ k / 8**0.5).softmax(-1)
    wanted = x + block.proj_out((v @ weights.T).view(1, 8, 3, 4))
    torch.testing.assert_close(block(x), wanted)


@torch.inference_mode()
def test_downsampling_pads_below_and_on_the_right_alone():
    layer = Downsample(1)
    layer.conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    layer.conv.bias.zero_()
    picture = torch.zeros(1, 1, 4, 4)
    picture[0, 0, 0, 0] = 1  # seen by the first weight of the first window, and by nothing else
    picture[0, 0, 3, 3] = 10
    assert layer(picture)[0, 0].tolist() == [[0, 0], [0, 40]]
