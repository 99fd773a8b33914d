import sys
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import torch

from zipar import ZipARError
from zipar.evaluation.inception import Inception


def noise(height: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.random((height, width, 3)) * generator.integers(50, 256, 3)).astype(np.uint8)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ZipARError, match=r"zipar-torch\[fid\]"):
        Inception()


NAME = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def stand_in(monkeypatch):
    """In the place of torch-fidelity: a network that would be built of anything."""
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.URL_INCEPTION_V3 = f"https://example.invalid/{NAME}"
    module.FeatureExtractorInceptionV3 = lambda *arguments: torch.nn.Identity()
    library = ModuleType("torch_fidelity")
    library.feature_extractor_inceptionv3 = module
    monkeypatch.setitem(sys.modules, "torch_fidelity", library)


@pytest.mark.usefixtures("stand_in")
def test_weights_that_cannot_be_downloaded(hub, monkeypatch, capsys):
    def offline(*arguments, **settings):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ZipARError, match=rf"no route to host.*example\.invalid.*{NAME}"):
        Inception()
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("stand_in")
def test_damaged_weights_are_named(hub):
    (hub / NAME).write_bytes(b"nonsense")
    with pytest.raises(ZipARError, match=rf"{NAME} .*remove it"):
        Inception()


class Intruder:
    def __reduce__(self):
        return exec, ("import zipar; zipar.intruded = True",)


@pytest.mark.usefixtures("stand_in")
def test_no_code_of_the_weights_is_run(hub):
    import zipar

    torch.save(Intruder(), hub / NAME)
    with pytest.raises(ZipARError, match=NAME):
        Inception()
    assert not hasattr(zipar, "intruded")


@pytest.fixture
def network(hub, monkeypatch):
    """torch-fidelity's own network, with random weights, where it would keep the published ones."""
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *arguments, **settings: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda self, weights: None)
        built = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(built.state_dict(), hub / NAME)
    return built


def test_features_are_torch_fidelity_s(network):
    images = np.stack([noise(40, 56, seed) for seed in range(2)])
    features = Inception().features(images)
    with torch.inference_mode():
        one_by_one = torch.cat([network(torch.from_numpy(image.transpose(2, 0, 1)[None]))[0] for image in images])
    assert features.shape == (2, 2048)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, one_by_one)
    assert features.std(0).mean() > 100 * (features - one_by_one).abs().mean()


@pytest.mark.usefixtures("network")
def test_what_is_no_image_is_refused():
    with pytest.raises(ZipARError, match="uint8"):
        Inception().features(np.zeros((1, 8, 8, 3), np.float32))
