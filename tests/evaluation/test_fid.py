import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from zipar import ZipARError
from zipar.evaluation.fid import Moments, frechet_distance, interval, kept_features, ratio, resample


def correlated(n: int, seed: int, dim: int = 6) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim)) + rng.standard_normal(dim))


def test_moments_are_numpy_s():
    features = correlated(50, 0)
    moments = Moments.of(features.float())
    np.testing.assert_allclose(moments.mean, features.mean(0), atol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(features.numpy(), rowvar=False), atol=1e-5)


def test_equal_sets_are_at_no_distance():
    moments = Moments.of(correlated(100, 0))
    assert frechet_distance(moments, moments) == pytest.approx(0, abs=1e-10)


def test_closed_form_where_covariances_commute():
    a = Moments(torch.tensor([0.0, 1.0, 2.0]).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0])).double())
    b = Moments(torch.tensor([1.0, 1.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0])).double())
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)


def test_agrees_with_the_root_of_the_product():
    a, b = Moments.of(correlated(80, 1)), Moments.of(correlated(90, 2))
    root = sqrtm((a.covariance @ b.covariance).numpy()).real
    expected = (a.mean - b.mean).square().sum() + torch.trace(a.covariance + b.covariance) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-9)


def test_fewer_samples_than_dimensions():
    a, b = Moments.of(correlated(4, 3)), Moments.of(correlated(5, 4))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


def test_moments_survive_a_file(tmp_path):
    moments = Moments.of(correlated(40, 5))
    moments.save(tmp_path / "reference.safetensors")
    loaded = Moments.load(tmp_path / "reference.safetensors")
    assert loaded.covariance.dtype == torch.float64
    assert frechet_distance(moments, loaded) == pytest.approx(0, abs=1e-8)


def test_features_are_kept_beside_moments(tmp_path):
    features, path = correlated(2100, 5), tmp_path / "reference.safetensors"
    moments = Moments.of(features)
    moments.save(path)
    assert kept_features(path) is None
    moments.save(path, features)
    kept = kept_features(path)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, features[:2000].half().float())
    assert frechet_distance(moments, Moments.load(path)) == pytest.approx(0, abs=1e-8)
    Moments.of(features).save(path, features[:, :2])
    with pytest.raises(ZipARError, match=r"reference.safetensors: .* \(2000, 2\), but should be \(n, 6\)"):
        kept_features(path)


def test_damaged_moments_are_refused(tmp_path):
    (tmp_path / "reference.safetensors").write_bytes(b"nonsense")
    for name in ("reference", "absent"):
        with pytest.raises(ZipARError, match=name):
            Moments.load(tmp_path / f"{name}.safetensors")
        with pytest.raises(ZipARError, match=name):
            kept_features(tmp_path / f"{name}.safetensors")


def test_resamples_of_equal_sets_are_equal():
    reference, features = Moments.of(correlated(200, 6)), correlated(100, 7)
    assert torch.equal(resample(features, reference, 20), resample(features.clone(), reference, 20))


def test_the_ratio_of_populations_lies_in_its_interval():
    """What two samples are away by, for there are few images, is no part of it."""
    generator, mean = torch.Generator().manual_seed(3), torch.tensor([1.0] + [0.0] * 7, dtype=torch.float64)
    reference = Moments(torch.zeros(8).double(), torch.eye(8).double())
    truth, held, raw = 4.0, 0, []
    for _ in range(60):
        far, near = (torch.randn(100, 8, generator=generator, dtype=torch.float64) + k * mean for k in (2, 1))
        far_apart, near_apart = (frechet_distance(reference, Moments.of(part)) for part in (far, near))
        raw.append(far_apart / near_apart)
        resampled = (resample(part, reference, 100) for part in (far, near))
        value, low, high = ratio(far_apart, near_apart, *resampled)
        assert low < value < high
        held += low < truth < high
    assert held >= 50  # of 60 at 95 %: less has a probability below 1e-3
    assert sum(raw) / len(raw) < 3.6


def test_no_ratio_to_what_may_be_at_no_distance():
    reference = Moments(torch.zeros(8).double(), torch.eye(8).double())
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(60, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    distances = [frechet_distance(reference, Moments.of(part)) for part in parts]
    assert ratio(*distances, *(resample(part, reference, 100) for part in parts)) is None


def test_interval_has_the_width_of_fresh_samples():
    mixing = torch.from_numpy(np.random.default_rng(8).standard_normal((4, 4)))
    generator = torch.Generator().manual_seed(9)

    def sample() -> torch.Tensor:
        return torch.randn(300, 4, generator=generator, dtype=torch.float64) @ mixing + 0.3

    reference = Moments(torch.zeros(4).double(), (mixing.T @ mixing))
    fresh = torch.tensor([frechet_distance(reference, Moments.of(sample())) for _ in range(500)])
    features = sample()
    estimate = frechet_distance(reference, Moments.of(features))
    low, high = interval(estimate, resample(features, reference, 500))
    assert low < estimate < high
    assert high - low == pytest.approx(float(fresh.quantile(0.975) - fresh.quantile(0.025)), rel=0.3)
