"""Images that come and go: each is the one that ``decode`` makes of it alone, and a pass can be compiled whole."""

import gc
import weakref
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, TokenGrid, ZipAR, ZipARError
from zipar.decoding.decodable import Prefix
from zipar.decoding.engine import decode
from zipar.decoding.lane import Lane
from zipar.models import auto

STRATEGIES = [
    *(Raster(), ZipAR(2), ZipAR(1, first_row="wave"), ZipAR(2, 3), ZipAR(1, 9, "wave"), AdaptiveZipAR(1)),
    *(AdaptiveZipAR(2, "wave"), CoupledJacobi(6), CoupledJacobi(3, window=1)),
]
KINDS_OF_SCHEDULE = [Raster(), ZipAR(2, 3), AdaptiveZipAR(1), CoupledJacobi(6)]
GRIDS = [
    *(TokenGrid(4, 4), TokenGrid(3, 6), TokenGrid(1, 7), TokenGrid(5, 1), TokenGrid(1, 1), TokenGrid(4, 5, row_end=7)),
    *(TokenGrid(3, 3, frames=2), TokenGrid(3, 3, frames=2, row_end=7, frame_end=(8, 9))),
]
FILTERS = [{}, {"top_k": 20}, {"top_k": 30, "top_p": 0.9, "min_p": 0.02}]
TEXTS = ["a red fox in the snow", "fox", "two small birds", "snow"]
FAMILIES = {
    "janus": (12, 12),
    "emu3": (8, 12),
    "emu3_5": (64, 96),
    "lumina_mgpt": (64, 96),
    "lumina_mgpt2": (64, 32),
    "anole": (96, 96),
    "liquid": (96, 96),
    "simplear": (96, 96),
}
LONGEST = 210


@pytest.fixture(scope="module")
def models(tiny_models, checkpoints):
    """models(kind) -> a model as it is before its weights are packed, for packed ones do not trace."""
    held = {"by_text": tiny_models.by_text, "by_class": tiny_models.by_class}

    def get(kind):
        if kind not in held:
            directory = checkpoints(kind)
            held[kind] = auto.family(directory).load(directory, torch.float32, torch.device("cpu"))
        return held[kind]

    return get


def prefix_of(model, texts, guided, grid):
    texts = [str(len(text) % 10) for text in texts] if getattr(model, "text_tokenizer", 0) is None else texts
    with torch.inference_mode():
        return model.prefix(texts, None, guided, grid)


def lane_of(model, grid, strategy, sampling, rows, **options):
    return Lane(
        model, grid, strategy, sampling, rows, LONGEST, device=torch.device("cpu"), dtype=torch.float32, **options
    )


class Arrivals:
    """Images with guidance, temperatures and seeds of their own, that come in random order into a lane."""

    def __init__(self, model, grid, strategy, guided, filters, seed):
        self.model, self.grid, self.strategy, self.guided, self.filters = model, grid, strategy, guided, filters
        self.random = torch.Generator().manual_seed(seed)

    def draw(self, below):
        return int(torch.randint(below, (), generator=self.random))

    def image(self):
        scale = (1.5, 2.5, 0.0)[self.draw(3)] if self.guided else 1.0
        sampling = Sampling(scale, (0.0, 0.7, 1.3)[self.draw(3)], **self.filters)
        return TEXTS[self.draw(len(TEXTS))], sampling, self.draw(2**40)

    def run(self, lane, count, check=lambda: None, leave=0.0):
        """All images through the lane; ticket -> (text, sampling, seed), ticket -> what came of it.

        Before each pass, each image is dropped with probability ``leave``.
        """
        asked, found = {}, {}
        waiting = [self.image() for _ in range(count)]
        while waiting or lane.busy:
            coming = min(self.draw(3), len(waiting), lane.rows - lane.busy)
            for text, sampling, seed in waiting[:coming]:
                (ticket,) = lane.admit(prefix_of(self.model, [text], self.guided, self.grid), sampling, [seed])
                asked[ticket] = text, sampling, seed
            waiting = waiting[coming:]
            if not lane.busy:
                continue
            finished = lane.retire()  # some are done when they come
            for ticket in asked.keys() - found.keys() - {image.ticket for image in finished}:
                if self.draw(1000) < 1000 * leave:
                    lane.drop(ticket)
                    del asked[ticket]
            if lane.busy:
                lane.step()
                check()
            found |= {image.ticket: image for image in [*finished, *lane.retire()]}
        return asked, found

    def check(self, asked, found):
        assert asked.keys() == found.keys()
        for ticket, (text, sampling, seed) in asked.items():
            prefix = prefix_of(self.model, [text], self.guided, self.grid)
            alone = decode(self.model, prefix, self.grid, self.strategy, sampling, [seed])
            image = found[ticket]
            assert image.tokens.equal(alone.tokens[0])
            assert image.born.equal(alone.born[0])
            assert image.forward_passes == alone.forward_passes
            assert image.rejections == alone.rejections
            assert image.slots_evaluated >= alone.slots_evaluated


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["by_text", "by_class"]),
    grid=st.sampled_from(GRIDS),
    strategy=st.sampled_from(STRATEGIES),
    guided=st.booleans(),
    filters=st.sampled_from(FILTERS),
    rows=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    deterministic=st.booleans(),
)
def test_every_image_is_that_of_decode_alone(models, kind, grid, strategy, guided, filters, rows, seed, deterministic):
    model = models(kind)
    arrivals = Arrivals(model, grid, strategy, guided, filters, seed)
    lane = lane_of(
        model, grid, strategy, Sampling(2.0 if guided else 1.0, **filters), rows, deterministic=deterministic
    )
    arrivals.check(*arrivals.run(lane, 6))


@pytest.mark.parametrize(
    ("strategy", "deterministic"),
    [(strategy, i % 2 == 1) for i, strategy in enumerate(STRATEGIES)]
    + [(ZipAR(2, 3), True), (CoupledJacobi(6), False)],
    ids=str,
)
def test_images_that_are_dropped_leave_the_others_as_they_are(models, strategy, deterministic):
    model, grid = models("by_text"), TokenGrid(4, 4)
    arrivals = Arrivals(model, grid, strategy, True, {}, 7)
    asked, found = arrivals.run(
        lane_of(model, grid, strategy, Sampling(2.0), 3, deterministic=deterministic), 12, leave=0.1
    )
    assert 2 < len(asked) < 12
    arrivals.check(asked, found)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_an_image_can_be_looked_at_as_it_grows(models, strategy):
    model, grid, sampling = models("by_text"), TokenGrid(4, 4), Sampling(2.0)
    lane = lane_of(model, grid, strategy, sampling, 2)
    tickets = lane.admit(prefix_of(model, TEXTS[:2], True, grid), sampling, [1, 2])
    seen = {ticket: [lane.peek(ticket)] for ticket in tickets}
    finished = {}
    while lane.busy:
        lane.step()
        for ticket in tickets:
            if ticket not in finished:
                seen[ticket].append(lane.peek(ticket))
        finished |= {image.ticket: image for image in lane.retire()}
    for ticket, looks in seen.items():
        tokens, born = zip(*looks, strict=True)
        assert [int(look.max()) for look in born] == list(range(len(looks)))  # every pass brings something
        assert tokens[-1].equal(finished[ticket].tokens)
        assert born[-1].equal(finished[ticket].born)
        assert tokens[0][1:].eq(0).all()


@pytest.mark.parametrize("strategy", [Raster(), ZipAR(2, 3)], ids=str)
def test_passes_read_of_prompts_what_the_longest_in_the_lane_takes(models, strategy):
    model, grid, sampling = models("by_text"), TokenGrid(4, 4), Sampling(2.0)
    lane = lane_of(model, grid, strategy, sampling, 2)
    for text, seed in (("fox", 1), ("a red fox in the snow", 2)):
        prefix = prefix_of(model, [text], True, grid)
        lane.admit(prefix, sampling, [seed])
        lane.step()
        assert lane.cache.placement.read.start == LONGEST - prefix.prompt
    lane.drop(1)
    lane.step()
    assert lane.cache.placement.read.start == LONGEST - 2


@pytest.mark.parametrize(
    ("kind", "strategy"), [(kind, KINDS_OF_SCHEDULE[i % 4]) for i, kind in enumerate(FAMILIES)], ids=str
)
def test_every_image_of_a_family_is_that_of_decode_alone(models, kind, strategy):
    model, filters = models(kind), {"top_k": 20}
    grid = model.grid(*FAMILIES[kind])
    arrivals = Arrivals(model, grid, strategy, True, filters, 5)
    arrivals.check(*arrivals.run(lane_of(model, grid, strategy, Sampling(2.0, **filters), 3), 5))


class NothingReadBack(TorchDispatchMode):
    """Refuses what makes the processor wait for the device, or gives shapes that depend on what tensors hold."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "item", "bincount")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        assert not any(
            name.lstrip("_").startswith(refused.lstrip("_")) and name != "equal_" for refused in self.REFUSED
        )
        if name in ("index", "index_put", "index_put_"):  # with masks they are nonzero in disguise
            assert not any(part is not None and part.dtype == torch.bool for part in arguments[1])
        return function(*arguments, **(keywords or {}))


def test_the_dispatch_mode_can_fail():
    for reading in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x.any())):
        with pytest.raises(AssertionError), NothingReadBack():
            reading(torch.ones(3))


ONE_EACH = [(kind, KINDS_OF_SCHEDULE[i % 4]) for i, kind in enumerate(("by_class", *FAMILIES), start=1)]
"""Every other model with one kind of schedule, and not with that which it has above."""


@pytest.mark.parametrize(
    ("kind", "strategy"), [*(("by_text", strategy) for strategy in STRATEGIES), *ONE_EACH], ids=str
)
def test_a_pass_reads_nothing_back(models, kind, strategy):
    model, guided = models(kind), kind != "by_class"
    grid = model.grid(*FAMILIES[kind]) if kind in FAMILIES else TokenGrid(4, 5)
    sampling = Sampling(2.0 if guided else 1.0, top_k=20, top_p=0.9)
    lane = lane_of(model, grid, strategy, sampling, 2, deterministic=True)
    lane.admit(prefix_of(model, TEXTS[:2], guided, grid), sampling, [1, 2])
    passes = 0
    while not lane.schedule.done.all():
        with NothingReadBack():
            lane.step()
        passes += 1
    assert passes > 0


# ZipAR without drafts is traced as raster order is: its plan alone is another
TRACED = (*KINDS_OF_SCHEDULE, CoupledJacobi(3, window=1))


@pytest.mark.parametrize(("kind", "strategy"), [*(("by_text", strategy) for strategy in TRACED), *ONE_EACH], ids=str)
def test_a_pass_is_traced_whole_and_once_a_shape(models, kind, strategy):
    """Images of a lane whose passes are compiled, with rows that come and go in between, are those of ``decode``."""
    model = models(kind)
    grid = model.grid(*FAMILIES[kind]) if kind in FAMILIES else TokenGrid(4, 5)
    traces = Counter()

    def backend(graph, inputs):
        traces["all"] += 1
        return graph.forward

    torch._dynamo.reset()
    arrivals = Arrivals(model, grid, strategy, True, {"top_k": 20}, 3)
    lane = lane_of(model, grid, strategy, Sampling(2.0, top_k=20), 2, deterministic=True)
    lane.forward = torch.compile(lane.forward, fullgraph=True, backend=backend, dynamic=False)
    arrivals.check(*arrivals.run(lane, 4))
    assert traces["all"] == 1  # one shape


def test_a_lane_that_is_dropped_frees_its_cache_at_once(models):
    model, grid, sampling = models("by_text"), TokenGrid(4, 4), Sampling(2.0)
    gc.collect()
    gc.disable()
    try:
        lane = lane_of(model, grid, ZipAR(2, 3), sampling, 2)
        lane.admit(prefix_of(model, TEXTS[:2], True, grid), sampling, [1, 2])
        lane.step()
        held = weakref.ref(lane.cache.layers[0].keys)
        assert held() is not None
        del lane
        assert held() is None
    finally:
        gc.enable()


def test_what_does_not_fit_is_refused(models):
    model, grid, sampling = models("by_text"), TokenGrid(4, 4), Sampling(2.0, top_k=9)
    prefix = prefix_of(model, TEXTS[:2], True, grid)
    lane = lane_of(model, grid, Raster(), sampling, 3)
    assert list(lane.admit(prefix, sampling, [1, 2])) == [0, 1]
    with pytest.raises(ZipARError, match="a lane of 3 rows, 2 of them busy"):
        lane.admit(prefix, sampling, [1, 2])
    one = prefix_of(model, TEXTS[:1], True, grid)
    long = Prefix(one.embeddings.repeat(1, 40, 1), one.valid.repeat(1, 40))
    with pytest.raises(ZipARError, match=r"prefixes of 280 tokens do not fit a lane of .* 210 tokens"):
        lane.admit(long, sampling, [1])
    for other in Sampling(2.0), Sampling(2.0, top_k=9, top_p=0.5), Sampling(2.0, top_k=9, min_p=0.5):
        with pytest.raises(ZipARError, match="top-k, top-p and min-p"):
            lane.admit(one, other, [1])
    with pytest.raises(ZipARError, match="2 prefix rows do not fit 2 seeds"):
        lane.admit(one, sampling, [1, 2])
    assert lane.busy == 2
