"""An oracle that tests of several families share."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from zipar.decoding.attention import additive
from zipar.decoding.sampling import gumbel


def _drawn(logits, sampling, seed, slots):
    """Tokens of logits (slots, vocabulary), filtered by transformers, with the noise of our seeds."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    filters = [TemperatureLogitsWarper(sampling.temperature)]
    filters += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    filters += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    for each in filters:
        logits = each(None, logits)
    key = torch.tensor([(seed + 2**63) % 2**64 - 2**63])
    return (logits + gumbel(key, torch.tensor([slots]), logits.shape[-1])[0]).argmax(-1)


def _brute_force(decoder, embed, logits_of, prefixes, grid, sampling, seed, window, alone=False):
    """Decode one image by the rules of the paper, with no cache and no plan; returns tokens by slot, and passes.

    Every token ever fed is an event (slot, token, pass), and each pass computes all events anew, with transformers'
    own attention: an event sees the prefix and, for each slot up to its own, the newest event so far.

    Args:
        decoder: of transformers, which takes embeddings.
        embed: tokens -> embeddings.
        logits_of: hidden states -> logits of tokens.
        prefixes: embeddings (length, dim) without padding: the prompt's and the unconditional branch's.
        alone: whether row 0 is complete before another row starts.
    """
    free = grid.free()[0].tolist()
    place = {slot: (r, c) for r, row in enumerate(free) for c, slot in enumerate(row)}
    tokens = {slot: token for slot, token in enumerate(grid.blank().tolist()) if slot not in place}
    events, settled, passes = [], set(), 0

    def ready(slot):
        row, column = place[slot]
        needed = free[row][:column]
        if row:
            needed = needed + free[row - 1][: column + window] + (free[0] if alone else [])
        return slot not in tokens and all(other in tokens for other in needed)

    def fed_at(slot):
        if slot in tokens:
            return tokens[slot]
        row = place[slot][0]  # its end is to come: that of the nearest complete row above, or the last there is
        above = [line[-1] for line in free[:row] if line[-1] in tokens]
        return tokens[above[-1] if above else max(other for other in free[row] if other in tokens)]

    def logits(embeddings):
        prefix, size = len(embeddings), len(embeddings) + len(events)
        sees = torch.zeros(size, size, dtype=torch.bool)
        sees[:, :prefix] = torch.ones(size, prefix).tril()
        for i, (slot, _, now) in enumerate(events):
            newest = {other: j for j, (other, _, then) in enumerate(events) if other <= slot and then <= now}
            sees[prefix + i, [prefix + j for j in newest.values()]] = True
        slots, fed = torch.tensor([event[:2] for event in events], dtype=torch.int64).view(-1, 2).T
        hidden = torch.cat([embeddings, embed(fed)])[None]
        positions = torch.cat([torch.arange(prefix), prefix + slots])[None]
        mask = additive(sees[None], hidden.dtype)
        output = decoder(inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False)
        return logits_of(output.last_hidden_state)[0]

    while len(tokens) < grid.slots:
        targets, queries = [slot for slot in place if ready(slot)], [-1]
        if passes:
            final = [slot for slot in range(grid.slots - 1) if max(s for s in place if s <= slot) in tokens]
            fed = {slot: tokens[slot] for slot in final if slot not in settled}
            settled.update(fed)
            fed.update({slot - 1: fed_at(slot - 1) for slot in targets})
            events += [(slot, token, passes) for slot, token in fed.items()]
            queries = [list(fed).index(slot - 1) - len(fed) for slot in targets]
        conditional, unconditional = (logits(embeddings)[queries] for embeddings in prefixes)
        guided = unconditional + sampling.guidance_scale * (conditional - unconditional)
        drawn = _drawn(guided, sampling, seed, targets)
        tokens.update(zip(targets, drawn.tolist(), strict=True))
        passes += 1
    return [tokens[slot] for slot in range(grid.slots)], passes


@pytest.fixture(scope="session")
def brute_force():
    return _brute_force


@pytest.fixture(scope="session")
def brute_force_of_codes():
    """The same of a language model whose image tokens are the ids ``codes``."""

    def run(network, codes, *arguments, **settings):
        embeddings, rows = network.get_input_embeddings(), slice(codes.start, codes.stop)
        return _brute_force(
            network.model,
            lambda fed: embeddings((fed + codes.start) % embeddings.num_embeddings),
            lambda hidden: network.lm_head(hidden)[..., rows],
            *arguments,
            **settings,
        )

    return run
