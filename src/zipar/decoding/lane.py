"""The pool of rows that one schedule fills: images come into rows and leave them between passes."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Decodable, Prefix
from zipar.decoding.graphs import Graphs
from zipar.decoding.places import Places
from zipar.decoding.sampling import (
    Draw,
    Sampling,
    filter_logits,
    guide,
    log_probabilities_of,
    noise_of,
    sample,
    slot_keys,
)
from zipar.decoding.strategy import Evaluated, Schedule, Step, Strategy
from zipar.errors import ZipARError
from zipar.grid import TokenGrid


class Finished(NamedTuple):
    """An image that left the lane."""

    ticket: int
    """What ``admit`` called it."""
    tokens: Tensor
    """int64 (slots,), as the model writes them, given tokens in place."""
    born: Tensor
    """int64 (slots,): the image's pass that decoded each slot; 0 for given ones."""
    forward_passes: int
    """Passes until it was done, prefill counted."""
    slots_evaluated: int
    """Queries of its row over all passes after the prefill, idle ones counted."""
    rejections: int
    """Tokens that an adaptive strategy took back."""
    log_probabilities: Tensor
    """Float32 (slots,): of each token in what it was drawn from; 0 of given ones, no number where logits were none."""

    @property
    def finite(self) -> bool:
        """Whether the logits that its tokens were drawn from are numbers; else the tokens mean nothing."""
        return bool(self.log_probabilities.isfinite().all())


EXTENT = 128
"""Where shapes should be few, passes read slots in multiples of this."""


@dataclass(eq=False)
class _Image:
    """What is known of a busy row without asking the device."""

    ticket: int
    evaluated: int
    """By the lane when it came."""
    prompt: int
    """Tokens before its first slot, padding included."""
    passes: int = 1


class Lane:
    """Rows that are decoded together: one grid, strategy and set of filters; the rest is each image's own.

    In every pass the strategy's queries are fed, their keys and values written by slot, and each query
    sees its prefix and the slots at or before its own that have been written, never one that holds nothing; of other
    grid rows, those that the strategy shows.
    Busy rows come first, so that a pass works on a slice of them; with guidance, a row is two of the model's,
    side by side: the conditional one, then the other.
    """

    def __init__(
        self,
        model: Decodable,
        grid: TokenGrid,
        strategy: Strategy,
        sampling: Sampling,
        rows: int,
        prefix: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        deterministic: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        """An empty lane.

        Args:
            model: what turns tokens into logits.
            grid: of all images.
            strategy: which slots each pass evaluates.
            sampling: whether images are guided, and the filters; ``admit`` is told the rest.
            rows: images that it holds at most.
            prefix: the longest prompt, in tokens, without given frames.
            device, dtype: of the prefixes.
            deterministic: passes have one shape whatever the load, so that rounding does not depend on it.
            cuda_graphs: replay passes as CUDA graphs.
        """
        self.model, self.grid, self.sampling, self.rows = model, grid, sampling, rows
        self.branches = 2 if sampling.guided else 1
        self.cache = SlotCache(model.layers, rows * self.branches, prefix, grid.slots)
        self.schedule = strategy.schedule(grid, rows, device)
        self.evaluated = 0
        """Queries of each row over all passes."""
        self._deterministic = deterministic
        self._own_precision = torch.autocast(device.type, enabled=False)
        self._trims = device.type == "cpu" and not deterministic
        self._graphs = Graphs(device) if cuda_graphs else None
        self._images: list[_Image] = []
        self._tickets = 0
        self._flags: deque[tuple[list[_Image], Tensor, torch.cuda.Event]] = deque()
        self._parts: dict[int, Schedule] = {}

        entries = prefix + grid.slots
        self._blank = F.pad(grid.blank(), (0, 1)).to(device)  # the last entry takes what has no target
        self._entries = torch.arange(entries, device=device)
        self._serves = Places.of(grid, device).row[1:]
        """The grid row of the token that is drawn when a slot is fed."""
        self._shown, self._hidden = additive(torch.tensor([[[True, False]]], device=device), dtype).flatten().unbind()
        self.tokens = self._blank.repeat(rows, 1)
        self.born = torch.zeros_like(self.tokens)
        self.log_probabilities = torch.zeros(self.tokens.shape, device=device)
        self.passes = torch.ones(rows, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self.keys = torch.zeros_like(self.tokens)
        """What the noise of each slot is made of."""
        self.temperature, self.noise, self.scale = (torch.ones(rows, 1, 1, device=device) for _ in range(3))
        self._held = [self.tokens, self.born, self.log_probabilities, self.passes, self.seeds, self.keys]
        self._held += [self.temperature, self.noise, self.scale]
        # a row that never held an image sees zeros, lest a softmax over nothing leaves NaN in the cache
        self.written = torch.ones(rows * self.branches, entries, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(rows * self.branches, dtype=torch.int64, device=device)

    @property
    def busy(self) -> int:
        """Images that it holds."""
        return len(self._images)

    @torch.inference_mode()
    def admit(self, prefix: Prefix, sampling: Sampling, seeds: Sequence[int]) -> range:
        """Take images in: prefill their rows, and draw their first tokens.

        Args:
            prefix: of ``len(seeds)`` images, or twice as many rows where the lane is guided.
            sampling: guidance scale and temperature are these images' own.
            seeds: one an image; a seed, a slot and logits make a token.

        Returns:
            Their tickets, by which ``retire`` names them.

        Raises:
            ZipARError: they do not fit the lane.
        """
        images, count, length, first = len(seeds), len(prefix.valid), prefix.prompt, self.grid.first
        if count != images * self.branches:
            raise ZipARError(f"{count} prefix rows do not fit {images} seeds with guidance {sampling.guidance_scale}")
        if prefix.opening != first:
            raise ZipARError(
                f"a prefix of {prefix.opening} given tokens does not fit a grid of which {first} are given"
            )
        if self.busy + images > self.rows or length > self.cache.prefix:
            raise ZipARError(
                f"{images} images with prefixes of {length} tokens do not fit a lane of {self.rows} rows, {self.busy} "
                f"of them busy, and {self.cache.prefix} tokens: retire images first, or make the lane larger"
            )
        held = self.sampling
        if (sampling.guided, sampling.filters) != (held.guided, held.filters):
            raise ZipARError(
                f"{sampling} does not fit a lane of {held}: guidance or none, top-k, top-p and min-p are one"
            )
        if sampling.guided:
            prefix = prefix.paired()
        rows = slice(self.busy, self.busy + images)
        theirs = slice(rows.start * self.branches, rows.stop * self.branches)
        prompt = slice(self.cache.prefix - length, self.cache.prefix + first)
        self.cache.place(theirs, self._entries[prompt].expand(count, -1), prompt)
        with self._own_precision:
            logits = self.model.prefill(prefix, self.cache, prefix.mask())
        if self._tickets == 0:
            self.schedule.prepare(logits.shape[-1])
            self._numbers = torch.arange(logits.shape[-1], dtype=torch.int32, device=self.tokens.device)

        draw = Draw.of(sampling, seeds, self.tokens.device)
        self.temperature[rows], self.noise[rows], self.seeds[rows] = draw.temperature, draw.noise, draw.seeds
        self.scale[rows] = sampling.guidance_scale
        self.keys[rows] = slot_keys(draw.seeds, torch.arange(self.grid.slots + 1, device=self.keys.device)[None])
        self.written[theirs] = False
        self.written[theirs, prompt] = prefix.valid
        self.lengths[theirs] = prefix.lengths
        self.tokens[rows], self.born[rows] = self._blank, 0
        self.log_probabilities[rows], self.passes[rows] = 0, 0
        self.schedule.reset(rows)
        if prefix.given is not None:
            self.tokens[rows, :first] = prefix.given[:: self.branches]
        targets = torch.full_like(self.passes[rows, None], first)
        self._weigh(rows, targets, *self._draw(rows, logits, targets))
        self.passes[rows] = 1
        tickets = range(self._tickets, self._tickets + images)
        self._tickets += images
        self._images += [_Image(ticket, self.evaluated, length) for ticket in tickets]
        return tickets

    @torch.inference_mode()
    def step(self) -> int:
        """One forward pass of all images, if there are any; returns the queries that it evaluated for each."""
        if not self._images:
            return 0
        rows, bounds = self._shape()
        self._first(rows)  # lest a compiled pass makes it
        run = self.forward if self._graphs is None else partial(self._graphs, self.forward)
        with self._own_precision:
            width = run(rows, bounds)
        self.evaluated += width
        for image in self._images:
            image.passes += 1
        if self.tokens.is_cuda:
            done = self.schedule.done[: self.busy]
            flags = torch.empty(done.shape, dtype=torch.bool, pin_memory=True).copy_(done, non_blocking=True)
            self._flags.append((list(self._images), flags, torch.cuda.current_stream(done.device).record_event()))
        return width

    def _shape(self) -> tuple[int, tuple[int, int] | None]:
        """Rows of the coming pass, and its bounds, None where they depend on the images."""
        slots = self.grid.slots
        if self._deterministic:
            return self.rows, (self._first(self.rows).width, slots)
        known = [self.schedule.bounds(number) for number in {image.passes for image in self._images}]
        sure = [bounds for bounds in known if bounds is not None]
        bounds = (max(1, *(width for width, _ in sure)), max(1, *(extent for _, extent in sure))) if sure else None
        if self._trims:
            return self.busy, bounds
        rows = min(1 << (self.busy - 1).bit_length(), self.rows)
        extent = slots if bounds is None else min(-(-bounds[1] // EXTENT) * EXTENT, slots)
        return rows, (self._first(rows).width, extent)

    def _first(self, rows: int) -> Schedule:
        """The schedule of the first rows."""
        if rows not in self._parts:
            self._parts[rows] = self.schedule.first(rows)
        return self._parts[rows]

    def forward(self, rows: int, bounds: tuple[int, int] | None) -> int:
        """A whole pass of the first ``rows``; nothing is read back, and nothing has a shape that depends on data.

        Args:
            rows: rows of the lane.
            bounds: queries of each row, and the slot that those which count lie below: no cache entry from there on is
                read. With None they are read from the strategy's step, which costs nothing on a CPU.

        Returns:
            The queries of each row.
        """
        schedule, tokens, passes = self._first(rows), self.tokens[:rows], self.passes[:rows]
        step = schedule.plan(tokens)
        if bounds is None:
            used = step.queries < self.grid.slots - 1
            bounds = int(used.any(0).sum()), int(step.queries.where(used, 0).max()) + 1
        width, extent = bounds
        step = Step(*(part[:, :width] for part in step))
        logits = self._evaluate(rows, step, extent)
        logits, draw = self._draw(slice(rows), logits, step.targets)
        schedule.settle(tokens, Evaluated(step, logits, draw, passes))
        self._weigh(slice(rows), step.targets, logits, draw)
        passes += 1
        return width

    def _evaluate(self, rows: int, step: Step, extent: int) -> Tensor:
        """Logits of the model's rows."""
        fed, slots = self.tokens[:rows].gather(1, step.sources), step.queries
        if self.branches == 2:
            fed, slots = fed.repeat_interleave(2, 0), slots.repeat_interleave(2, 0)
        first = self.cache.prefix - max(image.prompt for image in self._images) if self._trims else 0
        theirs, seen = slice(0, rows * self.branches), slice(first, self.cache.prefix + extent)
        entries = slots + self.cache.prefix
        written = self.written[theirs].scatter_(1, entries, True)
        visible = written[:, None, seen] & (self._entries[seen] <= entries[..., None])
        if (shown := self._first(rows).shown) is not None:
            shown = shown[:, :extent].repeat_interleave(self.branches, 0)[:, None]
            same_row = self._serves[slots][..., None] == self._serves[:extent]
            visible[..., self.cache.prefix - first :] &= shown | same_row
        mask = torch.where(visible, self._shown, self._hidden)[:, None]
        self.cache.place(theirs, entries, seen)
        return self.model.step(fed, slots, self.lengths[theirs], self.cache, mask)

    def _draw(self, rows: slice, logits: Tensor, targets: Tensor) -> tuple[Tensor, Draw]:
        """Sample from the logits of the model's rows; returns what was drawn from, and how."""
        if self.branches == 2:
            logits = guide(logits, self.scale[rows])
        draw = Draw(self.temperature[rows], self.noise[rows], self.seeds[rows], *self.sampling.filters)
        noise = noise_of(self.keys[rows].gather(1, targets), self._numbers)
        logits = filter_logits(logits, draw)
        tokens = sample(logits, draw, noise)
        self.tokens[rows].scatter_(1, targets, tokens)
        self.born[rows].scatter_(1, targets, self.passes[rows, None].expand_as(targets))
        return logits, draw

    def _weigh(self, rows: slice, targets: Tensor, logits: Tensor, draw: Draw) -> None:
        """Keep how likely the tokens were that the schedule settled for."""
        likely = log_probabilities_of(self.tokens[rows].gather(1, targets), logits, draw)
        self.log_probabilities[rows].scatter_(1, targets, likely)

    @torch.inference_mode()
    def retire(self) -> list[Finished]:
        """Let the images go that are done; on a GPU it is known a pass late, so that passes need not wait for it."""
        done: list[_Image] = []
        if self.tokens.is_cuda:
            while len(self._flags) > 1:
                images, flags, event = self._flags.popleft()
                event.synchronize()
                done += [image for image, flag in zip(images, flags.tolist(), strict=True) if flag]
        elif self.busy:
            now = self.schedule.done[: self.busy].tolist()
            done = [image for image, flag in zip(self._images, now, strict=True) if flag]
        rows = {self._images.index(image) for image in done if image in self._images}
        return [self._release(row) for row in sorted(rows, reverse=True)]  # so that the last busy row is never one

    @torch.inference_mode()
    def peek(self, ticket: int) -> tuple[Tensor, Tensor]:
        """An image that is not done: its tokens so far, and the pass of each; int64 (slots,), 0 where none is yet."""
        row = self._row(ticket)
        return self.tokens[row, :-1].clone(), self.born[row, :-1].clone()

    @torch.inference_mode()
    def drop(self, ticket: int) -> None:
        """Let an image go that is not done."""
        self._vacate(self._row(ticket))

    def clear(self) -> None:
        """Let all images go, done or not."""
        self._images.clear()
        self._flags.clear()

    def _row(self, ticket: int) -> int:
        """The row of an image that the lane holds."""
        return next(row for row, image in enumerate(self._images) if image.ticket == ticket)

    def _release(self, row: int) -> Finished:
        """The image of a row, which it leaves."""
        image = self._images[row]
        tokens, born, drawn = (held[row, :-1].clone() for held in (self.tokens, self.born, self.log_probabilities))
        finished = Finished(
            image.ticket,
            tokens,
            born,
            int(born.max()) + 1,
            self.evaluated - image.evaluated,
            int(self.schedule.rejections[row]),
            drawn,
        )
        self._vacate(row)
        return finished

    def _vacate(self, row: int) -> None:
        """Free a row: the last busy one moves into it."""
        last = self.busy - 1
        if row < last:
            self.schedule.move(last, row)
            for held in self._held:
                held[row] = held[last]
            theirs, from_last = (slice(each * self.branches, (each + 1) * self.branches) for each in (row, last))
            for held in (self.written, self.lengths):
                held[theirs] = held[from_last]
            self.cache.move(from_last, theirs)
            self._images[row] = self._images[last]
        del self._images[last]
