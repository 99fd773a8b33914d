"""ZipAR with drafted rows against a decoder without cache, and where it must be ZipAR or raster decoding itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar import Raster, Sampling, TokenGrid, ZipAR, ZipARError
from zipar.decoding.attention import additive
from zipar.decoding.engine import decode
from zipar.decoding.sampling import Draw, filter_logits, gumbel, sample
from zipar.decoding.zipar import NARROWEST, SURE

SEEDS = [3, 2**80 + 5]
TEXTS = ["a red fox in the snow", "fox"]
GRIDS = {
    "square": TokenGrid(4, 4),
    "wide": TokenGrid(3, 6),
    "row ends": TokenGrid(4, 5, row_end=7),
    "frames": TokenGrid(3, 3, frames=2),
    "frames, row and frame ends": TokenGrid(3, 3, frames=2, row_end=7, frame_end=(8, 9)),
}

FRAMES = {
    "none between": TokenGrid(4, 4, frames=3),
    "given": TokenGrid(4, 4, frames=3, given=1),
    "row ends": TokenGrid(3, 3, frames=3, row_end=7, given=1),
    "frame ends": TokenGrid(3, 4, frames=3, frame_end=(8, 9)),
    "ends of each frame": TokenGrid(3, 3, frames=3, row_end=7, frame_end=((8, 9), (5, 6), (3, 4)), given=1),
}


def prepared(tiny_models, **settings):
    sampling = Sampling(2.5, **settings)
    with torch.inference_mode():
        return tiny_models.by_text, tiny_models.by_text.prefix(TEXTS, None, True), sampling


def brute_force(model, prefixes, grid, sampling, seed, strategy, row_0_first, given=()):
    """One image, all events (slot, token, pass) computed anew in each pass; returns its tokens and passes.

    ``given``: tokens of all slots of given frames.
    """
    rows, lookahead = grid.places().flatten(0, 1).tolist(), strategy.lookahead
    first_row, window = grid.given * grid.rows, min(strategy.window, grid.columns)

    def logits(embeddings, events):
        prefix, count = len(embeddings), len(embeddings) + len(events)
        sees = torch.zeros(count, count, dtype=torch.bool)
        sees[:, :prefix] = torch.ones(count, prefix).tril()
        for i, (slot, _, now) in enumerate(events):
            newest = {
                other: j
                for j, (other, _, then) in enumerate(events)
                if other <= slot and then <= now and (other in shown[now] or serves(other) == serves(slot))
            }
            sees[prefix + i, [prefix + j for j in newest.values()]] = True
        slots, fed = torch.tensor([event[:2] for event in events], dtype=torch.int64).view(-1, 2).T
        hidden = torch.cat([embeddings, model.decoder.embed(fed, slots)])[None]
        rotary = torch.cat([torch.zeros(prefix, model.rotary.shape[1]), model.rotary[slots]])[None]
        return model.decoder.output(model.decoder(hidden, rotary, additive(sees[None], hidden.dtype)))[0]

    def draw(events, queries, targets):
        conditional, other = (logits(embeddings, events)[queries] for embeddings in prefixes)
        guided = other + sampling.guidance_scale * (conditional - other)
        draw = Draw.of(sampling, [seed])
        drawn = sample(
            filter_logits(guided[None], draw), draw, gumbel(draw.seeds, torch.tensor([targets]), guided.shape[-1])
        )[0].tolist()
        chances = (guided / sampling.temperature).softmax(-1)
        return drawn, [float(row[token]) for row, token in zip(chances, drawn, strict=True)]

    def most(r):
        """Tokens that row r may hold while the one above is not complete."""
        above, count = settled[r - 1], 0
        for column in range(grid.columns):
            seen = rows[r - 1][column:above]
            told = strategy.nats is not None and len(seen) >= NARROWEST
            if len(seen) < strategy.window and not (told and sum(surprise[slot] for slot in seen) >= strategy.nats):
                break
            count += 1
        return count

    def start(r):
        """The pass of a row's first token, if rows advance by a token a pass and windows are full."""
        frame, within = divmod(r - first_row, grid.rows)
        alone = (grid.columns - window) * row_0_first
        whole = (grid.rows - 1) * window + grid.columns + alone * (grid.rows > 1)
        delay = whole if strategy.frame_delay is None else min(strategy.frame_delay, whole)
        return frame * delay + within * window + alone * (within > 0)

    def bound(r):
        """Tokens that row r may hold."""
        within = grid.columns if r % grid.rows == 0 or settled[r - 1] == grid.columns else most(r)
        frame = r - r % grid.rows
        if frame <= first_row:
            return within
        followed = max(q for q in range(frame - grid.rows, frame) if start(q) < start(r))
        if settled[followed] == grid.columns:
            return within
        return min(within, max(0, settled[followed] - (start(r) - start(followed)) + 1))

    def serves(slot):
        return next((r for r, row in enumerate(rows) if row[-1] > slot), len(rows))

    blank = grid.blank().tolist()
    where = {slot: (r, c) for r, row in enumerate(rows) for c, slot in enumerate(row)}
    above = {}
    for slot, (r, c) in where.items():
        frame, within = divmod(r, grid.rows)
        left = rows[0][max(c - 1, 0)]
        above[slot] = rows[r - grid.rows][c] if frame else rows[r - 1][c] if within else left
    tokens = dict.fromkeys(where, 0) | {slot: token for slot, token in enumerate(given) if slot in where}
    events, touched = [(slot, token, 0) for slot, token in enumerate(given)], set(range(grid.first + 1))
    known = touched | set(range(grid.slots)) - set(where) | {row[-1] for row in rows}
    known |= (
        set(range(grid.slots)) if (lookahead, strategy.nats) == (1, None) else set()
    )  # plain ZipAR shows all that was fed
    shown, surprise = {0: known, 1: known}, dict.fromkeys(range(grid.first + 1), 0.0)
    [tokens[grid.first]], _ = draw(events, [-1], [grid.first])
    settled = [grid.columns] * first_row + [1] + [0] * (len(rows) - first_row - 1)
    closing = [first_row] if grid.columns == 1 else []
    passes = 1
    while sum(settled) < len(where):
        full = [count == grid.columns for count in settled]
        targets = {}
        for r, row in enumerate(rows):
            alone = r % grid.rows == 1 and row_0_first
            if bound(r) and (full[r - 1] or not alone):
                for slot in row[settled[r] : settled[r] + lookahead]:
                    targets[slot] = r
        old = dict(tokens)
        tokens |= {slot: old[above[slot]] for slot in where if slot not in touched}
        touched |= set(targets)
        fed = {}
        for r in closing:
            end = rows[r + 1][0] if r + 1 < len(rows) else 0
            fed |= {slot: tokens.get(slot, blank[slot]) for slot in range(rows[r][-1], end)}
        for slot, r in targets.items():
            before = slot - 1
            fed[before] = tokens.get(before, blank[before])
            while before not in where:  # known tokens come with what follows them
                fed[before] = blank[before]
                before -= 1
            if where[slot][1] == 0 and slot - 1 in where and not full[r - 1]:
                frame = range((r - 1) - (r - 1) % grid.rows, r)
                source = ([q for q in frame if full[q]] or [q for q in frame if settled[q]])[-1]
                fed[slot - 1] = tokens[rows[source][settled[source] - 1]]
        fed = dict(sorted(fed.items()))
        events += [(slot, token, passes) for slot, token in fed.items()]
        drawn, chances = draw(events, [-len(fed) + list(fed).index(slot - 1) for slot in targets], list(targets))
        guesses = {slot: tokens[slot] for slot in targets}
        tokens |= dict(zip(targets, drawn, strict=True))
        surprise |= {slot: -math.log(chance) for slot, chance in zip(targets, chances, strict=True)}
        counts, closing = list(settled), []
        for r, row in enumerate(rows):
            limit = bound(r)
            for slot in row[settled[r] : settled[r] + lookahead]:
                if slot not in targets or counts[r] >= limit:
                    break
                counts[r] += 1
                if tokens[slot] != guesses[slot]:
                    break
            if counts[r] == grid.columns and not full[r]:
                closing.append(r)
        settled = counts
        passes += 1
        kept = {slot for slot in targets if tokens[slot] == guesses[slot]}
        sure = {slot for slot, chance in zip(targets, chances, strict=True) if chance >= SURE}
        done = {slot for row, count in zip(rows, settled, strict=True) for slot in row[:count]}
        shown[passes] = known | kept | sure | done
    return [tokens.get(slot, blank[slot]) for slot in range(grid.slots)], passes


WINDOWS = [(1, 2, None), (2, 1, None), (2, 3, None), (1, 9, None), (3, 2, None), (3, 1, 2.0), (4, 3, 1.0), (9, 4, 3.0)]


@pytest.mark.parametrize(
    ("grid", "first_row", "window", "lookahead", "nats"),
    [
        pytest.param(grid, ("alone", "wave")[(i + j) % 2], *chosen, id=f"{name}-{chosen}")
        for i, (name, grid) in enumerate(GRIDS.items())
        for j, chosen in enumerate(WINDOWS)
    ],
)
def test_equals_the_brute_force_decoder(tiny_models, grid, first_row, window, lookahead, nats):
    """Every window on every grid; the two ways with row 0 take turns."""
    model, prefix, sampling = prepared(tiny_models, temperature=0.4)
    strategy = ZipAR(window, lookahead, first_row, nats)
    found = decode(model, prefix, grid, strategy, sampling, SEEDS)
    longest = 0
    for image, seed in enumerate(SEEDS):
        pair = [prefix.embeddings[row][prefix.valid[row]] for row in (image, image + len(SEEDS))]
        alone = first_row == "alone" and grid.row_end is None
        with torch.inference_mode():
            tokens, passes = brute_force(model, pair, grid, sampling, seed, strategy, alone)
        assert found.tokens[image].tolist() == tokens
        longest = max(longest, passes)
    assert found.forward_passes == longest


@pytest.mark.parametrize("grid", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize(
    ("window", "lookahead", "first_row", "nats", "delay"),
    [
        (2, 2, "wave", None, 1),
        (1, 3, "alone", None, 2),
        (2, 1, "wave", 2.0, 3),
        (3, 2, "alone", 1.0, 4),
        (2, 9, "wave", None, 5),
        (9, 4, "wave", 3.0, 4),
        (2, 3, "alone", None, 99),
    ],
)
def test_frames_that_overlap_equal_the_brute_force_decoder(tiny_clips, grid, window, lookahead, first_row, nats, delay):
    strategy, sampling = ZipAR(window, lookahead, first_row, nats, delay), Sampling(2.5, temperature=0.4)
    codes = torch.randint(
        50, (len(SEEDS), grid.given, grid.rows, grid.columns), generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        prefix = tiny_clips.prefix(TEXTS, None, True, grid, codes)
        prompts = tiny_clips.prefix(TEXTS, None, True)
    found = decode(tiny_clips, prefix, grid, strategy, sampling, SEEDS)
    passes, opening = [], grid.opening(codes)
    for image, seed in enumerate(SEEDS):
        pair = [prompts.embeddings[row][prompts.valid[row]] for row in (image, image + len(SEEDS))]
        alone = first_row == "alone" and grid.row_end is None
        with torch.inference_mode():
            tokens, last = brute_force(tiny_clips, pair, grid, sampling, seed, strategy, alone, opening[image].tolist())
        assert found.tokens[image].tolist() == tokens
        passes.append(last)
    assert found.forward_passes == max(passes)
    assert strategy.fewest_passes(grid) <= min(passes)
    assert max(passes) <= strategy.passes(grid) == ZipAR(window, 1, first_row, None, delay).passes(grid)


@settings(max_examples=40)
@given(
    grid=st.sampled_from(list(GRIDS.values())),
    window=st.integers(1, 6),
    first_row=st.sampled_from(["alone", "wave"]),
    lookahead=st.integers(1, 8),
    nats=st.none() | st.floats(0, 9),
)
def test_takes_no_more_passes_than_without_drafts(tiny_models, grid, window, first_row, lookahead, nats):
    model, prefix, sampling = prepared(tiny_models, temperature=0.5)
    strategy = ZipAR(window, lookahead, first_row, nats)
    found = decode(model, prefix, grid, strategy, sampling, SEEDS)
    assert strategy.fewest_passes(grid) <= found.forward_passes
    assert found.forward_passes <= ZipAR(window, first_row=first_row).passes(grid) == strategy.passes(grid)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("lookahead", [2, 5])
def test_a_window_as_wide_as_the_grid_gives_the_tokens_of_raster(tiny_models, grid, lookahead):
    model, prefix, sampling = prepared(tiny_models)
    raster = decode(model, prefix, grid, Raster(), sampling, SEEDS)
    for window in grid.columns, grid.columns + 3:
        for nats in None, 1e6:
            strategy = ZipAR(window, lookahead, nats=nats)
            assert decode(model, prefix, grid, strategy, sampling, SEEDS).tokens.equal(raster.tokens)


def test_a_window_of_no_nats_is_the_narrowest(tiny_models):
    model, prefix, sampling = prepared(tiny_models)
    grid = GRIDS["wide"]
    narrow, by_nats = (
        decode(model, prefix, grid, strategy, sampling, SEEDS) for strategy in (ZipAR(2, 3), ZipAR(5, 3, nats=0))
    )
    assert narrow.tokens.equal(by_nats.tokens)
    assert narrow.born.equal(by_nats.born)


@pytest.mark.parametrize("nats", [-1.0, float("nan"), "few"])
def test_nats_below_none_are_refused(nats):
    with pytest.raises(ZipARError, match=f"nats {nats!r}"):
        ZipAR(4, nats=nats)


def test_a_lookahead_below_one_is_refused():
    with pytest.raises(ZipARError, match="lookahead 0"):
        ZipAR(4, 0)
