import sys
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from zipar import ZipARError
from zipar.evaluation.fid import frechet_distance
from zipar.evaluation.inception import Inception, folder_moments


def colours(images: np.ndarray) -> torch.Tensor:
    """Features that any size has: the mean and the spread of the colours."""
    pixels = torch.from_numpy(images).double().flatten(1, 2)
    return torch.cat([pixels.mean(1), pixels.std(1)], 1)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.random((height, width, 3)) * generator.integers(50, 256, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """More pictures than go at a time, of three sizes, one below the other."""
    sizes = [(5, 7), (7, 5), (8, 8)]
    made = [noise(*sizes[seed % 3], seed) for seed in range(70)]
    for number, image in enumerate(made):
        (tmp_path / "pictures" / str(number % 4)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "pictures" / str(number % 4) / f"{number}.png")
    return SimpleNamespace(path=tmp_path / "pictures", images=made)


def test_moments_of_a_folder_are_those_of_its_pictures(folder):
    moments = folder_moments(folder.path, colours)
    pixels = [image.reshape(-1, 3).astype(float) for image in folder.images]
    expected = np.array([[*each.mean(0), *each.std(0, ddof=1)] for each in pixels])
    np.testing.assert_allclose(moments.mean, expected.mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(expected, rowvar=False), atol=1e-9)
    assert frechet_distance(moments, folder_moments(folder.path, colours)) == pytest.approx(0, abs=1e-6)


def test_pictures_go_together_where_they_can(folder):
    calls = []
    folder_moments(folder.path, lambda images: calls.append(images.shape) or colours(images))
    assert sum(shape[0] for shape in calls) == 70
    assert len(calls) <= 9
    assert max(shape[0] for shape in calls) <= 32


@pytest.mark.parametrize("names", [[], ["only.png"]])
def test_a_folder_of_less_than_two_pictures_is_named(names, tmp_path):
    for name in names:
        Image.fromarray(noise(4, 4, 0)).save(tmp_path / name)
    with pytest.raises(ZipARError, match=rf"{tmp_path.name} .* at least 2 .* {'only.png' if names else 'none'}"):
        folder_moments(tmp_path, colours)


def test_a_picture_that_is_none_is_named(folder):
    (folder.path / "broken.jpg").write_text("no picture")
    with pytest.raises(ZipARError, match=r"broken\.jpg"):
        folder_moments(folder.path, colours)


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
