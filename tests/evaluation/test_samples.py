"""Batches on disk: the pipeline's images, made once."""

import dataclasses

import numpy as np
import pytest
import torch

import zipar
from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, ZipAR
from zipar.evaluation.samples import Study, digest, stamp

PROMPTS = ["a red fox", "two small birds", "fox", "a fox in the snow", "birds"]
STRATEGIES = [Raster(), ZipAR(2), ZipAR(2, lookahead=3), AdaptiveZipAR(1), CoupledJacobi(4)]


@pytest.fixture
def study(tiny_models, tmp_path):
    model = tiny_models.by_text
    grid = model.grid(*model.image_size)
    return Study(model, "stamp", PROMPTS, Sampling(2.0), grid, seed=3, batch_size=2, folder=tmp_path / "batches")


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_images_are_those_of_the_pipeline(study, strategy):
    batches = list(study.batches(strategy))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    alone = [
        zipar.Pipeline(study.model)(prompt, strategy=strategy, seed=3 + i, guidance_scale=2.0)
        for i, prompt in enumerate(PROMPTS)
    ]
    made = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in vars(batches[0])}
    assert (made["tokens"] == np.concatenate([out.tokens for out in alone])).all()
    assert (made["images"] == np.stack([np.asarray(out.images[0]) for out in alone])).all()
    assert made["forward_passes"].tolist() == [out.stats.forward_passes for out in alone]
    assert (made["seconds"] > 0).all()


def test_what_is_done_is_not_done_again(study, monkeypatch):
    class Killed(BaseException):
        pass

    def until(passes):
        def count(progress):
            nonlocal passes
            passes -= 1
            if passes < 0:
                raise Killed

        return count

    with pytest.raises(Killed):
        list(study.batches(ZipAR(2), until(25)))  # 19 passes a batch, after the prefill
    assert len(list(study.folder.iterdir())) == 1
    resumed = list(study.batches(ZipAR(2), until(2 * 19)))
    afresh = list(Study(**{**vars(study), "folder": study.folder / "other"}).batches(ZipAR(2)))
    for one, other in zip(resumed, afresh, strict=True):
        for name in vars(one).keys() - {"seconds"}:
            assert (getattr(one, name) == getattr(other, name)).all()
    assert len(list(study.batches(ZipAR(2), until(0)))) == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 4},
        {"sampling": Sampling(3.0)},
        {"stamp": "another"},
        {"prompts": ["a blue fox", *PROMPTS[1:]]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_batches_are_not_taken_for_others(study, changed):
    before = next(study.batches(ZipAR(2)))
    after = next(Study(**{**vars(study), **changed}).batches(ZipAR(2)))
    assert len(list(study.folder.iterdir())) == 2
    if "stamp" not in changed:
        assert (before.tokens != after.tokens).any()


def test_damaged_batches_are_named(study):
    list(study.batches(ZipAR(2)))
    for path in study.folder.iterdir():
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(zipar.ZipARError, match=r"\.npz is damaged .*: remove it, and it is made again"):
        list(study.batches(ZipAR(2)))


def test_batches_that_lack_figures_are_made_again(study):
    """Files of an earlier version: named by what images depend on alone."""
    older = digest(
        model="stamp",
        device="cpu",
        dtype="torch.float32",
        sampling=dataclasses.asdict(study.sampling),
        grid=dataclasses.asdict(study.grid),
        strategy="zipar:2",
        prompts=PROMPTS[:2],
        seed=3,
    )
    study.folder.mkdir()
    np.savez(study.folder / f"{older}.npz", images=np.zeros((2, 6, 6, 3), np.uint8), nats=np.zeros(2))
    first, *_ = study.batches(ZipAR(2))
    assert np.isfinite(first.excess).all()
    assert (first.entropy > 0).all()


def test_two_runs_in_one_folder_do_not_meet(study):
    """The second makes, and keeps, the batches of the first while that is about to."""
    other = Study(**vars(study))
    made = iter(other.batches(ZipAR(2)))
    batches = study.batches(ZipAR(2), lambda progress: next(made, None) if progress.done == 5 else None)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert all(path.suffix == ".npz" for path in study.folder.iterdir())


def test_a_longer_list_of_prompts_goes_on(study):
    short = Study(**{**vars(study), "prompts": PROMPTS[:4]})
    list(short.batches(ZipAR(2)))
    files = {path: path.stat().st_mtime_ns for path in study.folder.iterdir()}
    list(study.batches(ZipAR(2)))
    assert len(list(study.folder.iterdir())) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_the_stamp_of_a_checkpoint(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "weights").write_bytes(b"123")
    before = stamp(tmp_path)
    (tmp_path / "zipar.json").write_text("{}")  # what tuning leaves there is no part of the model
    assert stamp(tmp_path) == before
    (tmp_path / "part" / "weights").write_bytes(b"1234")
    assert stamp(tmp_path) != before


def test_tokens_that_only_a_gap_allows_are_counted(study):
    greedy = Study(**{**vars(study), "sampling": Sampling(2.0, temperature=0)})
    outside = {
        strategy: torch.cat([torch.from_numpy(batch.outside) for batch in greedy.batches(strategy)]).mean()
        for strategy in (Raster(), ZipAR(1))
    }
    assert outside[Raster()] == 0
    assert outside[ZipAR(1)] > 0


@pytest.mark.parametrize(("frames", "given"), [(1, 0), (3, 0), (3, 1)])
@pytest.mark.parametrize("strategy", [Raster(), ZipAR(2, frame_delay=3), ZipAR(2, lookahead=3, frame_delay=3)], ids=str)
def test_clips_are_those_of_the_pipeline(tiny_clips, tmp_path, frames, given, strategy):
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 256, (2, given, 8, 8, 3), np.uint8) if given else None
    study = Study(
        *(tiny_clips, "stamp", PROMPTS, Sampling(2.0), tiny_clips.clip(8, 8, frames, given)),
        **{"seed": 3, "batch_size": 3, "folder": tmp_path},
        given=None if starts is None else torch.from_numpy(starts),
    )
    batches = list(study.batches(strategy))
    pipe = zipar.Pipeline(tiny_clips)
    for i, prompt in enumerate(PROMPTS):
        start = None if starts is None else starts[i % 2]
        alone = pipe(prompt, strategy=strategy, seed=3 + i, guidance_scale=2.0, frames=frames, given=start)
        batch, place = batches[i // 3], i % 3
        assert (batch.tokens[place] == alone.tokens[0]).all()
        assert batch.images.shape[1:] == (frames, 8, 8, 3)
        made = np.stack([np.asarray(frame) for frame in alone.videos[0].frames])
        assert np.abs(batch.images[place].astype(int) - made).max() <= 1
        assert batch.forward_passes[place] == alone.stats.forward_passes


def test_clips_that_go_on_from_others_are_made_anew(tiny_clips, tmp_path):
    clip = torch.randint(0, 256, (1, 1, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    arguments = (tiny_clips, "stamp", PROMPTS[:2], Sampling(2.0), tiny_clips.clip(8, 8, 2, 1))
    for number, given in enumerate([clip, 255 - clip, clip]):
        study = Study(*arguments, seed=3, batch_size=2, folder=tmp_path, given=given)
        list(study.batches(ZipAR(2)))
        assert len(list(tmp_path.iterdir())) == min(number + 1, 2)
