"""Fidelity against a plain forward over prompt and image."""

import pytest
import torch

from zipar import Raster, Sampling, TokenGrid, ZipAR
from zipar.decoding.attention import additive
from zipar.decoding.engine import decode
from zipar.evaluation.fidelity import likelihood

TEXTS = ["a red fox in the snow", "fox", "two small birds"]
GRIDS = {"plain": TokenGrid(4, 5), "row and frame ends": TokenGrid(3, 3, frames=2, row_end=7, frame_end=(8, 9))}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2.5, temperature=0.7, top_k=20), Sampling(temperature=0)])
@pytest.mark.parametrize("chunk", [1024, 4])
def test_equals_one_plain_forward(tiny_models, grid, sampling, chunk):
    model = tiny_models.by_text
    with torch.inference_mode():
        prefix = model.prefix(TEXTS, None, sampling.guided, grid)
        tokens = decode(model, prefix, grid, ZipAR(2), sampling, [1, 2, 3]).tokens
        found = likelihood(model, prefix, grid, tokens, sampling, chunk)
        for image, text in enumerate(TEXTS):
            branches = []
            alone = model.prefix([text], None, sampling.guided, grid)
            for embeddings in alone.embeddings:
                hidden = torch.cat([embeddings, model.decoder.tok_embeddings(tokens[image, :-1])])[None]
                length = hidden.shape[1]
                rotary = torch.cat(
                    [torch.zeros(len(embeddings), model.rotary.shape[1]), model.rotary[: grid.slots - 1]]
                )[None]
                seen = torch.ones(1, length, length, dtype=torch.bool).tril()
                states = model.decoder(hidden, rotary, additive(seen, hidden.dtype))
                branches.append(model.decoder.output(states)[0, len(embeddings) - 1 :])
            logits = branches[0]
            if sampling.guided:
                logits = branches[1] + sampling.guidance_scale * (branches[0] - branches[1])
            scores = (logits / (sampling.temperature or 1)).log_softmax(-1)
            free = grid.free().flatten()
            expected = -scores[free, tokens[image, free]].double().mean()
            torch.testing.assert_close(found.nats[image], expected, atol=1e-5, rtol=1e-5)
            # what a filter keeps, by its definition: a token with fewer than top-k likelier ones
            likelier = (scores[free] > scores[free, tokens[image, free], None]).sum(-1)
            kept = 1 if sampling.temperature == 0 else sampling.top_k or 50
            assert found.outside[image] == (likelier >= kept).double().mean()


def test_raster_draws_nothing_that_raster_could_not(tiny_models):
    model, grid, sampling = tiny_models.by_text, TokenGrid(4, 5), Sampling(2.0, top_k=5, top_p=0.8)
    with torch.inference_mode():
        prefix = model.prefix(TEXTS, None, True, grid)
        outside = {
            strategy: likelihood(
                model, prefix, grid, decode(model, prefix, grid, strategy, sampling, [1, 2, 3]).tokens, sampling
            ).outside
            for strategy in (Raster(), ZipAR(1))
        }
    assert not outside[Raster()].any()
    assert outside[ZipAR(1)].all()


def test_raster_samples_are_as_likely_as_the_model_is_sure(tiny_models):
    """Greedy tokens are the likeliest of all, so nothing else can have a lower figure."""
    model, grid = tiny_models.by_text, TokenGrid(4, 5)
    greedy, free = Sampling(temperature=0), Sampling()
    with torch.inference_mode():
        prefix = model.prefix(TEXTS, None, False, grid)
        figures = {
            name: likelihood(
                model, prefix, grid, decode(model, prefix, grid, strategy, sampling, [1, 2, 3]).tokens, free
            ).nats.mean()
            for name, strategy, sampling in (
                ("greedy", Raster(), greedy),
                ("raster", Raster(), free),
                ("zipar", ZipAR(1), free),
            )
        }
    assert figures["greedy"] < figures["raster"]
    assert figures["greedy"] < figures["zipar"]
