"""From logits to tokens: guidance, temperature, top-k, top-p, min-p, and noise that belongs to (seed, slot).

Sampling is by the Gumbel-max trick: argmax(logits + noise) is a draw from softmax(logits). The noise
of a token depends on its seed and slot alone, never on a running stream, so an image does not depend
on the batch, the order of decoding or the device it is made in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zipar.arguments import keep, real, whole

NEXT = 0x9E3779B97F4A7C15
"""What a seed grows by from one decoding to the next, where several make what it stands for."""
COLDEST = 1e-20
"""Below this temperature decoding is greedy: logits divided by less may be more than float32 holds."""
STRONGEST = 1_000_000
"""The largest guidance scale: logits stay what float32 holds, also once they are divided by ``COLDEST``."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; filters apply in the order temperature, top-k, top-p, min-p, as in transformers.

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 filter nothing; ``guidance_scale`` 1 is none.

    Raises:
        ZipARError: a number that is not possible.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        scales = f"a number, 1 for none, more for more, {STRONGEST} at most"
        keep(
            self,
            guidance_scale=real("guidance_scale", self.guidance_scale, lambda x: 0 <= x <= STRONGEST, scales),
            temperature=real("temperature", self.temperature, lambda x: x >= 0, "a number, 0 (greedy) or more"),
            top_k=whole("top_k", self.top_k),  # 0 for all tokens
            top_p=real("top_p", self.top_p, lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
            min_p=real("min_p", self.min_p, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
        )

    @property
    def filters(self) -> tuple[int, float, float]:
        """``top_k``, ``top_p`` and ``min_p``, as a ``Draw`` has them."""
        return self.top_k, self.top_p, self.min_p

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST


class Draw(NamedTuple):
    """How the tokens of some images are drawn: the same filters, each with its own temperature and seed."""

    temperature: Tensor
    """Float32 (images, 1, 1); 1 where the image is greedy."""
    noise: Tensor
    """Float32 (images, 1, 1): factor of the noise, 0 where the image is greedy, else 1."""
    seeds: Tensor
    """int64 (images,)."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @classmethod
    def of(cls, sampling: Sampling, seeds: Sequence[int], device: torch.device | str = "cpu") -> "Draw":
        """Of images that are sampled alike; a seed of any size counts modulo 2^64."""
        temperature = torch.full((len(seeds), 1, 1), 1.0 if sampling.greedy else sampling.temperature, device=device)
        noise = torch.full_like(temperature, not sampling.greedy)
        keys = torch.tensor([(int(seed) + 2**63) % 2**64 - 2**63 for seed in seeds], dtype=torch.int64, device=device)
        return cls(temperature, noise, keys, *sampling.filters)


def guide(logits: Tensor, scale: Tensor | float) -> Tensor:
    """Classifier-free guidance: logits (2 * images, ...), each image's conditional and unconditional -> (images, ...).

    ``scale`` is one number, or float32 (images, 1, 1).
    """
    conditional, unconditional = logits.unflatten(0, (-1, 2)).unbind(1)
    return unconditional + scale * (conditional - unconditional)


def filter_logits(logits: Tensor, draw: Draw) -> Tensor:
    """Logits (images, queries, vocabulary) after temperature, top-k, top-p and min-p; what is filtered out is -inf."""
    logits = logits / draw.temperature
    if 0 < draw.top_k < logits.shape[-1]:
        least = logits.topk(draw.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if draw.top_p < 1:
        ordered, order = logits.sort()
        outside = ordered.softmax(-1).cumsum(-1) <= 1 - draw.top_p
        outside[..., -1] = False
        logits = logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    if draw.min_p > 0:
        shares = logits.softmax(-1)
        logits = logits.masked_fill(shares < draw.min_p * shares.amax(-1, keepdim=True), float("-inf"))
    return logits


def sample(logits: Tensor, draw: Draw, noise: Tensor) -> Tensor:
    """Draw a token for each slot.

    Args:
        logits: (images, queries, vocabulary), as ``filter_logits`` returns them.
        draw: temperature and filters of the images.
        noise: float32, shaped like the logits: ``gumbel`` of the images' seeds and of the tokens' slots.

    Returns:
        int64 (images, queries).
    """
    return torch.addcmul(logits, draw.noise, noise).argmax(-1)


def probabilities(logits: Tensor, draw: Draw) -> Tensor:
    """The distribution (images, queries, vocabulary) that ``sample`` draws from: all on one token where greedy.

    ``logits`` are those of ``filter_logits``.
    """
    certain = torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return logits.softmax(-1).where(draw.noise > 0, certain)


def log_probabilities_of(tokens: Tensor, logits: Tensor, draw: Draw) -> Tensor:
    """Logarithm of what ``probabilities`` gives tokens (images, queries) that were drawn from these logits."""
    logarithm = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
    return logarithm * draw.noise[..., 0]


def revise(tokens: Tensor, before: Tensor, now: Tensor, seeds: Tensor, slots: Tensor) -> Tensor:
    """Turn draws from ``before`` into draws from ``now``, keeping as many as can be (Leviathan et al., 2023).

    A token x stays with probability min(1, now(x) / before(x)), else one is drawn from max(0, now - before).

    Args:
        tokens: int64 (images, n), drawn from ``before``.
        before, now: (images, n, vocabulary).
        seeds: int64 (images,), of noise that the draws have not used.
        slots: int64 (images, n).

    Returns:
        int64 (images, n); those that differ from ``tokens`` were rejected.
    """
    noise = gumbel(seeds, slots, now.shape[-1] + 1)
    uniform = (-(-noise[..., -1]).exp()).exp()
    chosen = tokens[..., None]
    kept = uniform * before.gather(-1, chosen)[..., 0] <= now.gather(-1, chosen)[..., 0]
    drawn = ((now - before).clamp(min=0).log() + noise[..., :-1]).argmax(-1)
    return tokens.where(kept, drawn)


def gumbel(seeds: Tensor, slots: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 (images, queries, vocabulary), a pure function of its arguments.

    A counter-based generator: a 64-bit key is hashed from (seed, slot), and two rounds of a 32-bit
    hash mix its halves with the token index. Integer arithmetic only, so it is the same on any device.
    """
    numbers = torch.arange(vocabulary, dtype=torch.int32, device=seeds.device)
    return noise_of(slot_keys(seeds, slots), numbers)


def slot_keys(seeds: Tensor, slots: Tensor) -> Tensor:
    """What ``gumbel`` makes the noise of seeds (images,) and slots (images or 1, queries) of: int64 of both's shape."""
    return _mix64(_mix64(seeds[:, None]) ^ slots)


def noise_of(keys: Tensor, numbers: Tensor) -> Tensor:
    """The noise of ``slot_keys`` and of the tokens' ``numbers``, int32 (vocabulary,), which is its last axis."""
    low, high = keys.to(torch.int32)[..., None], (keys >> 32).to(torch.int32)[..., None]
    bits = numbers ^ low
    bits = _mix32_(_mix32_(bits).add_(high)).bitwise_and_(0x7FFFFFFF)
    # floats are finest near 0, where the largest noise comes from; rounding up to 1 is undone
    minus_uniform = bits.float().add_(0.5).mul_(-(2.0**-31)).clamp_(min=2.0**-24 - 1)
    return minus_uniform.log1p_().neg_().log_().neg_()


def _mix64(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014), on int64 that wraps."""
    x = x + -0x61C8864680B583EB
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)


def _mix32_(x: Tensor) -> Tensor:
    """A full-avalanche permutation of int32 (Wellons, "Hash function prospector", 2018), that wraps; in place."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(-0x7B935975)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
