"""Figures of a report against scipy and hand counts."""

import csv
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from zipar import Raster, Sampling, ZipAR
from zipar.evaluation import plots, tables
from zipar.evaluation.fid import Moments, frechet_distance
from zipar.evaluation.judge import Judge, JudgeConfig
from zipar.evaluation.report import Estimate, Graders, Reference, evaluate, mean, share
from zipar.evaluation.samples import Study
from zipar.models.llamagen import LlamaGen
from zipar.prompts import PromptVocabulary

PROMPTS = ["a fox", "an apple on a blue background", "a fox on a green background", "an apple", "fox"]
VOCABULARY = PromptVocabulary(
    attributes={
        "object": {"fox": ["fox"], "apple": ["apple"]},
        "background": {"blue": ["blue background"], "green": ["green background"]},
    },
    required=["object"],
    fillers=["a", "an", "on"],
    example="a fox on a blue background",
)


def features(images):
    """Mean colours of the four corners."""
    images = torch.as_tensor(images).float()
    half = images.shape[1] // 2
    sides = slice(0, half), slice(half, None)
    return torch.cat([images[:, y, x].mean((1, 2)) for y in sides for x in sides], dim=1)


@pytest.fixture
def study(tiny_models, tmp_path, monkeypatch):
    model = tiny_models.by_text
    monkeypatch.setattr(model, "vocabulary", VOCABULARY)
    grid = model.grid(*model.image_size)
    return Study(model, "stamp", PROMPTS * 3, Sampling(2.0), grid, seed=0, batch_size=4, folder=tmp_path)


@pytest.fixture
def graders():
    torch.manual_seed(0)
    config = JudgeConfig({"object": ["fox", "apple"], "background": ["blue", "green"]}, 6, (8,), 4, 2)
    judge = Judge(config).eval().requires_grad_(False)
    moments = Moments.of(torch.randn(50, 12) * 60 + 120)
    return Graders(
        judge,
        Reference(features, moments, replicates=20),
        clip=lambda images, prompts: torch.tensor([len(p) + image.mean() for image, p in zip(images, prompts)]),  # noqa: B905
    )


def collected(study, strategy):
    batches = list(study.batches(strategy))
    return {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in vars(batches[0])}


def test_rows(study, graders):
    told = []
    report = evaluate(study, [ZipAR(2), Raster(), ZipAR(6)], graders, 3, lambda *made: told.append(made))
    assert told == [(s, n) for s in (Raster(), ZipAR(2), ZipAR(6)) for n in (4, 4, 4, 3)]
    raster, narrow, wide = report.rows
    assert [row["strategy"] for row in report.rows] == ["raster", "zipar:2", "zipar:6"]
    assert [row["forward_passes"] for row in report.rows] == [36, 20, 36]
    assert narrow["fewer"] == 1 - 20 / 36
    assert [images.shape for images in report.pictures] == [(3, 6, 6, 3)] * 3

    base, made = collected(study, Raster()), collected(study, ZipAR(2))
    assert narrow["seconds"] == made["seconds"].mean()
    assert narrow["speedup"] == base["seconds"].mean() / made["seconds"].mean()
    difference = made["nats"] - base["nats"]
    low, high = scipy.stats.norm.interval(0.95, difference.mean(), scipy.stats.sem(difference))
    assert narrow["gap"] == pytest.approx((difference.mean(), low, high))
    for name, values in (
        ("excess", made["excess"]),
        ("divergence", made["divergence"]),
        ("entropy", made["entropy"]),
        ("excess_difference", made["excess"] - base["excess"]),
    ):
        low, high = scipy.stats.norm.interval(0.95, values.mean(), scipy.stats.sem(values))
        assert narrow[name] == pytest.approx((values.mean(), low, high))
        assert narrow[name].reach == pytest.approx((high - low) / 2)
    # a window as wide as the grid gives raster's own images
    assert wide["gap"] == wide["excess_difference"] == wide["clip_difference"] == (0, 0, 0)
    assert wide["excess"] == raster["excess"]
    assert raster["divergence"] == wide["divergence"] == pytest.approx((0, 0, 0), abs=1e-5)
    assert wide["fid_ratio"] == (1, 1, 1)
    assert wide["accuracy"] == raster["accuracy"]

    moments = graders.reference.moments
    assert raster["fid"].value == pytest.approx(frechet_distance(moments, Moments.of(features(base["images"]))))
    # here what there are few images for is small beside the distances
    assert narrow["fid_ratio"].value == pytest.approx(narrow["fid"].value / raster["fid"].value, rel=0.02)
    assert narrow["fid_ratio"].low < narrow["fid_ratio"].value < narrow["fid_ratio"].high
    seen = graders.judge.classify(made["images"])
    right = [seen["object"][i] == ("apple" if "apple" in prompt else "fox") for i, prompt in enumerate(study.prompts)]
    assert narrow["accuracy"]["object"].value == np.mean(right)
    named = [i for i, prompt in enumerate(study.prompts) if "background" in prompt]
    right = [seen["background"][i] in study.prompts[i] for i in named]
    assert narrow["accuracy"]["background"].value == np.mean(right)
    for name, estimate in narrow["accuracy_difference"].items():
        assert estimate.value == pytest.approx(narrow["accuracy"][name].value - raster["accuracy"][name].value)
    assert narrow["clip"].value == pytest.approx(np.mean([len(p) for p in study.prompts]) + made["images"].mean())


def test_prompts_that_are_numbers_ask_for_their_class(tiny_models, class_names, tmp_path):
    known = tiny_models.by_class
    model = LlamaGen(known.decoder, known.image_tokenizer, vocabulary=class_names).eval()
    prompts = ["9", "an ankle boot", "t-shirt", "0", " 3 "]
    torch.manual_seed(0)
    names = list(class_names.attributes["class"])
    judge = Judge(JudgeConfig({"class": names}, 6, (8,), 4, 2)).eval().requires_grad_(False)
    grid = model.grid(*model.image_size)
    study = Study(model, "stamp", prompts * 8, Sampling(), grid, seed=0, batch_size=20, folder=tmp_path)
    raster = evaluate(study, [ZipAR(2)], Graders(judge)).rows[0]
    seen = judge.classify(collected(study, Raster())["images"])["class"]
    right = [name == names[number] for name, number in zip(seen, [9, 9, 0, 0, 3] * 8, strict=True)]
    assert raster["accuracy"]["class"].value == raster["accuracy"]["all"].value == np.mean(right)


def test_precision_and_recall_where_features_of_real_pictures_are_at_hand(study):
    base = features(collected(study, Raster())["images"])
    near, far = base + 0.01 * torch.randn(base.shape, generator=torch.Generator().manual_seed(0)), base + 1e4
    for real, expected in ((near, 1), (far, 0)):
        found = evaluate(study, [ZipAR(6)], Graders(reference=Reference(features, Moments.of(real), 20, real)))
        assert [(row["precision"], row["recall"]) for row in found.rows] == [(expected, expected)] * 2
    columns = tables.columns(found.rows)
    assert {"precision", "recall"} < set(columns)
    assert "| 0.0% | 0.0% |" in tables.markdown(found.rows, columns)
    few = Graders(reference=Reference(features, Moments.of(near), 20, near[:3]))
    assert evaluate(study, [ZipAR(6)], few).rows[0].keys().isdisjoint({"precision", "recall"})


def test_without_graders_there_is_fidelity_alone(study):
    row = evaluate(study, [ZipAR(2)], Graders()).rows[1]
    assert row.keys().isdisjoint({"fid", "accuracy", "clip"})
    assert math.isfinite(row["gap"].value)


def test_intervals_hold_what_they_promise():
    """95 % intervals of 400 samples miss the truth in 5 %: 2 to 8.5 % of the time but for one case in 1,000."""
    rng = np.random.default_rng(0)
    for draw, truth, interval in (
        (lambda: rng.exponential(2.0, 400), 2.0, mean),
        (lambda: rng.random(400) < 0.9, 0.9, share),
    ):
        missed = 0
        for _ in range(400):
            _, low, high = interval(draw())
            missed += not low <= truth <= high
        assert 8 <= missed <= 34


def test_tables_hold_every_figure(study, graders, tmp_path):
    rows = evaluate(study, [ZipAR(2), ZipAR(3)], graders).rows
    columns = tables.columns(rows)
    text = tables.markdown(rows, columns).splitlines()
    assert text[0].startswith("| strategy | forward passes | fewer | ")
    assert "object, % right" in text[0]
    assert len(text) == 5
    assert len({line.count("|") for line in text}) == 1
    gap = rows[1]["gap"]
    assert f"| {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] |" in text[3]
    assert "| – |" in text[2]  # raster has no gap to itself

    tables.write_csv(rows, tmp_path / "report.csv")
    with (tmp_path / "report.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["strategy"] for row in read] == ["raster", "zipar:2", "zipar:3"]
    assert float(read[2]["gap_low"]) == rows[2]["gap"].low
    assert float(read[1]["accuracy_difference_object"]) == rows[1]["accuracy_difference"]["object"].value
    assert read[0]["gap"] == ""

    found = json.loads(json.dumps(tables.jsonable(rows)))
    assert Estimate(**found[1]["fid"]) == rows[1]["fid"]
    assert Estimate(**found[2]["accuracy"]["all"]) == rows[2]["accuracy"]["all"]


def test_pictures(study, graders, tmp_path):
    names = ["zipar:2", "zipar:3:2:wave", "adaptive:1", "jacobi:4", "jacobi:4:2"]
    row = evaluate(study, [ZipAR(2)], graders).rows
    rows = [row[0], *({**row[1], "strategy": name} for name in names)]
    plots.save_curves(rows, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 5 * 500  # a panel each: excess, gap, FID, accuracy, CLIP
    pictures = [np.zeros((3, 6, 6, 3), np.uint8)] * 2
    plots.save_sheet(["raster", "zipar:2"], pictures, PROMPTS, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").height > 300
