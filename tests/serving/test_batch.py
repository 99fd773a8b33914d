"""Batch jobs: every id has one result, whatever happens to prompts and processes."""

import json
import os
import signal
from contextlib import contextmanager
from itertools import chain, pairwise

import numpy as np
import pytest
from PIL import Image

from zipar.decoding.lane import Lane
from zipar.errors import ZipARError
from zipar.serving.batch import Batch, finished, gathered
from zipar.serving.folder import Folder, Manifest
from zipar.serving.lines import PromptFile

FOX = "a red fox in the snow"


@pytest.fixture
def prompt_file(tmp_path):
    """Writes a file of lines, given as objects or as text."""

    def write(*lines, shard=(1, 1)):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return PromptFile(path, shard)

    return write


@pytest.fixture
def job(pipes, tmp_path):
    """Runs a job in tmp_path / "out" as a process would; returns its records by id."""
    from zipar.serving.scheduler import Scheduler
    from zipar.serving.served import Served

    @contextmanager
    def making(rows=3, **options):
        folder = Folder(tmp_path / "out")
        with Scheduler([Served.of("words", pipes["words"], 16)], rows=rows, queue=8 * rows) as scheduler:
            yield Batch(scheduler, folder, **options), folder

    def run(lines, retry_failed=False, stop=None, **options):
        lines.check()
        with making(**options) as (batch, folder), Manifest(folder, lines.shard, retry_failed) as manifest:
            left = (line for line in lines if line.id not in manifest.done)
            for number, record in enumerate(finished(batch, left), 1):
                manifest.add(record)
                folder.forget(record["id"])
                if number == stop:
                    break
        return records(tmp_path / "out" / "manifest.jsonl")

    run.making = making
    return run


def records(path):
    """Of a manifest, by id; each id has one."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["id"] for record in found}) == len(found)
    return {record["id"]: record for record in found}


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture
def failing(pipes, monkeypatch):
    """Has the model fail over prompts with the word "poison"; yields all prompts that it was given."""
    model, given = pipes["words"].model, []
    prefix = model.prefix

    def poisoned(prompts, *arguments, **options):
        given.append(list(prompts))
        if any("poison" in prompt for prompt in prompts):
            raise RuntimeError("poisoned\nto death")
        return prefix(prompts, *arguments, **options)

    monkeypatch.setattr(model, "prefix", poisoned)
    return given


def test_images_are_the_pipelines(job, prompt_file, pipes, expected, tmp_path):
    """Whatever lanes they shared: strategies, guidance, filters and sizes mixed."""
    kinds = [
        {},
        {"strategy": "raster", "temperature": 0.5},
        {"strategy": "jacobi:4", "guidance_scale": 3, "negative_prompt": "a dog"},
        {"strategy": "zipar:2", "top_k": 5, "seed": 2**63 - 1},
        {"guidance_scale": 3.5, "top_p": 0.9, "min_p": 0.05},
    ]
    lines = [{"id": f"i{n}", "prompt": f"fox {n % 3}", **kinds[n % len(kinds)]} for n in range(12)]
    found = job(prompt_file(*lines), seed=100)
    assert len(found) == 12
    for number, line in enumerate(lines):
        options = {"seed": 100 + number} | {name: value for name, value in line.items() if name != "id"}
        record = found[line["id"]]
        path = tmp_path / "out" / record["file"]
        assert np.array_equal(pixels(path), expected(**options)), line
        assert record["seed"] == options["seed"]
        assert record["prompt"] == line["prompt"]
        told = json.loads(Image.open(path).text["zipar"])
        assert told == {name: value for name, value in record.items() if name != "seconds"}
        assert record["seconds"] > 0
    made = pipes["words"]("fox 0", seed=100)
    assert found["i0"]["passes"] == made.stats.forward_passes
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".jsonl", ""}


def test_lines_of_one_lane_come_together(prompt_file):
    lines = prompt_file(*({"prompt": "x", "strategy": ("raster", "zipar:4")[n % 2]} for n in range(2000)))
    order = [line.fields["strategy"] for line in gathered(lines)]
    assert sum(a != b for a, b in pairwise(order)) == 3
    assert sorted(line.number for line in gathered(lines)) == list(range(1, 2001))


def test_bad_lines_are_results(job, prompt_file):
    found = job(
        prompt_file(
            *('{"prompt": "a', "[1]", {"id": "deaf"}, {"id": 70, "prompt": " "}, {"prompt": "x", "n": 2}, ""),
            *({"prompt": "x", "strategy": "spiral"}, {"prompt": "x", "seed": -1}, {"prompt": "x", "size": "7x7"}),
            *({"prompt": "x", "top_p": 9}, {"id": None, "prompt": FOX, "colour": "ours"}, {"prompt": "\ud800"}),
        )
    )
    assert found.pop("11")["file"] == "11.png"
    told = {id: record["error"] for id, record in found.items()}
    assert told.keys() == {"1", "2", "deaf", "70", "5", "7", "8", "9", "10", "12"}
    assert "line 1 is no JSON" in told["1"]
    assert "line 2 is no JSON object" in told["2"]
    assert "prompt is missing" in told["deaf"]
    assert "a line makes one image" in told["5"]
    assert "7x7" in told["9"]


def test_ids(prompt_file):
    for id in ("../x", "/etc/x", "a/b", "a\\b", ".x", "-x", "", "a\0", "ü", "x" * 201, 1.5, True, [1], {"a": 1}, -1):
        with pytest.raises(ZipARError, match=r"prompts.jsonl: line 2 has the id .* names no file"):
            prompt_file({"prompt": "x"}, {"id": id, "prompt": "x"}).check()
    with pytest.raises(ZipARError, match="lines 1 and 3 have the id '3'"):
        prompt_file({"id": "3", "prompt": "x"}, {"prompt": "x"}, {"prompt": "x"}).check()
    with pytest.raises(ZipARError, match=r"holds no prompt: line 1 is no JSON .* write lines such as"):
        prompt_file("a fox", "a dog").check()
    with pytest.raises(ZipARError, match="holds no prompt"):
        prompt_file().check()
    with pytest.raises(ZipARError, match="cannot be read: Is a directory"):
        PromptFile(prompt_file().path.parent).check()
    assert prompt_file({"id": "a.b_c-D", "prompt": "x"}, {"id": 12, "prompt": "x"}).check() == {"a.b_c-D", "12"}


def test_shards_share_the_lines(prompt_file):
    lines = [{"prompt": "x"}] * 3 + [""] + [{"prompt": "x"}] * 7
    shards = [prompt_file(*lines, shard=(i, 4)) for i in range(1, 5)]
    parts = [[line.id for line in shard] for shard in shards]
    assert parts[0] == ["1", "5", "9"]
    assert sorted(map(int, chain(*parts))) == [1, 2, 3, *range(5, 12)]
    assert [shard.check() for shard in shards] == [set(part) for part in parts]


def test_a_shard_has_a_manifest_of_its_own(job, prompt_file, tmp_path):
    lines = [{"prompt": FOX}] * 4
    assert Manifest(Folder(tmp_path / "out"), (2, 2)).path.name == "manifest-2-of-2.jsonl"
    with Manifest(Folder(tmp_path / "out"), (1, 2)) as other:
        other.add({"id": "1", "error": "theirs"})
        other.add({"id": "3", "file": "3.png"})  # and was removed
    assert job(prompt_file(*lines)).keys() == {"2", "3", "4"}
    with Manifest(Folder(tmp_path / "out")) as ours:
        assert (ours.made, ours.failed, ours.elsewhere) == (3, 0, {"1"})
    assert job(prompt_file(*lines), retry_failed=True).keys() == {"1", "2", "3", "4"}
    with Manifest(Folder(tmp_path / "out")) as ours:
        assert (ours.made, ours.failed, ours.elsewhere) == (4, 0, set())


def test_what_was_being_written_is_swept_away(job, prompt_file, tmp_path):
    (tmp_path / "out" / ".zipar").mkdir(parents=True)
    (tmp_path / "out" / ".zipar" / "1.abc.part").write_bytes(b"half")  # as after kill -9
    job(prompt_file({"prompt": FOX}))
    assert not list((tmp_path / "out" / ".zipar").iterdir())


def test_it_goes_on_where_it_was(job, prompt_file, tmp_path):
    lines, out = prompt_file(*({"prompt": f"fox {n}"} for n in range(9))), tmp_path / "out"
    first = job(lines, stop=5)
    assert len(first) == 5
    assert not list((out / ".zipar").iterdir())  # an orderly end is nobody's fault
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    again, gone, lost = list(first)[:3]
    text = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
    # as if killed before the record of an image was written, or while it was; and an image was removed
    kept = [line for line in text if json.loads(line)["id"] != lost]
    (out / "manifest.jsonl").write_text("".join(kept) + '{"id": "9", "fi')
    (out / f"{gone}.png").unlink()
    (out / f"{again}.png").write_bytes(b"")
    (out / "manifest.jsonl").write_text("".join(line for line in kept if json.loads(line)["id"] != again))
    found = job(lines)
    assert found.keys() == {str(n) for n in range(1, 10)}
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert {name for name in before if before[name] == after[name]} == before.keys() - {f"{again}.png", f"{gone}.png"}
    assert "seconds" not in found[lost]
    assert {key: first[lost][key] for key in found[lost]} == found[lost]


def test_what_fails_is_tried_three_times(job, prompt_file, failing, monkeypatch):
    begun, begin = [], Folder.begin
    monkeypatch.setattr(Folder, "begin", lambda folder, id: begun.append(id) or begin(folder, id))
    lines = prompt_file(*({"prompt": f"fox {n}"} for n in range(10)), {"id": "bad", "prompt": "poison"})
    found = job(lines)
    assert found.pop("bad") == {"id": "bad", "error": "tried 3 times: RuntimeError: poisoned"}
    assert len(found) == 10
    assert all("file" in record for record in found.values())
    assert begun.count("bad") == 3
    assert begun[-1] == "bad"  # alone
    job(lines)
    assert len(begun) == 13
    job(lines, retry_failed=True)
    assert begun[13:] == ["bad"] * 3


def test_images_that_fail_together_are_not_to_blame(job, prompt_file, monkeypatch):
    """A pass that fails takes its whole lane along."""
    step = Lane.step

    def failing(lane):
        if lane.busy > 1:
            raise RuntimeError("crowded")
        return step(lane)

    monkeypatch.setattr(Lane, "step", failing)
    found = job(prompt_file(*[{"prompt": FOX}] * 4))
    assert {record["file"] for record in found.values()} == {"1.png", "2.png", "3.png", "4.png"}


def test_processes_that_ended_count(job, prompt_file, tmp_path, failing):
    folder = Folder(tmp_path / "out")
    for id, tries in (("1", 1), ("2", 2), ("3", 3), ("4", 9)):
        for _ in range(tries):
            folder.begin(id)
    found = job(prompt_file(*({"prompt": f"fox {n}"} for n in range(1, 7))))
    assert list(found)[-3:] == ["2", "3", "4"]
    assert ["fox 2"] in failing
    assert failing[-1] == ["fox 2"]
    assert "file" in found["2"]
    assert found["3"]["error"] == "tried 3 times: the process ended while it was made"
    assert found["4"]["error"] == "tried 9 times: the process ended while it was made"
    assert not list(folder.hidden.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_prompt_that_kills_the_process(job, prompt_file, pipes, expected, monkeypatch, tmp_path):
    """Three times, and then no more; all others are made, once, and nothing that is there is made again."""
    model, out = pipes["words"].model, tmp_path / "out"
    prefix = model.prefix

    def deadly(prompts, *arguments, **options):
        if "poison" in prompts:
            os.kill(os.getpid(), signal.SIGKILL)
        return prefix(prompts, *arguments, **options)

    monkeypatch.setattr(model, "prefix", deadly)
    lines = [{"id": f"i{n}", "prompt": FOX, "seed": n} for n in range(16)]
    lines.insert(9, {"id": "evil", "prompt": "poison"})
    codes, made = [], {}
    while len(codes) < 6 and (not codes or codes[-1] == signal.SIGKILL):
        if not (child := os.fork()):
            try:
                job(prompt_file(*lines), rows=2)
            finally:
                os._exit(0)
        codes.append(os.waitpid(child, 0)[1])
        now = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
        assert made.items() <= now.items()
        made = now
    assert codes == [signal.SIGKILL] * 3 + [0]
    found = records(out / "manifest.jsonl")
    assert found.pop("evil")["error"] == "tried 3 times: the process ended while it was made"
    assert len(found) == len(made) == 16
    for number in range(16):
        assert np.array_equal(pixels(out / found[f"i{number}"]["file"]), expected(seed=number))


def test_when_everything_fails_it_stops(job, prompt_file, monkeypatch, tmp_path):
    monkeypatch.setattr(Lane, "step", lambda lane: 1 / 0)
    lines = prompt_file(*[{"prompt": FOX}] * 30)
    with pytest.raises(ZipARError, match="24 images failed one after the other, the last one over ZeroDivisionError"):
        job(lines, rows=2)
    assert not records(tmp_path / "out" / "manifest.jsonl")
    monkeypatch.undo()
    assert sum("file" in record for record in job(lines).values()) == 30


def test_defaults_that_are_not_possible(job):
    for defaults in ({"strategy": "spiral"}, {"top_p": 9}, {"size": "7x7"}, {"negative_prompt": "x"}):
        with pytest.raises(ZipARError), job.making(defaults={"guidance_scale": 1, **defaults}):
            pass


def test_one_process_at_a_time(tmp_path):
    folder = Folder(tmp_path / "out")
    with Manifest(folder), pytest.raises(ZipARError, match="being written by another process"):
        Manifest(folder)
    Manifest(folder).__exit__()


def test_a_full_disk(job, prompt_file, small_files, tmp_path):
    lines = prompt_file(*[{"prompt": FOX}] * 9)
    with small_files(700), pytest.raises(OSError, match=r"File too large|No space"):
        job(lines)
    found = job(lines)
    assert len(found) == 9
    assert all(Folder(tmp_path / "out").record(id) for id in found)


def test_a_million_lines_are_not_held(prompt_file):
    import tracemalloc

    lines = prompt_file(*({"id": f"i{n}", "prompt": "x" * 200} for n in range(8_000)))
    tracemalloc.start()
    count = sum(1 for _ in gathered(lines))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_000
    assert most < lines.path.stat().st_size
