"""What tests of several families of models share."""

import pytest
import torch

from zipar.decoding.attention import additive
from zipar.decoding.sampling import Draw, gumbel, sample


@pytest.fixture(scope="session")
def chameleon_brute_force():
    return brute_force


def brute_force(model, prefixes, grid, sampling, seed, window, codes):
    """Decode one image by the rules of the paper, with no cache and no plan; returns tokens by slot, and passes.

    Every token ever fed is an event (slot, token, pass), and each pass computes all events anew, with transformers'
    own attention: an event sees the prefix and, for each slot up to its own, the newest event so far. ``codes`` are the
    vocabulary's ids of image tokens; tokens are counted from the first of them on, around the end of the vocabulary.
    """
    free = grid.free()[0].tolist()
    place = {slot: (r, c) for r, row in enumerate(free) for c, slot in enumerate(row)}
    tokens = {slot: token for slot, token in enumerate(grid.blank().tolist()) if slot not in place}
    events, settled, passes, embed = [], set(), 0, model.model.get_input_embeddings()

    def ready(slot, row, column):
        needed = free[row][:column] + (free[row - 1][: column + window] if row else [])
        return slot not in tokens and all(other in tokens for other in needed)

    def logits(embeddings):
        prefix, size = len(embeddings), len(embeddings) + len(events)
        sees = torch.zeros(size, size, dtype=torch.bool)
        sees[:, :prefix] = torch.ones(size, prefix).tril()
        for i, (slot, _, now) in enumerate(events):
            newest = {other: j for j, (other, _, then) in enumerate(events) if other <= slot and then <= now}
            sees[prefix + i, [prefix + j for j in newest.values()]] = True
        slots, fed = torch.tensor([event[:2] for event in events], dtype=torch.int64).view(-1, 2).T
        hidden = torch.cat([embeddings, embed((fed + codes.start) % model.model.config.vocab_size)])[None]
        positions = torch.cat([torch.arange(prefix), prefix + slots])[None]
        mask = additive(sees[None], hidden.dtype)
        output = model.model.model(inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False)
        return model.model.lm_head(output.last_hidden_state)[0, :, codes]

    while len(tokens) < grid.slots:
        targets, queries = [slot for slot, where in place.items() if ready(slot, *where)], [-1]
        if passes:
            final = [slot for slot in range(grid.slots - 1) if max(s for s in place if s <= slot) in tokens]
            fed = {slot: tokens[slot] for slot in final if slot not in settled}
            settled.update(fed)
            fed.update({slot - 1: tokens[slot - 1] for slot in targets})
            events += [(slot, token, passes) for slot, token in fed.items()]
            queries = [list(fed).index(slot - 1) - len(fed) for slot in targets]
        conditional, unconditional = (logits(embeddings)[queries] for embeddings in prefixes)
        guided = unconditional + sampling.guidance_scale * (conditional - unconditional)
        draw = Draw.of(sampling, [seed])
        drawn = sample(guided[None], draw, gumbel(draw.seeds, torch.tensor([targets]), guided.shape[-1]))
        tokens.update(zip(targets, drawn[0].tolist(), strict=True))
        passes += 1
    return [tokens[slot] for slot in range(grid.slots)], passes
