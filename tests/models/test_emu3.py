"""Emu3 against the generation of transformers itself, and against a decoder with no cache and no plan."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import zipar
from zipar import Raster, Sampling, TokenGrid, ZipAR, ZipARError
from zipar.decoding.engine import decode
from zipar.decoding.sampling import gumbel
from zipar.models import auto
from zipar.models.emu3 import NEGATIVE_PROMPT, POSITIVE_PROMPT, Emu3

CODEBOOK = 40
PROMPTS = ["a red fox in the snow", "fox"]
SEEDS = [3, 8]
ROWS, COLUMNS = 3, 5
SIZE = {"height": 2 * ROWS, "width": 2 * COLUMNS}


@pytest.fixture(scope="module")
def checkpoint(emu3_directories):
    return emu3_directories(scrambled=False)


@pytest.fixture(scope="module")
def model(checkpoint):
    return Emu3.load(checkpoint, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def scrambled(emu3_directories):
    """A model whose visual tokens are not in order."""
    return auto.load(emu3_directories(scrambled=True), device="cpu")


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def documented(model, texts, negatives, rows, columns, negative_size=True, processors=()):
    """What ``generate`` writes, token by token under the documented constraint; and what it was asked."""
    network, processor = model.model, model.processor
    known = processor.tokenizer.convert_tokens_to_ids
    image = {"return_for_image_generation": True, "ratio": f"{columns}:{rows}", "image_area": 64 * rows * columns}
    padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    inputs = processor(text=texts, **padded, **image)
    negative = processor(text=negatives, **padded, **(image if negative_size else {}))
    assert torch.as_tensor(inputs.pop("image_sizes")).tolist() == [[rows, columns]] * len(texts)
    visual = network.model.vocabulary_mapping.image_tokens
    marker = inputs["input_ids"].shape[1] - 1

    def allowed(_, ids):
        assert ids[marker] == known("<|image token|>")
        row, column = divmod(len(ids) - 1 - marker, columns + 1)
        if row < rows:
            return visual if column < columns else [known("<|extra_200|>")]
        return [known(["<|extra_201|>", "<|image end|>", "<|extra_204|>"][column])]

    written = network.generate(
        **inputs,
        max_new_tokens=rows * (columns + 1) + 3,
        do_sample=False,
        guidance_scale=3.0,
        prefix_allowed_tokens_fn=allowed,
        negative_prompt_ids=negative["input_ids"],
        negative_prompt_attention_mask=negative["attention_mask"],
        logits_processor=LogitsProcessorList(processors),
    )
    return written[:, marker + 1 :], inputs, negative


def decoded(model, grid, strategy, prompts=PROMPTS, negatives=None, seeds=SEEDS, **sampling):
    chosen = dataclasses.replace(model.defaults, **sampling)
    with torch.inference_mode():
        prefix = model.prefix(prompts, negatives, chosen.guided, grid)
    return decode(model, prefix, grid, strategy, chosen, seeds)


@pytest.mark.parametrize(
    ("kind", "negatives"), [("model", None), ("scrambled", None), ("model", ["blurry", "ugly and blurry"])]
)
def test_greedy_equals_generate_of_transformers(request, kind, negatives):
    """Two prompts of different lengths, row ends and tail included."""
    model = request.getfixturevalue(kind)
    texts = [prompt + POSITIVE_PROMPT for prompt in PROMPTS]
    expected, *_ = documented(model, texts, negatives or [NEGATIVE_PROMPT] * 2, ROWS, COLUMNS)
    grid = model.grid(**SIZE)
    for strategy in Raster(), ZipAR(COLUMNS):
        found = decoded(model, grid, strategy, negatives=negatives, temperature=0)
        assert model.vocabulary_ids(found.tokens).equal(expected)
    assert len(expected.unique()) > 10


def test_greedy_equals_generate_where_the_negative_prompt_names_no_image(model):
    """As transformers documents it; the authors let the size follow the negative prompt too."""
    grid = model.grid(**SIZE)
    expected, inputs, negative = documented(model, PROMPTS, ["blurry"] * 2, ROWS, COLUMNS, negative_size=False)
    length = inputs["input_ids"].shape[1]
    pad = torch.nn.functional.pad
    short = {name: pad(negative[name], (length - negative[name].shape[1], 0)) for name in negative}
    ids, mask = (torch.cat([inputs[name], short[name]]) for name in ("input_ids", "attention_mask"))
    with torch.inference_mode():
        prefix = model.prompt(ids, mask)
    found = decode(model, prefix, grid, Raster(), Sampling(guidance_scale=3.0, temperature=0), SEEDS)
    assert model.vocabulary_ids(found.tokens).equal(expected)
    named, *_ = documented(model, PROMPTS, ["blurry"] * 2, ROWS, COLUMNS)
    assert not named.equal(expected)


class Noise(LogitsProcessor):
    """Turns greedy generation into sampling with the noise of our seeds."""

    def __init__(self, model, length):
        self.model, self.length = model, length

    def __call__(self, input_ids, scores):
        noise = gumbel(torch.tensor(SEEDS), torch.tensor([[input_ids.shape[1] - self.length]]), CODEBOOK)[:, 0]
        visual = self.model.vocabulary_ids(torch.arange(CODEBOOK))
        return scores.index_add(1, visual, noise)


@pytest.mark.parametrize("kind", ["model", "scrambled"])
def test_sampled_equals_generate_with_the_same_noise(request, kind):
    """Guidance, constraint, temperature, top-k, top-p, in transformers' order."""
    model = request.getfixturevalue(kind)
    texts = [prompt + POSITIVE_PROMPT for prompt in PROMPTS]
    _, inputs, _ = documented(model, texts, [NEGATIVE_PROMPT] * 2, 1, 1)
    filters = [TemperatureLogitsWarper(2.5), TopKLogitsWarper(12), TopPLogitsWarper(0.9)]
    noise = Noise(model, inputs["input_ids"].shape[1])
    expected, *_ = documented(model, texts, [NEGATIVE_PROMPT] * 2, ROWS, COLUMNS, processors=[*filters, noise])
    grid = model.grid(**SIZE)
    found = decoded(model, grid, Raster(), temperature=2.5, top_k=12, top_p=0.9)
    assert model.vocabulary_ids(found.tokens).equal(expected)
    greedy = decoded(model, grid, Raster(), temperature=0)
    assert not found.tokens.equal(greedy.tokens)


def brute_force(model, prompt, negative, grid, window):
    """Decode one image greedily by the rules of the paper, with transformers' own attention, no cache and no plan.

    Every token ever fed is an event (slot, token, pass). Each pass computes all events anew: an event sees its
    prompt and, for each slot up to its own, the newest event so far.
    """
    network, free, blank = model.model, grid.free()[0].tolist(), grid.blank().tolist()
    place = {slot: (r, c) for r, row in enumerate(free) for c, slot in enumerate(row)}
    tokens = {slot: token for slot, token in enumerate(blank) if slot not in place}
    born, events, settled = dict.fromkeys(tokens, 0), [], set()

    def ready(slot):
        row, column = place[slot]
        needed = free[row][:column] + (free[row - 1][: column + window] if row else [])
        return slot not in tokens and all(other in tokens for other in needed)

    def logits(ids):
        prefix, count = len(ids), len(ids) + len(events)
        sees = torch.zeros(count, count, dtype=torch.bool)
        sees[:, :prefix] = torch.ones(count, prefix).tril()
        for i, (slot, _, now) in enumerate(events):
            newest = {other: j for j, (other, _, then) in enumerate(events) if other <= slot and then <= now}
            sees[prefix + i, [prefix + j for j in newest.values()]] = True
        slots, fed = torch.tensor([event[:2] for event in events], dtype=torch.int64).view(-1, 2).T
        positions = torch.cat([torch.arange(prefix), prefix + slots])
        mask = torch.zeros(count, count).masked_fill(~sees, -torch.inf)[None, None]
        everything = torch.cat([ids, model.vocabulary_ids(fed)])
        found = network(everything[None], position_ids=positions[None], attention_mask=mask, use_cache=False).logits[0]
        return found[:, network.model.vocabulary_mapping.image_tokens]

    passes = 0
    while len(tokens) < grid.slots:
        targets = [slot for slot in place if ready(slot)]
        queries = [-1]
        if passes:
            final = [slot for slot in range(grid.slots - 1) if max(s for s in place if s <= slot) in tokens]
            fed = {slot: tokens[slot] for slot in final if slot not in settled}
            settled.update(fed)
            fed |= {slot - 1: tokens[slot - 1] for slot in targets}
            events += [(slot, token, passes) for slot, token in fed.items()]
            queries = [-len(fed) + list(fed).index(slot - 1) for slot in targets]
        conditional, unconditional = (logits(ids)[queries] for ids in (prompt, negative))
        guided = unconditional + 3.0 * (conditional - unconditional)
        tokens.update(zip(targets, guided.argmax(-1).tolist(), strict=True))
        born.update(dict.fromkeys(targets, passes))
        passes += 1
    return [tokens[slot] for slot in range(grid.slots)], [born[slot] for slot in range(grid.slots)], passes


@pytest.mark.parametrize(("rows", "columns", "window"), [(4, 6, 1), (6, 3, 2), (3, 5, 3)])
def test_zipar_equals_the_brute_force_decoder(model, rows, columns, window):
    grid = model.grid(2 * rows, 2 * columns)
    found = decoded(model, grid, ZipAR(window), temperature=0)
    texts = [prompt + POSITIVE_PROMPT for prompt in PROMPTS]
    for image, text in enumerate(texts):
        ids = [
            torch.tensor(
                model.processor.tokenizer(f"<|extra_203|>{words}<|image start|>{rows}*{columns}<|image token|>")[
                    "input_ids"
                ]
            )
            for words in (text, NEGATIVE_PROMPT)
        ]
        with torch.inference_mode():
            expected = brute_force(model, *ids, grid, window)
        assert (found.tokens[image].tolist(), found.born[image].tolist(), found.forward_passes) == expected


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (6, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_known_tokens_cost_no_pass(model, rows, columns, window):
    grid = model.grid(2 * rows, 2 * columns)
    assert decoded(model, grid, Raster()).forward_passes == rows * columns
    window = min(window, columns)
    assert decoded(model, grid, ZipAR(window)).forward_passes == columns + (rows - 1) * window


@pytest.mark.parametrize("window", [COLUMNS, COLUMNS + 3])
def test_a_window_as_wide_as_the_grid_gives_the_tokens_of_raster(model, window):
    grid = model.grid(**SIZE)
    raster = decoded(model, grid, Raster())
    assert decoded(model, grid, ZipAR(window)).tokens.equal(raster.tokens)
    assert not decoded(model, grid, ZipAR(1)).tokens.equal(raster.tokens)


@pytest.mark.parametrize("strategy", [Raster(), ZipAR(2)], ids=["raster", "window 2"])
def test_an_image_is_the_same_alone_and_in_any_batch(model, strategy):
    grid = model.grid(**SIZE)
    together = decoded(model, grid, strategy).tokens
    for image, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        assert decoded(model, grid, strategy, [prompt], seeds=[seed]).tokens[0].equal(together[image])


def test_sampled_tokens_are_visual_ones(model):
    """At a temperature that makes every token of the vocabulary as likely as any other."""
    grid = model.grid(16, 40)
    found = decoded(model, grid, ZipAR(2), temperature=1e6, top_k=0)
    visual = found.tokens[:, grid.free().flatten()]
    assert visual.unique().tolist() == [*range(CODEBOOK)]
    names = model.processor.tokenizer.convert_ids_to_tokens(model.vocabulary_ids(found.tokens[0]).tolist())
    wanted = [name for row in grid.free()[0] for name in ["visual"] * len(row) + ["<|extra_200|>"]]
    wanted += ["<|extra_201|>", "<|image end|>", "<|extra_204|>"]
    assert [name.removeprefix("<|").split()[0] if "visual" in name else name for name in names] == wanted


@pytest.mark.parametrize("kind", ["model", "scrambled"])
def test_pixels_are_those_of_transformers(request, kind):
    model = request.getfixturevalue(kind)
    grid = model.grid(**SIZE)
    found = decoded(model, grid, ZipAR(2))
    free = grid.free().flatten()
    codes = model.codes(found.tokens[:, free]).view(2, ROWS, COLUMNS)
    images = model.model.decode_image_tokens(
        image_tokens=model.vocabulary_ids(found.tokens), height=ROWS, width=COLUMNS
    )
    wanted = model.processor.postprocess(list(images), return_tensors="PIL.Image.Image")["pixel_values"]
    with torch.inference_mode():
        pixels = model.pixels(codes).numpy()
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 2 * ROWS, 2 * COLUMNS, 3)
    assert pixels.std() > 20
    np.testing.assert_allclose(pixels.astype(int), np.stack(wanted).astype(int), atol=1)


def test_pipeline_from_a_directory(checkpoint):
    pipe = zipar.pipeline(checkpoint, device="cpu")
    assert pipe.model.defaults == Sampling(guidance_scale=3.0, temperature=1.0, top_k=2048, top_p=1.0)
    settings = {"num_images_per_prompt": 2, "seed": [5, 6, 5, 7], **SIZE}
    for strategy in Raster(), ZipAR(2), None:
        output = pipe(PROMPTS, strategy=strategy, **settings)
        assert [image.size for image in output.images] == [(2 * COLUMNS, 2 * ROWS)] * 4
        assert output.tokens.shape == (4, ROWS, COLUMNS)
        assert output.tokens.max() < CODEBOOK
        assert output.stats.slots == ROWS * (COLUMNS + 1) + 3
        assert (output.tokens[0] != output.tokens[1]).any()
        assert (output.tokens[0] != output.tokens[2]).any()
        again = pipe(PROMPTS[0], strategy=strategy, seed=6, **SIZE)
        assert (again.tokens[0] == output.tokens[1]).all()
    other = pipe(PROMPTS[0], seed=6, negative_prompt="blurry", **SIZE)
    assert (other.tokens != again.tokens).any()


def test_prompts_end_with_rows_and_columns(model):
    prefix = model.prefix(["fox"], ["blurry"], True, model.grid(12, 6))
    for text, row, valid in zip(["fox" + POSITIVE_PROMPT, "blurry"], prefix.embeddings, prefix.valid, strict=True):
        words = f"<|extra_203|>{text}<|image start|>6*3<|image token|>"
        ids = torch.tensor(model.processor.tokenizer([words])["input_ids"])
        assert row[valid].equal(model.prompt(ids, torch.ones_like(ids)).embeddings[0])


def test_the_authors_suffix_is_not_repeated(model):
    grid = model.grid(**SIZE)
    plain, suffixed = (model.prefix([text], None, False, grid) for text in ("fox", "fox" + POSITIVE_PROMPT))
    assert plain.embeddings.equal(suffixed.embeddings)


def test_a_loaded_model_needs_no_processor_for_tokens(model):
    bare = Emu3(model.model)
    grid = bare.grid(**SIZE)
    prefix = model.prefix(PROMPTS, None, True, grid)
    tokens = decode(bare, prefix, grid, ZipAR(2), bare.defaults, SEEDS).tokens
    assert tokens.equal(decoded(model, grid, ZipAR(2)).tokens)
    assert bare.pixels(tokens[:, grid.free()[0]]).shape == (2, 2 * ROWS, 2 * COLUMNS, 3)
    with pytest.raises(ZipARError, match=r"no processor to read prompts with: make it as Emu3\(model, processor\)"):
        bare.prefix(PROMPTS, None, True, grid)


def test_the_decoder_is_of_the_wanted_type_and_the_image_tokenizer_of_float32(checkpoint):
    model = auto.load(checkpoint, torch.bfloat16, "cpu")
    assert {weight.dtype for weight in model.decoder.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.model.model.vqmodel.parameters()} == {torch.float32}
    assert (model.dtype, model.model.lm_head.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    assert not any(module.training for module in model.modules())
    grid = model.grid(**SIZE)
    assert model.pixels(decoded(model, grid, ZipAR(2)).tokens[:, grid.free()[0]]).shape == (2, 6, 10, 3)


def test_weights_may_be_named_as_the_modules_are(copy, model):
    published = load_file(copy / "model.safetensors")
    weights = model.model.state_dict()
    assert weights.keys().isdisjoint(published)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    loaded = Emu3.load(copy, torch.float32, torch.device("cpu")).model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(weight.equal(loaded[name]) for name, weight in weights.items())


def test_the_grid_of_prompts_is_read_off_them(model):
    image = {"return_for_image_generation": True, "image_area": 64 * 12 * 5}
    padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    wide, tall = (model.processor(text=PROMPTS, ratio=ratio, **image, **padded) for ratio in ("12:5", "5:12"))
    assert model.grid_of(wide["input_ids"]) == model.grid(10, 24)
    assert model.grid_of(tall["input_ids"]) == model.grid(24, 10)
    mixed = torch.cat([wide["input_ids"], tall["input_ids"]])
    named = model.processor(text=["5*12", "<|image start|>5*12"], **padded)["input_ids"]
    for ids in mixed, named, named[1:], wide["input_ids"][:, :-1]:
        with pytest.raises(ZipARError, match="should all end with one size of an image"):
            model.grid_of(ids)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((7, 10), r"7x10 pixels \(height x width\): both must be multiples of 2"),
        ((10, 7), "10x7 pixels"),
        ((0, 10), "0x10 pixels"),
        ((10, -2), "10x-2 pixels"),
        ((40, 40), r"40x40 pixels .* takes 423 tokens, but this Emu3 reads 400 at most: make it smaller"),
    ],
)
def test_sizes_that_it_cannot_make(model, size, message):
    with pytest.raises(ZipARError, match=message):
        model.grid(*size)


def test_prompts_that_it_cannot_take(model):
    grid = model.grid(**SIZE)
    with pytest.raises(ZipARError, match=r"a prompt of \d+ tokens leaves no room for an image of 21, .* 400 at most"):
        model.prefix(["fox " * 90], None, False, grid)
    with pytest.raises(ZipARError, match="negative prompt does nothing"):
        model.prefix(["fox"], ["blurry"], False, grid)


def test_published_shape():
    """The grid of the published configuration, and the passes that it takes."""
    grid = TokenGrid(90, 90, row_end=0, frame_end=(1, 2, 3))
    assert Raster().passes(grid) == 8100
    assert [ZipAR(window).passes(grid) for window in (4, 8, 16, 32)] == [446, 802, 1514, 2938]


def test_outline_needs_no_weights(copy, model):
    (copy / "model.safetensors").unlink()
    outline = Emu3.outline(copy)
    assert outline.device.type == "meta"
    assert outline.image_size == (720, 720)
    assert outline.grid(**SIZE) == model.grid(**SIZE)


def drop(directory, *names):
    for name in names:
        (directory / name).unlink()


def change(directory, **settings):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without(directory, name):
    config = json.loads((directory / "config.json").read_text())
    del config["vocabulary_map"][name]
    change(directory, vocabulary_map=config["vocabulary_map"])


def shift(directory, places):
    config = json.loads((directory / "config.json").read_text())
    change(directory, vocabulary_map={name: i + places for name, i in config["vocabulary_map"].items()})


def rewrite(directory, edit):
    weights = load_file(directory / "model.safetensors")
    edit(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: drop(d, "tokenizer.json"), "holds no tokenizer: put the tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "holds no Emu3Processor that can be read"),
        (lambda d: drop(d, "processor_config.json"), "holds no Emu3Processor that can be read"),
        (lambda d: drop(d, "model.safetensors"), "holds no Emu3ForConditionalGeneration that can be read"),
        (
            lambda d: (d / "model.safetensors").write_bytes(b"x" * 99),
            "holds no Emu3ForConditionalGeneration that can be read",
        ),
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-999]),
            "holds no Emu3ForConditionalGeneration that can be read",
        ),
        (
            lambda d: rewrite(d, lambda weights: weights.pop("text_model.model.layers.1.mlp.up_proj.weight")),
            "lacks 1 tensors of its Emu3ForConditionalGeneration, such as model.text_model.layers.1.mlp.up_proj.weight",
        ),
        (lambda d: rewrite(d, lambda weights: weights.pop("text_model.lm_head.weight")), "lacks 1 tensors"),
        (
            lambda d: rewrite(d, lambda weights: weights.update({"text_model.lm_head.weight": torch.zeros(3, 32)})),
            r"lm_head.weight is of shape \(3, 32\), but should be \(\d+, 32\)",
        ),
        (lambda d: without(d, "<|visual token 000007|>"), "names 39 visual tokens, but its codebook holds 40"),
        (lambda d: without(d, "<|extra_200|>"), r"vocabulary_map of this Emu3 lacks <\|extra_200\|>"),
        (lambda d: change(d, vocabulary_map=None), "holds no Emu3ForConditionalGeneration that can be read"),
        (lambda d: shift(d, 4), "goes up to 510, but it has 510 embeddings"),
        (lambda d: shift(d, 1), r"the tokenizer does not fit this Emu3: it does not know <\|extra_203\|> as 463"),
    ],
)
def test_damaged_checkpoints(copy, damage, message):
    damage(copy)
    with pytest.raises(ZipARError, match=message) as raised:
        auto.load(copy, device="cpu")
    assert "\n" not in str(raised.value)
