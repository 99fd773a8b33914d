"""The engine against decoders that share nothing with it: one without cache or schedule, and transformers' own."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, TokenGrid, ZipAR, ZipARError
from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Prefix
from zipar.decoding.engine import decode
from zipar.decoding.sampling import Draw, filter_logits, gumbel, sample

SEEDS = [3, -1, 2**80 + 5]
TEXTS = ["a red fox in the snow", "fox", "two small birds"]
PROMPTS = {"by_class": ["4", "0", "9"], "by_text": TEXTS}
PLAIN = TokenGrid(5, 6)
GRIDS = {
    "square": TokenGrid(4, 4),
    "wide": TokenGrid(4, 6),
    "tall": TokenGrid(6, 3),
    "row ends": TokenGrid(4, 5, row_end=7),
    "frames": TokenGrid(3, 3, frames=3),
    "frames, row and frame ends": TokenGrid(3, 3, frames=2, row_end=7, frame_end=(8, 9)),
}


def prepared(tiny_models, kind, guidance=2.5, **settings):
    """A model, the prefixes of its prompts (of different lengths where they are text) and a way of sampling."""
    model, sampling = getattr(tiny_models, kind), Sampling(guidance, **settings)
    with torch.inference_mode():
        return model, model.prefix(PROMPTS[kind], None, sampling.guided), sampling


def rows_of(prefix, images):
    """The prefixes of some of a guided batch's images, cut to their own length."""
    rows = [*images, *(image + len(prefix.valid) // 2 for image in images)]
    length = int(prefix.valid[rows].sum(1).max())
    return Prefix(prefix.embeddings[rows, -length:], prefix.valid[rows, -length:])


def brute_force(model, prefixes, grid, sampling, seed, window, row_0_first, frame_delay=None, given=()):
    """Decode one image by the rules of the paper, with no cache and no plan.

    Every token ever fed is kept as an event (slot, token, pass), and each pass computes all events anew, in one
    plain attention: an event sees the prefix and, for each slot up to its own, the newest event so far.

    Args:
        prefixes: embeddings (length, dim) without padding: the prompt's and, with guidance, the other branch's.
        given: tokens of all slots of given frames.

    Returns:
        Tokens, births and log-probabilities by slot, and the number of passes.
    """
    free, blank = grid.free().tolist(), grid.blank().tolist()
    spaces = set(grid.places().flatten().tolist())
    place = {slot: (f, r, c) for f, rows in enumerate(free) for r, row in enumerate(rows) for c, slot in enumerate(row)}
    tokens = {slot: token for slot, token in enumerate(blank) if slot not in spaces} | dict(enumerate(given))
    born, likely = dict.fromkeys(tokens, 0), dict.fromkeys(tokens, 0.0)
    events = [(slot, token, 0) for slot, token in enumerate(given)]
    settled = set(range(len(given)))  # the slots whose own token was fed after all before it in its row

    def exist(slots):
        return all(slot in tokens for slot in slots)

    def ready(slot):
        frame, row, column = place[slot]
        needed = list(free[frame][row][:column])
        if frame and not row and not column:
            if frame_delay is None:
                needed += free[frame - 1][-1]
            elif passes < frame * frame_delay and not exist(free[frame - 1][-1]):
                return False
        if row:
            needed += free[frame][row - 1][: column + window] + (free[frame][0] if row_0_first else [])
        return slot not in tokens and exist(needed)

    def stand_in(slot):
        frame, row, _ = place[slot]
        above = [line[-1] for line in free[frame][:row] if line[-1] in tokens]
        return (
            above[-1] if above else [other for line in free[frame][: row + 1] for other in line if other in tokens][-1]
        )

    def logits(embeddings):
        prefix, count = len(embeddings), len(embeddings) + len(events)
        sees = torch.zeros(count, count, dtype=torch.bool)
        sees[:, :prefix] = torch.ones(count, prefix).tril()
        for i, (slot, _, now) in enumerate(events):
            newest = {}
            for j, (other, _, then) in enumerate(events):
                if other <= slot and then <= now:
                    newest[other] = j
            sees[prefix + i, [prefix + j for j in newest.values()]] = True
        slots, fed = torch.tensor([event[:2] for event in events], dtype=torch.int64).view(-1, 2).T
        hidden = torch.cat([embeddings, model.decoder.embed(fed, slots)])[None]
        rotary = torch.cat([torch.zeros(prefix, model.rotary.shape[1]), model.rotary[slots]])[None]
        return model.decoder.output(model.decoder(hidden, rotary, additive(sees[None], hidden.dtype)))[0]

    passes = 0
    while len(tokens) < grid.slots:
        targets = [slot for slot in place if ready(slot)]
        if passes:
            final = [slot for slot in range(grid.slots - 1) if max(s for s in spaces if s <= slot) in tokens]
            fed = {slot: tokens[slot] for slot in final if slot not in settled}
            settled.update(fed)
            for slot in targets:
                before = slot - 1
                fed[before] = tokens[before if before in tokens else stand_in(before)]
                while before not in spaces:  # known tokens come with what follows them
                    fed[before] = tokens[before]
                    before -= 1
            events += [(slot, token, passes) for slot, token in fed.items()]
            queries = [-len(fed) + list(fed).index(slot - 1) for slot in targets]
        else:
            queries = [-1]
        found = [logits(embeddings)[queries] for embeddings in prefixes]
        if sampling.guided:
            found = [found[1] + sampling.guidance_scale * (found[0] - found[1])]
        draw = Draw.of(sampling, [seed])
        filtered = filter_logits(found[0][None], draw)
        drawn = sample(filtered, draw, gumbel(draw.seeds, torch.tensor([targets]), found[0].shape[-1]))
        tokens.update(zip(targets, drawn[0].tolist(), strict=True))
        chances = torch.distributions.Categorical(logits=filtered[0]).log_prob(drawn[0])
        likely.update(zip(targets, chances.tolist(), strict=True))
        born.update(dict.fromkeys(targets, passes))
        passes += 1
    by_slot = ([held[slot] for slot in range(grid.slots)] for held in (tokens, born, likely))
    return *by_slot, passes


def same(decoded, image, expected):
    tokens, born, likely, passes = expected
    assert (decoded.tokens[image].tolist(), decoded.born[image].tolist()) == (tokens, born)
    assert decoded.forward_passes == passes
    assert decoded.log_probabilities[image].tolist() == pytest.approx(likely, abs=1e-4)


def strategies():
    """Strategies, with the window and the way with row 0 that they stand for."""
    yield pytest.param(Raster(), 99, False, id="raster")
    for window in 1, 2, 4:
        yield pytest.param(ZipAR(window), window, True, id=f"window {window}")
        yield pytest.param(ZipAR(window, first_row="wave"), window, False, id=f"window {window}, wave")


@pytest.mark.parametrize(("strategy", "window", "row_0_first"), [*strategies()])
@pytest.mark.parametrize(
    ("kind", "grid", "guidance"),
    [
        ("by_class", "square", 2.5),
        ("by_class", "wide", 1.0),
        ("by_class", "frames, row and frame ends", 2.5),
        ("by_text", "tall", 2.5),
        ("by_text", "row ends", 2.5),
        ("by_text", "frames", 1.0),
        ("by_text", "wide", 2.5),
    ],
)
def test_equals_the_brute_force_decoder(tiny_models, kind, grid, guidance, strategy, window, row_0_first):
    """Two of a batch of three, left-padded where prompts are text, against them alone, unpadded and uncached."""
    model, prefix, sampling = prepared(tiny_models, kind, guidance, top_k=40)
    grid = GRIDS[grid]
    decoded = decode(model, prefix, grid, strategy, sampling, SEEDS)
    for image, seed in enumerate(SEEDS[:2]):
        rows = [image, image + len(SEEDS)] if sampling.guided else [image]
        prefixes = [prefix.embeddings[row][prefix.valid[row]] for row in rows]
        with torch.inference_mode():
            expected = brute_force(model, prefixes, grid, sampling, seed, window, row_0_first and grid.row_end is None)
        same(decoded, image, expected)


CLIPS = {
    "none": TokenGrid(4, 4, frames=3),
    "given": TokenGrid(4, 4, frames=3, given=1),
    "row ends": TokenGrid(3, 3, frames=3, row_end=7, given=1),
    "frame ends": TokenGrid(3, 4, frames=3, frame_end=(8, 9)),
    "ends of each frame": TokenGrid(3, 3, frames=3, row_end=7, frame_end=((8, 9), (5, 6), (3, 4)), given=1),
    "two given": TokenGrid(2, 4, frames=3, frame_end=((8,), (5,), (3,)), given=2),
}


@pytest.mark.parametrize(
    ("grid", "delay", "window", "first_row"),
    [
        pytest.param(grid, delay, *chosen, id=f"{name}-delay {delay}-{chosen}")
        for i, (name, grid) in enumerate(CLIPS.items())
        for j, delay in enumerate([1, 2, 3, 4, 6, 99])
        for k, chosen in enumerate([(1, "wave"), (2, "alone"), (3, "wave"), (4, "alone")])
        if (i + j + k) % 3 == 0
    ],
)
def test_frames_that_overlap_equal_the_brute_force_decoder(tiny_clips, grid, window, first_row, delay):
    """Every delay on every grid, every window on every grid and with every delay."""
    strategy = ZipAR(window, first_row=first_row, frame_delay=delay)
    sampling = Sampling(2.5, top_k=40)
    codes = torch.randint(50, (3, grid.given, grid.rows, grid.columns), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        prefix = tiny_clips.prefix(TEXTS, None, True, grid, codes)
        prompts = tiny_clips.prefix(TEXTS, None, True)
    decoded = decode(tiny_clips, prefix, grid, strategy, sampling, SEEDS)
    opening = grid.opening(codes)
    for image, seed in enumerate(SEEDS[:2]):
        prefixes = [prompts.embeddings[row][prompts.valid[row]] for row in (image, image + len(SEEDS))]
        with torch.inference_mode():
            expected = brute_force(
                *(tiny_clips, prefixes, grid, sampling, seed, window, first_row == "alone" and grid.row_end is None),
                *(delay, opening[image].tolist()),
            )
        same(decoded, image, expected)
    assert decoded.forward_passes == strategy.passes(grid)
    assert grid.pick(decoded.tokens)[:, : grid.given].equal(codes)


class Network:
    """Transformers' own Llama as a model of the engine: prefixes are embedded tokens."""

    def __init__(self):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            eos_token_id=None,
            pad_token_id=0,
        )
        self.llama = LlamaForCausalLM(config).eval().requires_grad_(False)
        self.layers = 2

    def logits(self, embeddings, positions, cache, mask):
        class Cache:
            def update(self, key, value, layer, **_):
                return cache.layers[layer].update(key, value)

        known = "cache" in inspect.signature(self.llama.forward).parameters
        cached = {"cache" if known else "past_key_values": Cache()}  # its name before transformers 5.24
        return self.llama(
            inputs_embeds=embeddings, position_ids=positions, attention_mask=mask, **cached
        ).logits.float()

    def prefill(self, prefix, cache, mask):
        positions = (prefix.valid.cumsum(1) - 1).clamp(min=0)
        return self.logits(prefix.embeddings, positions, cache, mask)[:, -1:]

    def step(self, tokens, slots, lengths, cache, mask):
        return self.logits(self.llama.model.embed_tokens(tokens), lengths[:, None] + slots, cache, mask)


class Noise(LogitsProcessor):
    """Turns greedy generation into sampling with the noise of our seeds."""

    def __init__(self, prompt_length):
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores):
        slot = torch.tensor([[input_ids.shape[1] - self.prompt_length]])
        seeds = torch.tensor([(seed + 2**63) % 2**64 - 2**63 for seed in SEEDS])
        return scores + gumbel(seeds, slot, scores.shape[-1])[:, 0]


@pytest.mark.parametrize("strategy", [Raster(), ZipAR(9)], ids=["raster", "window 9"])
@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_equals_generate_of_transformers(strategy, greedy):
    network, grid = Network(), TokenGrid(3, 5)
    ids = torch.tensor([[0, 0, 5, 9, 4], [7, 3, 8, 2, 6], [0, 0, 0, 0, 11]])
    valid = ids > 0
    sampling = Sampling(temperature=0) if greedy else Sampling(temperature=1.3, top_k=20, top_p=0.9)
    processors = LogitsProcessorList()
    if not greedy:
        filters = [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9)]
        processors = LogitsProcessorList([*filters, Noise(ids.shape[1])])
    expected = network.llama.generate(
        ids, attention_mask=valid.long(), max_new_tokens=15, do_sample=False, logits_processor=processors
    )[:, ids.shape[1] :]
    decoded = decode(network, Prefix(network.llama.model.embed_tokens(ids), valid), grid, strategy, sampling, SEEDS)
    assert len(expected.unique()) > 5
    assert decoded.tokens.equal(expected)


@pytest.mark.parametrize("first_row", ["alone", "wave"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_window_as_wide_as_the_grid_gives_the_tokens_of_raster(tiny_models, grid, first_row):
    model, prefix, sampling = prepared(tiny_models, "by_class")
    raster = decode(model, prefix, grid, Raster(), sampling, SEEDS)
    for window in grid.columns, grid.columns + 3:
        assert decode(model, prefix, grid, ZipAR(window, first_row=first_row), sampling, SEEDS).tokens.equal(
            raster.tokens
        )
    assert not decode(model, prefix, grid, ZipAR(1), sampling, SEEDS).tokens.equal(raster.tokens)


@pytest.mark.parametrize("strategy", [Raster(), ZipAR(2)], ids=["raster", "window 2"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_an_image_is_the_same_alone_and_in_any_batch(tiny_models, kind, strategy):
    model, prefix, sampling = prepared(tiny_models, kind)
    together = decode(model, prefix, PLAIN, strategy, sampling, SEEDS).tokens
    for batch in [0], [1], [2], [2, 0], [1, 1, 0, 2]:
        seeds = [SEEDS[image] for image in batch]
        assert decode(model, rows_of(prefix, batch), PLAIN, strategy, sampling, seeds).tokens.equal(together[batch])


def test_seeds_of_any_size_and_sign_differ(tiny_models):
    model, prefix, sampling = prepared(tiny_models, "by_class")
    seeds = [0, 1, -1, -(2**62), 2**63 - 2, 2**64 + 7, 10**30]
    tokens = decode(model, rows_of(prefix, [0] * len(seeds)), PLAIN, ZipAR(2), sampling, seeds).tokens
    assert len(tokens.unique(dim=0)) == len(seeds)


class Recorder:
    """A model that writes down what it is given and what it answers."""

    def __init__(self, model):
        self.model, self.layers = model, model.layers
        self.steps, self.logits = [], []

    def prefill(self, prefix, cache, mask):
        self.prefill_mask = mask
        return self.model.prefill(prefix, cache, mask)

    def step(self, tokens, slots, lengths, cache, mask):
        self.steps.append((tokens, slots, lengths.clone(), mask))  # a lane's own, which rows move in
        self.logits.append(self.model.step(tokens, slots, lengths, cache, mask))
        return self.logits[-1]


class Garbage(SlotCache):
    """A cache whose memory was used before."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for layer in self.layers:
            allocate = layer._allocate
            layer._allocate = lambda states, allocate=allocate: allocate(states).normal_(std=1e3)


@pytest.mark.parametrize("strategy", [Raster(), ZipAR(2), ZipAR(2, 4), CoupledJacobi(5), AdaptiveZipAR(1)], ids=str)
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("grid", [PLAIN, GRIDS["frames, row and frame ends"]], ids=["plain", "known tokens"])
def test_what_lies_in_unwritten_slots_does_not_matter(tiny_models, monkeypatch, kind, strategy, grid):
    model, prefix, sampling = prepared(tiny_models, kind)
    clean, dirty = Recorder(model), Recorder(model)
    expected = decode(clean, prefix, grid, strategy, sampling, SEEDS)
    monkeypatch.setattr("zipar.decoding.lane.SlotCache", Garbage)
    found = decode(dirty, prefix, grid, strategy, sampling, SEEDS)
    assert found.tokens.equal(expected.tokens)
    torch.testing.assert_close(dirty.logits, clean.logits)


@pytest.mark.parametrize("strategy", [Raster(), ZipAR(2)], ids=str)
def test_masks_show_the_prompt_and_the_slots_written_so_far(tiny_models, strategy):
    model, prefix, sampling = prepared(tiny_models, "by_text")
    recorder = Recorder(model)
    decode(recorder, prefix, PLAIN, strategy, sampling, SEEDS)
    length, prefix = prefix.valid.shape[1], prefix.paired()
    for row, valid in enumerate(prefix.valid):
        written = set()
        for tokens, slots, lengths, mask in recorder.steps:
            assert tokens.shape == (len(prefix.valid), slots.shape[1])
            assert lengths.equal(prefix.valid.sum(1))
            slots, mask = slots.expand(len(tokens), -1)[row], mask.expand(len(tokens), -1, -1, -1)[row, 0]
            assert ((mask == 0) | (mask == -torch.inf)).all()
            written.update(slots.tolist())
            for query, slot in enumerate(slots.tolist()):
                visible = (mask[query] == 0).nonzero().flatten()
                shown = valid.nonzero().flatten().tolist() + [
                    length + other for other in sorted(written) if other <= slot
                ]
                assert visible.tolist() == shown


def test_what_lies_in_the_padding_does_not_matter(tiny_models):
    model, prefix, sampling = prepared(tiny_models, "by_text")
    assert not prefix.valid.all()
    expected = decode(model, prefix, PLAIN, ZipAR(2), sampling, SEEDS)
    prefix = prefix._replace(embeddings=prefix.embeddings.where(prefix.valid[..., None], torch.tensor(1e3)))
    assert decode(model, prefix, PLAIN, ZipAR(2), sampling, SEEDS).tokens.equal(expected.tokens)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    frames=st.integers(1, 2),
    row_end=st.sampled_from([None, 7]),
    frame_end=st.sampled_from([(), (8,)]),
    strategy=st.builds(ZipAR, st.integers(1, 5), first_row=st.sampled_from(["alone", "wave"])) | st.just(Raster()),
)
def test_results_are_complete(tiny_models, rows, columns, frames, row_end, frame_end, strategy):
    grid = TokenGrid(rows, columns, frames, row_end, frame_end)
    if grid.slots > 36:
        grid = TokenGrid(rows, columns, 1, row_end, frame_end)
    model, prefix, sampling = prepared(tiny_models, "by_class")
    progress = []
    decoded = decode(model, prefix, grid, strategy, sampling, SEEDS, progress.append)
    free = grid.free().flatten()
    known = torch.ones(grid.slots, dtype=torch.bool)
    known[free] = False
    assert decoded.tokens.shape == decoded.born.shape == (3, grid.slots)
    assert decoded.tokens[:, known].equal(grid.blank()[known].expand(3, -1))
    assert decoded.born[:, free].equal(strategy.timetable(grid).flatten().expand(3, -1))
    assert not decoded.born[:, known].any()
    assert decoded.forward_passes == strategy.passes(grid) == decoded.born.max() + 1
    assert [(told.done, told.passes) for told in progress] == [
        (done, decoded.forward_passes) for done in range(2, decoded.forward_passes + 1)
    ]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_raster_takes_a_pass_a_token(tiny_models, grid):
    model, prefix, sampling = prepared(tiny_models, "by_class")
    decoded = decode(model, prefix, grid, Raster(), sampling, SEEDS)
    assert decoded.forward_passes == grid.tokens
    assert decoded.slots_evaluated == grid.free().max()  # each slot before the last token once


def test_seeds_must_fit_the_prefix(tiny_models):
    model, prefix, sampling = prepared(tiny_models, "by_class")
    with pytest.raises(ZipARError, match="6 prefix rows do not fit 2 seeds"):
        decode(model, prefix, PLAIN, Raster(), sampling, SEEDS[:2])
    with pytest.raises(ZipARError, match=r"6 prefix rows do not fit 3 seeds with guidance 1\.0"):
        decode(model, prefix, PLAIN, Raster(), Sampling(), SEEDS)
