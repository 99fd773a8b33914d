"""What it does to attend to slots that hold nothing yet, as other implementations of ZipAR do.

    python benchmarks/unwritten_zeros.py --images 256 --output benchmarks/results

Elsewhere a query attends to every slot before its own. Those that are not decoded yet hold zero keys and values:
each takes softmax weight exp(0) and adds nothing. Here such slots are masked. Three comparisons on the same prompts
and seeds: the fidelity gap of whole images; one decision at a time, what is predicted after raster's own tokens with
full context, with the gap masked and with zeros in it; and the attention that full context pays to the gap.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

import zipar
from decoding import machine
from studies import Batch, Watched, batches, mean, parser, write
from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Decodable, Prefix
from zipar.decoding.engine import decode
from zipar.decoding.raster import Raster
from zipar.decoding.strategy import Evaluated, StaticStrategy, Step
from zipar.decoding.zipar import ZipAR
from zipar.evaluation.fidelity import likelihood
from zipar.grid import TokenGrid
from zipar.models import llamagen
from zipar.models.base import VisualModel


class Sinks:
    """A model whose queries also attend to slots before their own that hold nothing: a zero key and a zero value.

    The attention score of such a slot is 0, as a zero key has it, plus ``score``; with ``together``, all of a query
    weigh what one would.
    """

    def __init__(self, model: VisualModel, score: float = 0.0, together: bool = False) -> None:
        self.model, self.layers = model, model.layers
        self.score, self.together = score, together

    def prefill(self, prefix: Prefix, cache: SlotCache, mask: Tensor) -> Tensor:
        return self.model.prefill(prefix, cache, mask)

    def step(self, tokens: Tensor, slots: Tensor, lengths: Tensor, cache: SlotCache, mask: Tensor) -> Tensor:
        slot = torch.arange(mask.shape[-1] - cache.prefix)
        gap = mask[..., cache.prefix :].isinf() & (slot <= slots[:, None, :, None])
        score = torch.full(gap.shape, self.score, dtype=mask.dtype)
        if self.together:
            score -= gap.sum(-1, keepdim=True).clamp(min=1).log()
        seen = mask[..., cache.prefix :].where(~gap, score)
        return self.model.step(tokens, slots, lengths, cache, torch.cat([mask[..., : cache.prefix], seen], dim=-1))


def variants(model: VisualModel) -> dict[str, Decodable]:
    """What may be done about the gap."""
    return {"masked": model, "zeros": Sinks(model), "zeros that weigh as one": Sinks(model, together=True)}


def controls(model: VisualModel) -> dict[str, Decodable]:
    """Zeros of other weights: were they to help, would 0 be the score at which they do?"""
    return {f"zeros at score {score:+d}": Sinks(model, score) for score in (-2, -1, 1)}


def gaps(strategy: StaticStrategy, grid: TokenGrid) -> Tensor:
    """The slots before each that hold nothing when it is decoded, bool (slots, slots)."""
    found = torch.zeros(grid.slots, grid.slots, dtype=torch.bool)
    written = torch.zeros(grid.slots, dtype=torch.bool)
    for entries in strategy.plan(grid)[1:]:
        queries, _, targets = torch.tensor(entries).T
        written[queries] = True
        decides = targets < grid.slots
        before = torch.arange(grid.slots) < targets[decides, None]
        found[targets[decides]] = before & ~written
    return found


def predictions(
    model: Decodable, base: VisualModel, batch: Batch, strategy: StaticStrategy, script: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a strategy decodes, (images, slots), and the log-probabilities it drew that from.

    With a ``script``, int64 (images, slots), each pass comes after the script's tokens.
    """
    grid = base.grid(*base.image_size)
    scores = torch.zeros(0)

    def see(step: Step, evaluated: Evaluated) -> None:
        nonlocal scores
        found = evaluated.logits.log_softmax(-1)
        if not len(scores):
            scores = found.new_zeros(len(found), grid.slots + 1, found.shape[-1])
        scores[:, step.targets[0]] = found

    decoded = decode(model, batch.prefix, grid, Watched(strategy, see, script), base.defaults, batch.seeds)
    return decoded.tokens, scores[:, :-1]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities, over the last dimension."""
    return (p.exp() * (p - q)).sum(-1)


def entropy(p: Tensor) -> Tensor:
    return -(p.exp() * p).sum(-1)


SHARPNESS = torch.linspace(0.5, 1.3, 17)


def one_step(full: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Means over the slots for each image; log-probabilities (images, slots, vocabulary)."""
    found = {
        "kl": divergence(full, other),
        "reverse_kl": divergence(other, full),
        "entropy": entropy(other),
        "cost": -(other.exp() * full).sum(-1) - entropy(full),
    }
    sharper = [divergence(full, (other * factor).log_softmax(-1)).mean(1) for factor in SHARPNESS]
    return {**{name: values.mean(1) for name, values in found.items()}, "sharper_kl": torch.stack(sharper, 1)}


@contextmanager
def attention_scores(see: Any) -> Iterator[None]:
    """Shows ``see`` the scores (rows, heads, queries, keys) of every attention of a LlamaGen."""
    attend = llamagen.attend

    def spy(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        see(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask)
        return attend(query, key, value, mask)

    llamagen.attend = spy
    try:
        yield
    finally:
        llamagen.attend = attend


def attention(model: VisualModel, batch: Batch, tokens: Tensor, gap: Tensor) -> list[dict[str, float]]:
    """For each layer, what full context pays to the gap, and what zeros there would take from the same queries.

    The queries and keys are those of full context; (target) slots without a gap are left out.
    """
    grid, (rows, length) = model.grid(*model.image_size), batch.prefix.valid.shape
    cache = SlotCache(model.layers, rows, length, grid.slots)
    cache.place(slice(rows), torch.arange(length).expand(rows, -1), slice(length))
    model.prefill(batch.prefix, cache, batch.prefix.mask())
    targets = gap.any(1).nonzero()[:, 0]
    slots = torch.arange(grid.slots - 1).expand(rows, -1)
    seen = slots[:, None] <= slots[..., None]
    seen = torch.cat([batch.prefix.valid[:, None].expand(-1, grid.slots - 1, -1), seen], dim=-1)
    absent = gap[targets][:, :-1]
    count = absent.sum(1)
    layers: list[dict[str, float]] = []

    def see(scores: Tensor) -> None:
        scores = scores[:, :, targets - 1]
        prefix, image = scores[..., :length].logsumexp(-1), scores[..., length:]
        nothing = image.masked_fill(~absent, -torch.inf).logsumexp(-1)
        rest = image.masked_fill(absent, -torch.inf).logsumexp(-1)
        everything = torch.stack([prefix, nothing, rest]).logsumexp(0)
        with_zeros = torch.stack([prefix, count.log().expand_as(rest), rest]).logsumexp(0)
        layers.append(
            {
                "prefix": (prefix - everything).exp().mean().item(),
                "gap": (nothing - everything).exp().mean().item(),
                "zeros": (count.log() - with_zeros).exp().mean().item(),
                "score": (nothing - count.log()).mean().item(),
            }
        )

    cache.place(slice(rows), length + slots, slice(length + grid.slots - 1))
    with attention_scores(see):
        model.step(
            tokens[:, :-1].repeat(rows // len(tokens), 1),
            slots,
            batch.prefix.valid.sum(1),
            cache,
            additive(seen, model.dtype),
        )
    return layers


@torch.inference_mode()
def measure(
    images: int = 256, batch: int = 64, windows: tuple[int, ...] = (4, 2), **sampling: float | None
) -> dict[str, Any]:
    """``{"images", "batch", "sampling", "machine", "raster": nll, "windows": {window: {...}}}``.

    ``sampling`` takes ``guidance_scale`` and ``temperature``; what is not given or None is the model's own.

    A window has ``fidelity``: {variant: {"gap", "less_masked"}} of whole images; ``one_step``: {variant: {...}} of
    decisions that have a gap, each after raster's tokens: ``kl`` is KL(full || variant), ``reverse_kl`` the other
    way, ``cost`` the fidelity gap of that decision alone, ``sharper`` the power of the variant's probabilities that
    comes nearest to full context and the KL it leaves; and ``attention``, layer by layer.
    """
    model = zipar.pipeline("emoji", device="cpu").model
    given = {name: value for name, value in sampling.items() if value is not None}
    model.defaults = replace(model.defaults, **given)  # type: ignore[arg-type]
    grid, named = model.grid(*model.image_size), variants(model)
    base: list[Tensor] = []
    fidelity: dict[int, dict[str, list[Tensor]]] = {window: {name: [] for name in named} for window in windows}
    details: dict[int, dict[str, Any]] = {}
    for part in batches(model, images, batch):

        def nll(tokens: Tensor) -> Tensor:
            return likelihood(model, part.prefix, grid, tokens, model.defaults).nats  # noqa: B023

        raster, full = predictions(model, model, part, Raster())
        first = not base
        base.append(nll(raster))
        for window in windows:
            strategy = ZipAR(window)
            for name, variant in named.items():
                tokens = decode(variant, part.prefix, grid, strategy, model.defaults, part.seeds).tokens
                fidelity[window][name].append(nll(tokens) - base[-1])
            if first:
                details[window] = one_step_details(model, part, strategy, raster, full)
        if first:
            with_zeros = decode(Sinks(model), part.prefix, grid, Raster(), model.defaults, part.seeds).tokens
            assert torch.equal(with_zeros, raster), "raster decoding has no gap, yet zeros change it"
    report: dict[str, Any] = {
        "images": images,
        "batch": batch,
        "sampling": asdict(model.defaults),
        "machine": machine(),
        "raster": torch.cat(base).mean().item(),
        "windows": {str(window): details[window] for window in windows},
    }
    for window in windows:
        gap = {name: torch.cat(parts) for name, parts in fidelity[window].items()}
        report["windows"][str(window)]["fidelity"] = {
            name: {"gap": mean(values), "less_masked": mean(values - gap["masked"])} for name, values in gap.items()
        }
    return report


def one_step_details(
    model: VisualModel, batch: Batch, strategy: StaticStrategy, raster: Tensor, full: Tensor
) -> dict[str, Any]:
    """What ``measure`` tells of single decisions and of attention."""
    gap = gaps(strategy, model.grid(*model.image_size))
    slots = gap.any(1)
    rows: dict[str, Any] = {}
    masked = torch.zeros(0)
    for name, variant in {**variants(model), **controls(model)}.items():
        found = one_step(full[:, slots], predictions(variant, model, batch, strategy, raster)[1][:, slots])
        sharper = found.pop("sharper_kl").mean(0)
        masked = found["kl"] if name == "masked" else masked
        rows[name] = {
            **{key: mean(values) for key, values in found.items()},
            "kl_less_masked": mean(found["kl"] - masked),
            "sharper": {"power": SHARPNESS[sharper.argmin()].item(), "kl": sharper.min().item()},
        }
    return {
        "images": len(raster),
        "slots_with_a_gap": int(slots.sum()),
        "mean_gap": gap.sum().item() / int(slots.sum()),
        "full_entropy": mean(entropy(full[:, slots]).mean(1)),
        "one_step": rows,
        "attention": attention(model, batch, raster, gap),
    }


def table(report: dict[str, Any]) -> str:
    """The report in markdown."""

    def cell(value: dict[str, float], form: str = ".4f") -> str:
        return f"{value['mean']:{form}} ± {value['standard_error']:.4f}"

    windows = report["windows"]
    lines = [
        f"{report['images']} images of emoji, guidance {report['sampling']['guidance_scale']:g}, temperature "
        f"{report['sampling']['temperature']:g}, raster: {report['raster']:.3f} nats a token. "
        f"Machine: {report['machine']}.",
        "",
        "| window | slots that hold nothing | fidelity gap | less masked's |",
        "| ---: | --- | ---: | ---: |",
    ]
    lines += [
        f"| {window} | {name} | {cell(row['gap'], '+.4f')} | {cell(row['less_masked'], '+.4f')} |"
        for window, found in windows.items()
        for name, row in found["fidelity"].items()
    ]
    some = next(iter(windows.values()))["images"]
    lines += [
        "",
        f"One decision after raster's tokens, at slots with a gap, {some} images:",
        "",
        "| window | slots that hold nothing | KL(full, this) | less masked's | KL(this, full) | entropy "
        "| KL at the best power |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for window, found in windows.items():
        lines.append(f"| {window} | none: full context | – | – | – | {cell(found['full_entropy'])} | – |")
        lines += [
            f"| {window} | {name} | {cell(row['kl'])} | {cell(row['kl_less_masked'], '+.4f')} | "
            f"{cell(row['reverse_kl'])} | {cell(row['entropy'])} | "
            f"{row['sharper']['kl']:.4f} ({row['sharper']['power']:.2f}) |"
            for name, row in found["one_step"].items()
        ]
    lines += [
        "",
        f"Softmax weight, mean over heads, queries and {some} images; the score is what would give each zero of the "
        "gap the weight that its real keys have:",
        "",
        "| window | layer | the prompt | the gap, real keys | the gap, zeros | score |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {window} | {i} | {row['prefix']:.1%} | {row['gap']:.1%} | {row['zeros']:.1%} | {row['score']:+.2f} |"
        for window, found in windows.items()
        for i, row in enumerate(found["attention"], start=1)
    ]
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--windows", type=int, nargs="+", default=[4, 2])
    options.add_argument("--guidance-scale", type=float, help="the model's own by default")
    options.add_argument("--temperature", type=float, help="the model's own by default")
    args = options.parse_args()
    report = measure(
        args.images,
        args.batch,
        tuple(args.windows),
        guidance_scale=args.guidance_scale,
        temperature=args.temperature,
    )
    write(args.output, "unwritten_zeros", report, table(report))


if __name__ == "__main__":
    main()
