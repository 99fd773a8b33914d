"""The benchmark of GPUs, at toy size on a CPU: what it counts, that it resumes, and that it survives a full memory."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from zipar import CoupledJacobi, ZipAR


@pytest.fixture(scope="module")
def gpu():
    path = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(gpu, folder, shape="toy LlamaGen", batches=("1",), limit="96", acceptance=("0", "1")):
    options = ["--shapes", shape, "--batches", *batches, "--acceptance", *acceptance, "--passes-limit", limit]
    gpu.main(["--toy", "--output", str(folder), *options])
    return json.loads((folder / "gpu.json").read_text())


@pytest.mark.parametrize("shape", ["toy LlamaGen", "toy Janus", "toy Emu3.5", "toy GLM-Image"])
def test_counts_the_passes_of_known_acceptance(gpu, tmp_path, shape):
    rates = (0, 1) if shape == "toy LlamaGen" else (1,)  # the same for any model
    report = run(gpu, tmp_path, shape, acceptance=map(str, rates))
    grid = gpu.grid_of(gpu.TOYS[shape])
    rows = {(row["strategy"], row["acceptance"]): row for row in report["shapes"][shape]["batches"]["1"]}
    expected = {
        ("raster", None): grid.tokens,
        ("ZipAR 8", None): ZipAR(8).passes(grid),
        ("ZipAR 4", None): ZipAR(4).passes(grid),
        ("ZipAR 4, 8 ahead", 0): ZipAR(4).passes(grid),
        ("ZipAR 4, 8 ahead", 1): ZipAR(4, 8).fewest_passes(grid),
        ("Jacobi, 16 ahead", 0): grid.tokens,
        ("Jacobi, 16 ahead", 1): CoupledJacobi(16).fewest_passes(grid),
    }
    expected = {key: passes for key, passes in expected.items() if key[1] in (None, *rates)}
    assert {key: row["forward_passes"] for key, row in rows.items()} == expected
    for row in rows.values():
        assert row["timed_passes"] == row["forward_passes"] - 1
        assert not row["extrapolated"]
        assert row["least_milliseconds_a_pass"] > 0
        assert row["seconds_an_image"] > 0
    assert shape in (tmp_path / "gpu.md").read_text()


def test_passes_beyond_the_limit_are_extrapolated(gpu, tmp_path):
    report = run(gpu, tmp_path, limit="5")
    for row in report["shapes"]["toy LlamaGen"]["batches"]["1"]:
        if row["forward_passes"] > 6:
            assert row["extrapolated"]
            assert row["timed_passes"] == 5
            expected = row["prefill_seconds"] + row["milliseconds_a_pass"] / 1000 * (row["forward_passes"] - 1)
            assert row["seconds"] == pytest.approx(expected)


def test_counting_ahead_agrees_with_decoding(gpu):
    shape = gpu.TOYS["toy LlamaGen"]
    strategy, grid = gpu.Forced(CoupledJacobi(16), 0.6), gpu.grid_of(shape)
    model = gpu.build(shape, torch.device("cpu"), torch.float32)
    prefix = gpu.Prefix(torch.zeros(4, 1, 32), torch.ones(4, 1, dtype=torch.bool))
    bench = gpu.Bench(model, shape, strategy, 2, prefix, cuda_graphs=False)
    steps = [bench.run(1000).steps for _ in range(2)]
    assert steps == [gpu.passes_of(strategy, grid, [0, 1], shape.codebook) - 1] * 2
    assert CoupledJacobi(16).fewest_passes(grid) < steps[0] + 1 < grid.tokens


def test_a_rerun_measures_only_what_is_missing(gpu, tmp_path, monkeypatch):
    first = run(gpu, tmp_path)["shapes"]["toy LlamaGen"]["batches"]["1"]
    measured = []
    measure = gpu.measure
    monkeypatch.setattr(gpu, "measure", lambda *given: measured.append(given[3]) or measure(*given))
    report = run(gpu, tmp_path, batches=("1", "2"))
    assert set(measured) == {2}
    assert report["shapes"]["toy LlamaGen"]["batches"]["1"] == first
    with pytest.raises(SystemExit):
        run(gpu, tmp_path, limit="7")


def test_what_does_not_fit_is_reported_and_the_run_goes_on(gpu, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(gpu, "build", full)
        run(gpu, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "measure", full)
        report = run(gpu, tmp_path, "toy Janus")
    assert report["shapes"]["toy LlamaGen"]["problem"] == "does not fit in the memory"
    problems = {row["problem"] for row in report["shapes"]["toy Janus"]["batches"]["1"]}
    assert problems == {"does not fit in the memory"}
    assert "does not fit" in (tmp_path / "gpu.md").read_text()
