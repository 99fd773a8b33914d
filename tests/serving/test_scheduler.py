"""The engine without HTTP: who comes into which lane and when, what happens to those who fail, and how it goes down."""

import random
import threading
import time
from collections import Counter
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from zipar import ZipARError
from zipar.decoding.lane import Lane
from zipar.models.llamagen import LlamaGen
from zipar.serving.events import Begun, Failed, Made
from zipar.serving.painter import Painter
from zipar.serving.protocol import APIError
from zipar.serving.scheduler import Scheduler
from zipar.serving.served import Served

STRATEGIES = ["raster", "zipar:2", "zipar:1:4", "adaptive:1", "jacobi:4", "zipar:12:16:4:wave"]
PROMPTS = ["a red fox in the snow", "fox", "two small birds", "snow"]


class Asked:
    """Requests and what they were told."""

    def __init__(self, scheduler, request_of):
        self.scheduler, self.request_of, self.told = scheduler, request_of, []

    def __call__(self, **fields):
        told = []
        self.told.append(told)
        return self.scheduler.submit(self.request_of(**fields), told.append), told

    def answered(self):
        """Whether every request has all its images, or failed."""
        return all(map(self.finished, self.told))

    @staticmethod
    def finished(told):
        return any(isinstance(event, Made | Failed) for event in told)


@pytest.fixture
def asked(request_of):
    return lambda scheduler: Asked(scheduler, request_of)


@pytest.mark.parametrize(("rows", "lanes"), [(1, 1), (3, 1), (2, 2), (3, 4)])
def test_in_any_company_an_image_is_the_pipelines(scheduling, asked, helpers, expected, rows, lanes):
    draw = random.Random(rows)
    with scheduling(rows=rows, lanes=lanes) as scheduler:
        ask, wanted = asked(scheduler), []
        for seed in range(10):
            fields = {"strategy": draw.choice(STRATEGIES[:3] if lanes == 1 else STRATEGIES), "seed": seed}
            fields |= {"temperature": draw.choice([0, 0.5, 1.3]), "guidance_scale": draw.choice([1, 1, 2.5, 0])}
            if fields["guidance_scale"] != 1 and draw.random() < 0.5:
                fields["negative_prompt"] = "snow and birds"
            wanted.append((draw.choice(PROMPTS), fields))
            ask(prompt=wanted[-1][0], **fields)
            time.sleep(draw.choice([0, 0, 0.01]))
        helpers.until(ask.answered)
        assert len(scheduler._pools) <= lanes
    for (prompt, fields), told in zip(wanted, ask.told, strict=True):
        *begun, made = told
        assert begun == [Begun()]
        assert np.array_equal(helpers.pixels(made.content), expected(prompt=prompt, **fields)), fields


def test_images_join_between_passes_and_leave_as_they_end(scheduling, asked, helpers, expected, monkeypatch):
    """One pass at a time: a late image shares the passes that are left of an early one."""
    turn, busy, step = threading.Semaphore(0), [], Lane.step

    def stepped(lane):
        turn.acquire(timeout=60)
        busy.append(lane.busy)
        return step(lane)

    monkeypatch.setattr(Lane, "step", stepped)
    with scheduling() as scheduler:
        ask = asked(scheduler)
        _, first = ask(seed=1, strategy="raster")
        for _ in range(20):
            turn.release()
        helpers.until(lambda: len(busy) == 20)
        _, second = ask(seed=2, strategy="raster")
        turn.release(100)
        helpers.until(ask.answered)
    monkeypatch.undo()
    assert busy[:20] == [1] * 20
    assert busy[22:35] == [2] * 13  # the first one's 35 passes after the prefill are over
    assert busy[36:].count(1) == len(busy[36:]) > 15
    for seed, (_, made) in ((1, first), (2, second)):
        assert np.array_equal(helpers.pixels(made.content), expected(seed=seed, strategy="raster"))


def test_images_that_are_sampled_alike_share_a_prefill(scheduling, asked, helpers, gate, monkeypatch):
    sizes, admit = [], Lane.admit

    def counted(lane, prefix, sampling, seeds):
        sizes.append(len(seeds))
        return admit(lane, prefix, sampling, seeds)

    monkeypatch.setattr(Lane, "admit", counted)
    with scheduling(rows=6) as scheduler:
        ask = asked(scheduler)
        ask()
        helpers.until(lambda: sizes == [1])
        ask(n=3)
        ask(temperature=0.5)
        ask()
        gate.set()
        helpers.until(ask.answered)
    assert sizes == [1, 4, 1]


def test_nobody_waits_for_ever(scheduling, asked, helpers):
    """A stream of images of one strategy does not keep another one out, though there is one lane alone."""
    with scheduling(rows=2, lanes=1, queue=40) as scheduler:
        ask = asked(scheduler)
        for _ in range(4):
            ask(strategy="raster")
        _, other = ask(strategy="zipar:2")
        later = 0
        while not ask.finished(other):
            if scheduler._count(lambda image: True) < 8:
                ask(strategy="raster")
                later += 1
            time.sleep(0.002)
            assert later < 60
        helpers.until(ask.answered)


def test_those_who_come_together_share_a_lane_though_others_wait(scheduling, asked, helpers, gate):
    """Strategies by turns in the queue are not by turns in the lane."""
    with scheduling(rows=3, lanes=1) as scheduler:
        ask = asked(scheduler)
        for number in range(6):
            ask(strategy=("raster", "zipar:2")[number % 2])
        gate.set()
        helpers.until(ask.answered)
        order = [told[-1].seed for told in ask.told]
        assert len(order) == 6
        passes = scheduler.metrics.passes.labels("words")._value.get()
    assert passes < 35 + 35 + 26 + 10


def test_a_full_queue_refuses_whole_requests(scheduling, asked, helpers, gate):
    with scheduling(rows=2, lanes=1, queue=10) as scheduler:
        ask = asked(scheduler)
        ask(n=2)
        helpers.until(lambda: scheduler._count(lambda image: image.running) == 2)
        ask(n=9)
        with pytest.raises(APIError, match="9 images wait already, of 10 that may: try again in") as caught:
            ask(n=2)
        assert caught.value.status == 503
        assert int(caught.value.headers["Retry-After"]) >= 1
        ask()
        gate.set()
        ask.told.pop(2)
        helpers.until(ask.answered)
        assert Counter(type(event) for told in ask.told for event in told)[Made] >= 3


def test_cancelled_images_leave_and_others_stay(scheduling, asked, helpers, expected, gate):
    with scheduling(rows=3, lanes=1) as scheduler:
        ask = asked(scheduler)
        jobs = [ask(seed=seed)[0] for seed in range(6)]
        helpers.until(lambda: scheduler._count(lambda image: image.running) == 3)
        for number in (0, 2, 4):
            jobs[number].cancel()
        gate.set()
        helpers.until(lambda: not scheduler._images)
    for seed, told in enumerate(ask.told):
        if seed in (0, 2, 4):
            assert not ask.finished(told)
        else:
            assert np.array_equal(helpers.pixels(told[-1].content), expected(seed=seed))


def test_one_that_fails_takes_nobody_along(scheduling, asked, helpers, expected, gate, monkeypatch):
    plain = LlamaGen.prefix

    def prefix(self, prompts, *rest):
        if "cursed" in prompts:
            raise RuntimeError("of the tokenizer")
        return plain(self, prompts, *rest)

    monkeypatch.setattr(LlamaGen, "prefix", prefix)
    with scheduling(rows=4) as scheduler:
        ask = asked(scheduler)
        ask(seed=1)
        helpers.until(lambda: scheduler._count(lambda image: image.running) == 1)
        ask(prompt="cursed")
        ask(seed=2)
        gate.set()
        helpers.until(ask.answered)
    good, bad, other = ask.told
    assert bad[-1].error.status == 500
    for seed, told in ((1, good), (2, other)):
        assert np.array_equal(helpers.pixels(told[-1].content), expected(seed=seed))


def test_a_lane_that_breaks_is_replaced(scheduling, asked, helpers, expected, monkeypatch):
    step, broken = Lane.step, []

    def once(lane):
        if not broken:
            broken.append(lane)
            raise RuntimeError("of the device")
        return step(lane)

    monkeypatch.setattr(Lane, "step", once)
    with scheduling() as scheduler:
        ask = asked(scheduler)
        ask(n=2)
        helpers.until(ask.answered)
        assert ask.told[0][-1].error.status == 500
        ask(seed=3)
        helpers.until(ask.answered)
        assert np.array_equal(helpers.pixels(ask.told[1][-1].content), expected(seed=3))
        assert scheduler.alive


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch has no such error")
def test_a_device_that_died_ends_the_engine(scheduling, asked, helpers, monkeypatch):
    """Nothing would ever work again: who watches the process has to start another."""
    with scheduling(rows=3, lanes=2) as scheduler:
        ask = asked(scheduler)
        monkeypatch.setattr(Lane, "step", Mock(side_effect=torch.AcceleratorError("an illegal memory access")))
        for strategy in ("raster", "zipar:2"):
            ask(strategy=strategy)
        helpers.until(ask.answered)
        errors = [told[-1].error for told in ask.told]
        assert {(error.status, error.headers["Retry-After"]) for error in errors} == {(503, "5")}
        helpers.until(lambda: not scheduler.alive)


def test_a_painter_that_breaks_is_told_of(scheduling, asked, helpers, monkeypatch):
    with scheduling() as scheduler:
        monkeypatch.setattr(Painter, "_do", Mock(side_effect=RuntimeError("no stream")))
        ask = asked(scheduler)
        ask(n=2)
        helpers.until(ask.answered)
        assert ask.told[0][-1].error.status == 500
        helpers.until(lambda: scheduler._count(lambda image: True) == 0)


def test_the_pace_is_that_of_a_lane(scheduling, asked, helpers, monkeypatch):
    """Of images that are done together each took a share of their time: it says when to come again."""
    clock, step = [0], Lane.step

    def ticking(lane):
        clock[0] += 1
        return step(lane)

    monkeypatch.setattr(Lane, "step", ticking)
    now = SimpleNamespace(perf_counter=lambda: clock[0], thread_time=time.thread_time)
    monkeypatch.setattr("zipar.serving.scheduler.time", now)
    with scheduling(rows=3, lanes=1) as scheduler:
        ask = asked(scheduler)
        for _ in range(12):
            ask(n=3, strategy="raster")
        helpers.until(lambda: scheduler._count(lambda image: True) == 0)
        assert scheduler._pace == pytest.approx(35 / 3, rel=0.02)


def test_logits_that_are_no_numbers_are_told(scheduling, asked, helpers, pipes, monkeypatch):
    step = type(pipes["words"].model).step
    monkeypatch.setattr(type(pipes["words"].model), "step", lambda *a: step(*a) * float("nan"))
    with scheduling() as scheduler:
        ask = asked(scheduler)
        ask()
        helpers.until(ask.answered)
    assert ask.told[0][-1].error.status == 400
    assert "no finite numbers" in str(ask.told[0][-1].error)


def test_draining_finishes_what_was_accepted(scheduling, asked, helpers, gate):
    with scheduling(rows=1, lanes=1) as scheduler:
        ask, drained = asked(scheduler), threading.Event()
        for _ in range(4):
            ask()
        scheduler.drain(drained.set)
        assert not scheduler.ready
        with pytest.raises(APIError, match="going down") as caught:
            ask()
        assert caught.value.status == 503
        ask.told.pop()
        time.sleep(0.05)
        assert not drained.is_set()
        gate.set()
        assert drained.wait(30)
        assert ask.answered()
        assert all(isinstance(told[-1], Made) for told in ask.told)


def test_leaving_tells_those_who_wait(scheduling, asked, gate, helpers):
    with scheduling(rows=1, lanes=1) as scheduler:
        ask = asked(scheduler)
        for _ in range(3):
            ask()
        helpers.until(lambda: scheduler._count(lambda image: image.running) == 1)
        threading.Timer(0.1, gate.set).start()
    assert not scheduler.alive
    ends = [told[-1] for told in ask.told]
    assert all(isinstance(end, Made) or end.error.status == 503 for end in ends)
    assert any(isinstance(end, Failed) for end in ends)


def test_memory_is_known_when_it_is_warm(scheduling, pipes):
    with scheduling(rows=4, longest_prompt=10) as scheduler:
        scheduler.warm_up()
        # two layers of two heads of 8 numbers, keys and values; two rows an image
        assert scheduler.memory(scheduler.models["words"]) == 4 * 2 * (10 + 36) * 2 * 2 * 2 * 8 * 4
        for pool in scheduler._pools.values():
            assert pool.lane.cache.memory <= scheduler.memory(pool.style.served)


def test_what_cannot_be_served(pipes, monkeypatch):
    served = Served.of("words", pipes["words"], 8)
    with pytest.raises(ZipARError, match="makes no images of 7x6 pixels"):
        Served.of("words", pipes["words"], 8, [(7, 6)])
    with monkeypatch.context() as patch:
        patch.setattr(type(pipes["words"].model), "grids", lambda self, grid: [grid, grid])
        with pytest.raises(ZipARError, match="words writes several grids"):
            Served.of("words", pipes["words"], 8)
    with pytest.raises(ZipARError, match="models of one name"):
        Scheduler([served, served])
    with pytest.raises(ZipARError, match="alias 'x' is of 'y', which is not served: use words"):
        Scheduler([served], aliases={"x": "y"})
    short = Scheduler([Served.of("words", pipes["words"], 1)])
    with short, pytest.raises(ZipARError, match=r"words cannot be served: prompt of \d+ tokens is too long"):
        short.warm_up()


def test_a_whole_lane_of_waiting_images_comes_in_together(scheduling, asked, helpers, expected, monkeypatch):
    """On a CPU: two lone images are let out first, though the second one is not done with the first."""
    came, steps, admit, step, turn = [], [], Lane.admit, Lane.step, threading.Semaphore(0)

    def counted(lane, prefix, sampling, seeds):
        came.append(len(seeds))
        return admit(lane, prefix, sampling, seeds)

    def stepped(lane):
        turn.acquire(timeout=60)
        steps.append(lane.busy)
        return step(lane)

    monkeypatch.setattr(Lane, "admit", counted)
    monkeypatch.setattr(Lane, "step", stepped)
    with scheduling(rows=2) as scheduler:
        ask = asked(scheduler)
        ask(seed=0, strategy="raster")
        helpers.until(lambda: came == [1])
        ask(seed=1, strategy="raster")
        turn.release(5)
        helpers.until(lambda: len(steps) == 5)
        assert came == [1, 1]
        ask(seed=2, strategy="raster")
        ask(seed=3, strategy="raster")
        turn.release(200)
        helpers.until(ask.answered)
    monkeypatch.undo()
    assert came == [1, 1, 2]
    assert steps == [1, *[2] * 34, 1, *[2] * 35]
    for seed, told in enumerate(ask.told):
        assert np.array_equal(helpers.pixels(told[-1].content), expected(seed=seed, strategy="raster"))
