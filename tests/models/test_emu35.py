"""Emu3.5 against its authors' code (see tests/data/emu35.py), generate of transformers, and a brute-force decoder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LogitsProcessor, LogitsProcessorList, Qwen3Config, Qwen3ForCausalLM

import zipar
from zipar import AdaptiveZipAR, CoupledJacobi, Raster, Sampling, ZipAR, ZipARError
from zipar.decoding.attention import additive
from zipar.decoding.engine import decode
from zipar.decoding.sampling import Draw, gumbel, sample
from zipar.image_tokenizers.chameleon import ChameleonImageDecoder
from zipar.image_tokenizers.vq import AttnBlock, VQConfig
from zipar.models import auto
from zipar.models.emu35 import GENERAL, IMAGE, PUBLISHED, SIZES, Emu35

RECORDED = load_file(Path(__file__).parents[1] / "data" / "emu35.safetensors")
ROWS, COLUMNS = 4, 6
SEEDS = [3, 2**80 + 5]


@pytest.fixture(scope="module")
def model(emu35_directory):
    return auto.load(emu35_directory, torch.float32, "cpu")


@pytest.fixture(scope="module")
def grid(model):
    return model.grid(16 * ROWS, 16 * COLUMNS)


@pytest.fixture(scope="module")
def prompts(emu35_recipe):
    """Of different lengths; one has all kinds of letters in it, and the name of a visual token."""
    return emu35_recipe.PROMPTS[:2]


def header(recipe):
    return [recipe.IDS["BOI"], 15 + ROWS, 9, 15 + COLUMNS, recipe.IDS["IMG"]]


def test_logits_are_those_of_the_authors(model, emu35_recipe):
    ids = RECORDED["ids"]
    visual = (ids >= emu35_recipe.FIRST).nonzero().flatten()[-ROWS * COLUMNS :]
    with torch.inference_mode():
        hidden = model.decoder(input_ids=ids[None, :-1]).last_hidden_state
        logits = model.logits(hidden)[0, visual - 1]
    torch.testing.assert_close(logits, RECORDED["logits"], atol=1e-4, rtol=0)
    assert logits.std() > 0.5


def test_greedy_raster_decoding_gives_the_tokens_of_the_authors(model, grid, prompts, emu35_recipe):
    """Their prompts, their guidance, their constraints: an image that is not square, with its header and row ends."""
    with torch.inference_mode():
        prefix = model.prefix(prompts[:1], None, True, grid)
    sampling = Sampling(guidance_scale=emu35_recipe.GUIDANCE, temperature=0)
    for strategy in (Raster(), ZipAR(COLUMNS), CoupledJacobi(7)):
        decoded = decode(model, prefix, grid, strategy, sampling, [0])
        ids = [*RECORDED["prompt.0"].tolist(), *header(emu35_recipe), *model.written(decoded.tokens)[0].tolist()]
        assert ids == RECORDED["ids"].tolist()
        assert model.codes(grid.pick(decoded.tokens))[0].equal(RECORDED["codes"])
    assert len(RECORDED["codes"].unique()) > 5


@torch.inference_mode()
def test_guided_logits_are_the_authors_scores_up_to_a_constant_for_each_token(model, emu35_recipe):
    """They mix log-softmaxes over the whole vocabulary, rule out what is not visual, and then keep the top k."""
    start = len(RECORDED["prompt.0"])
    visual = (RECORDED["ids"] >= emu35_recipe.FIRST).nonzero().flatten()[-ROWS * COLUMNS :]
    both = []
    for prompt in RECORDED["prompt.0"], RECORDED["unconditional"]:
        ids = torch.cat([prompt, RECORDED["ids"][start:-1]])[None]
        both.append(model.logits(model.decoder(input_ids=ids).last_hidden_state)[0, visual - 1 - start + len(prompt)])
    conditional, unconditional = (logits[list(emu35_recipe.SCORED)] for logits in both)
    guided = unconditional + emu35_recipe.GUIDANCE * (conditional - unconditional)
    kept = RECORDED["scores"].isfinite()
    assert kept.sum(1).tolist() == [emu35_recipe.TOP_K] * len(emu35_recipe.SCORED)
    for ours, theirs, finite in zip(guided, RECORDED["scores"], kept, strict=True):
        assert set(ours.topk(emu35_recipe.TOP_K).indices.tolist()) == set(finite.nonzero().flatten().tolist())
        difference = (ours - theirs)[finite]
        torch.testing.assert_close(difference, difference.mean().expand_as(difference), atol=1e-4, rtol=0)


def test_mixed_log_softmaxes_are_mixed_logits_but_for_a_constant():
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 5, 300, dtype=torch.float64, generator=generator)
    for scale in (2.0, 3.0, 5.0):
        mixed = unconditional + scale * (conditional - unconditional)
        logs = [logits.log_softmax(-1) for logits in (conditional, unconditional)]
        theirs = scale * (logs[0] - logs[1]) + logs[1]
        difference = mixed - theirs
        torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-12, rtol=0)
        some = slice(200, 300)  # and then draws from visual tokens alone are the same
        torch.testing.assert_close(mixed[:, some].softmax(-1), theirs[:, some].softmax(-1), atol=1e-12, rtol=0)


@torch.inference_mode()
def test_pixels_are_those_of_the_authors(model):
    codes = RECORDED["codes"][None]
    pixels = model.image_tokenizer.decode(codes)[:, :, ::3, ::5]
    torch.testing.assert_close(pixels, RECORDED["pixels"], atol=1e-4, rtol=1e-5)
    found = model.pixels(codes.repeat(2, 1, 1))
    assert found.dtype == torch.uint8
    assert found[0].equal(found[1])
    assert (found[0].int() - RECORDED["image"].int()).abs().max() <= 1
    assert (found[0] == RECORDED["image"]).float().mean() > 0.99  # they cut, and do not round
    assert found.float().std() > 20


def test_the_published_image_decoder_has_attention_at_its_lowest_resolution_too():
    with torch.device("meta"):
        decoder = ChameleonImageDecoder(PUBLISHED, attention=True)
    places = [name for name, module in decoder.named_modules() if isinstance(module, AttnBlock)]
    assert places == ["decoder.mid.attn_1", *(f"decoder.up.4.attn.{i}" for i in range(5))]


@torch.inference_mode()
def test_prefixes_are_those_of_the_authors(model, grid, prompts, emu35_recipe):
    embed = model.model.get_input_embeddings()
    rows = [RECORDED[f"prompt.{i}"].tolist() + header(emu35_recipe) for i in range(2)]
    rows += [RECORDED["unconditional"].tolist() + header(emu35_recipe)] * 2
    prefix = model.prefix(prompts, None, True, grid)
    assert prefix.valid.sum(1).tolist() == [len(row) for row in rows]
    for row, embedded, valid in zip(rows, prefix.embeddings, prefix.valid, strict=True):
        assert embedded[valid].equal(embed(torch.tensor(row)))
    assert len(model.prefix(prompts, None, False, grid).valid) == 2
    empty = model.prefix([""], [""], True, grid)  # a negative prompt takes the place of the empty one
    assert empty.embeddings[1][empty.valid[1]].equal(prefix.embeddings[2][prefix.valid[2]])
    written = torch.tensor([*RECORDED["prompt.2"].tolist(), *header(emu35_recipe)])
    assert empty.embeddings[0][empty.valid[0]].equal(embed(written))
    with pytest.raises(ZipARError, match="negative prompt does nothing"):
        model.prefix(prompts, prompts, False, grid)


class Authors(LogitsProcessor):
    """Their rules for one image, written anew: a row an image, with seeded noise so that greedy decoding samples."""

    def __init__(self, network, unconditional, start, sampling, seeds, recipe):
        self.network, self.unconditional, self.start = network, unconditional, start
        self.sampling, self.seeds, self.recipe = sampling, seeds, recipe

    def __call__(self, input_ids, scores):
        first, place = self.recipe.FIRST, input_ids.shape[1] - self.start
        row, column = divmod(place, COLUMNS + 1)
        ruled = torch.full_like(scores, -torch.inf)
        if column == COLUMNS:
            ruled[:, self.recipe.IDS["EOI" if row == ROWS - 1 else "EOL"]] = 0
            return ruled
        written = torch.cat([self.unconditional, input_ids[:, self.start - len(header(self.recipe)) :]], 1)
        logs = [logits.log_softmax(-1) for logits in (scores, self.network(written).logits[:, -1])]
        mixed = self.sampling.guidance_scale * (logs[0] - logs[1]) + logs[1]
        visual = mixed[:, first:] / self.sampling.temperature
        visual[visual < visual.topk(self.sampling.top_k).values[:, -1:]] = -torch.inf
        noise = gumbel(torch.tensor(self.seeds), torch.full((len(self.seeds), 1), place), visual.shape[1])[:, 0]
        ruled[:, first:] = visual + noise
        return ruled


@torch.inference_mode()
def test_sampled_equals_generate_of_transformers_under_the_authors_rules(model, grid, prompts, emu35_recipe):
    """Forced header, guidance, visual tokens alone, then temperature and top-k."""
    sampling = Sampling(guidance_scale=2.0, temperature=1.5, top_k=12)
    found = decode(model, model.prefix(prompts, None, True, grid), grid, Raster(), sampling, SEEDS[:1] * 2)
    for image in range(2):
        ids = torch.tensor([RECORDED[f"prompt.{image}"].tolist() + header(emu35_recipe)])
        rules = Authors(model.model, RECORDED["unconditional"][None], ids.shape[1], sampling, SEEDS[:1], emu35_recipe)
        written = model.model.generate(
            ids,
            do_sample=False,
            max_new_tokens=grid.slots,
            logits_processor=LogitsProcessorList([rules]),
            eos_token_id=None,
        )
        assert model.written(found.tokens[image : image + 1])[0].tolist() == written[0, ids.shape[1] :].tolist()


def brute_force(model, prefixes, grid, sampling, seed, window):
    """Decode one image by the rules of the paper, with no cache and no plan; returns tokens by slot, and passes.

    Every token ever fed is an event (slot, token, pass), and each pass computes all events anew, with transformers'
    own attention: an event sees the prefix and, for each slot up to its own, the newest event so far.
    """
    free = grid.free()[0].tolist()
    place = {slot: (r, c) for r, row in enumerate(free) for c, slot in enumerate(row)}
    tokens = {slot: token for slot, token in enumerate(grid.blank().tolist()) if slot not in place}
    events, settled, passes = [], set(), 0
    visual = model.model.config.eoi_token_id + 1
    ids = [*range(visual, model.model.config.vocab_size), model.model.config.eol_token_id]

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
        slots = torch.tensor([slot for slot, _, _ in events], dtype=torch.int64)
        fed = torch.tensor([ids[token] for _, token, _ in events], dtype=torch.int64)
        hidden = torch.cat([embeddings, model.model.get_input_embeddings()(fed)])[None]
        positions = torch.cat([torch.arange(prefix), prefix + slots])[None]
        mask = additive(sees[None], hidden.dtype)
        output = model.model.model(inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False)
        return model.model.lm_head(output.last_hidden_state)[0, :, visual:]

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


@pytest.mark.parametrize(
    ("strategy", "window"), [(ZipAR(1), 1), (ZipAR(2), 2), (ZipAR(4, first_row="wave"), 4)], ids=str
)
@torch.inference_mode()
def test_equals_the_brute_force_decoder(model, grid, prompts, strategy, window):
    """Two prompts in a batch, left-padded, against each alone, unpadded and uncached."""
    sampling = Sampling(guidance_scale=2.5, top_k=40)
    prefix = model.prefix(prompts, None, True, grid)
    decoded = decode(model, prefix, grid, strategy, sampling, SEEDS)
    for image, seed in enumerate(SEEDS):
        prefixes = [prefix.embeddings[row][prefix.valid[row]] for row in (image, image + 2)]
        expected = brute_force(model, prefixes, grid, sampling, seed, window)
        assert (decoded.tokens[image].tolist(), decoded.forward_passes) == expected


class TestSizes:
    def test_are_those_of_the_authors(self, model):
        published = Emu35(model.model)
        assert published.image_size == (16 * 55, 16 * 73)
        assert sorted(published.sizes) == sorted({tuple(size) for size in RECORDED["sizes"].tolist()})
        assert RECORDED["sizes"][-1].tolist() == [55, 73]  # their default
        for rows, columns in SIZES:
            grid = published.grid(16 * rows, 16 * columns)
            assert (grid.rows, grid.columns, grid.slots) == (rows, columns, rows * (columns + 1))

    def test_others_are_refused_with_the_list(self, model):
        for height, width in [(1024, 1040), (512, 512), (55, 73), (16 * 97, 16 * 41)]:
            with pytest.raises(
                ZipARError, match=rf"no images of {height}x{width} .* 880x1168, 656x1552, .*, 1248x832$"
            ):
                Emu35(model.model).grid(height, width)

    def test_rows_end_and_the_last_one_ends_the_image(self, model, grid, emu35_recipe):
        ids = model.written(grid.blank()[None])[0].view(ROWS, COLUMNS + 1)[:, -1]
        assert ids.tolist() == [emu35_recipe.IDS["EOL"]] * (ROWS - 1) + [emu35_recipe.IDS["EOI"]]

    def test_are_said_in_the_prompt(self, model, emu35_recipe):
        assert model.header(model.grid_of_tokens(64, 97))[1:-1] == [21, 19, 9, 24, 22]  # as published: 6, 4, *, 9, 7
        prompts = torch.tensor([[7, *header(emu35_recipe)], [8, *header(emu35_recipe)]])
        assert model.grid_of(prompts) == model.grid_of_tokens(ROWS, COLUMNS)
        for wrong in (prompts[:, :-1], prompts.flip(1), torch.tensor([[emu35_recipe.IDS["BOI"], 15, 9, 16, 17]])):
            with pytest.raises(ZipARError, match="should all end with one size of an image"):
                model.grid_of(wrong)


def test_published_ids():
    """They follow from 151,643 ranked words, 208 named ones and those of the vision vocabulary."""
    config = Qwen3Config(
        vocab_size=282926,
        img_token_id=151851,
        boi_token_id=151852,
        eoi_token_id=151853,
        eol_token_id=151846,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    with torch.device("meta"):
        model = Emu35(Qwen3ForCausalLM(config))
    assert (model.first, model.codebook_size) == (151854, 131072)
    assert model.head_rows == slice(151854, 282926)


class TestPipeline:
    def test_defaults_are_the_authors(self, model):
        assert model.defaults == IMAGE == Sampling(guidance_scale=5.0, temperature=1.0, top_k=5120, top_p=1.0)
        assert (IMAGE.guidance_scale, IMAGE.top_k) == (RECORDED["guidance"].item(), RECORDED["top_k"].item())
        assert Sampling(guidance_scale=2.0, top_k=5120) == GENERAL

    @pytest.mark.parametrize(
        ("strategy", "passes"),
        [(Raster(), 24), (ZipAR(1), 9), (ZipAR(2), 12), (ZipAR(6), 24), (AdaptiveZipAR(2), None)],
    )
    def test_known_tokens_cost_no_pass(self, model, prompts, strategy, passes):
        output = zipar.pipeline(model)(prompts, strategy=strategy)
        if passes is not None:
            assert output.stats.forward_passes == strategy.passes(model.grid(64, 96)) == passes
        assert [image.size for image in output.images] == [(96, 64)] * 2
        assert output.tokens.shape == (2, ROWS, COLUMNS)
        assert output.tokens.max() < 64

    def test_another_size(self, model):
        output = zipar.pipeline(model)("cab", height=96, width=64)
        assert output.images[0].size == (64, 96)
        with pytest.raises(ZipARError, match=r"no images of 96x96 pixels .*: use one of 64x96, 96x64, 48x80"):
            zipar.pipeline(model)("cab", height=96, width=96)

    def test_an_image_is_the_same_alone_and_in_a_batch(self, model, prompts):
        pipe = zipar.pipeline(model)
        together = pipe(prompts, num_images_per_prompt=2, seed=[5, 6, 7, 8], strategy=ZipAR(2))
        assert len({image.tobytes() for image in together.images}) == 4
        for image, seed in enumerate([5, 6, 7, 8]):
            alone = pipe(prompts[image // 2], seed=seed, strategy=ZipAR(2))
            assert (alone.tokens[0] == together.tokens[image]).all()

    def test_a_negative_prompt_changes_the_image(self, model):
        pipe = zipar.pipeline(model)
        plain, other = pipe("cab", strategy=ZipAR(2)), pipe("cab", negative_prompt="bcc", strategy=ZipAR(2))
        assert (plain.tokens != other.tokens).any()


class TestOfALoadedModel:
    def test_the_rest_comes_from_the_directory(self, model, emu35_directory):
        own = Qwen3ForCausalLM.from_pretrained(emu35_directory / "decoder", dtype=torch.bfloat16)
        held = Emu35.around(own, emu35_directory)
        assert held.model is own
        assert next(held.image_tokenizer.parameters()).dtype == torch.float32
        assert zipar.pipeline(held)("cab", strategy=ZipAR(2)).images[0].size == (96, 64)
        again = Emu35.around(Qwen3ForCausalLM.from_pretrained(emu35_directory / "decoder"), str(emu35_directory))
        calls = [zipar.pipeline(each)("cab", strategy=ZipAR(2)) for each in (again, model)]
        assert calls[0].tokens.tolist() == calls[1].tokens.tolist()

    def test_layers_embeddings_and_head_on_disk(self, model, emu35_directory, tmp_path):
        pytest.importorskip("accelerate")
        places = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk", "lm_head": "disk"}
        places |= {"model.norm": "cpu", "model.rotary_emb": "cpu"}
        own = Qwen3ForCausalLM.from_pretrained(emu35_directory / "decoder", device_map=places, offload_folder=tmp_path)
        held = Emu35.around(own, emu35_directory)
        found, expected = (zipar.pipeline(each)("cab", strategy=ZipAR(2)) for each in (held, model))
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.images[0].tobytes() == expected.images[0].tobytes()

    def test_quantised_by_bitsandbytes(self, emu35_directory):
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        check_quantised(emu35_directory, asked)

    def test_quantised_by_torchao(self, emu35_directory):
        quantization = pytest.importorskip("torchao.quantization")
        from transformers import TorchAoConfig

        check_quantised(emu35_directory, TorchAoConfig(quantization.Int8WeightOnlyConfig()))

    def test_tokens_can_be_decoded_but_neither_prompts_read_nor_pixels_made(self, model, grid, emu35_recipe):
        bare = Emu35(model.model, sizes=[(ROWS, COLUMNS)])
        with torch.inference_mode():
            prefix = bare.prompt(torch.tensor([[7, *header(emu35_recipe)]]), torch.ones(1, 6))
        assert decode(bare, prefix, grid, ZipAR(2), Sampling(), [0]).tokens.shape == (1, 28)
        with pytest.raises(ZipARError, match="Emu35 was made without a tokenizer"):
            bare.prefix(["cab"], None, False, grid)
        with pytest.raises(ZipARError, match="Emu35 was made without an image decoder"):
            bare.pixels(torch.zeros(1, ROWS, COLUMNS, dtype=torch.int64))

    def test_another_qwen3_is_none(self, model):
        config = Qwen3Config(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
        )
        other = Qwen3ForCausalLM(config)
        with pytest.raises(ZipARError, match=r"Qwen3ForCausalLM is no Emu3\.5, .* lacks some of img_token_id"):
            Emu35(other)
        with pytest.raises(ZipARError, match="Qwen3ForCausalLM is no model of transformers whose images"):
            zipar.accelerate(other)

    def test_another_image_decoder_is_refused(self, model):
        for config, message in [
            (VQConfig(32, 256, 32, (1, 1, 1, 1, 2), 1, 8), "image decoder knows 32 codes, the vocabulary 64"),
            (VQConfig(64, 256, 32, (1, 1, 2), 1, 8), "makes 4 pixels of a token's side: Emu35 needs 16"),
        ]:
            with pytest.raises(ZipARError, match=message):
                Emu35(model.model, None, ChameleonImageDecoder(config, attention=True))


def check_quantised(directory, asked):
    """A decoder that transformers quantised paints by every way of decoding, and Jacobi gives raster's tokens."""
    own = Qwen3ForCausalLM.from_pretrained(
        directory / "decoder", quantization_config=asked, dtype=torch.float32, device_map="cpu"
    )
    layer = own.model.layers[0].mlp.up_proj
    assert type(layer) is not torch.nn.Linear or type(layer.weight) is not torch.nn.Parameter
    pipe = zipar.pipeline(Emu35.around(own, directory))
    fast, raster, jacobi = (
        pipe(["a cab", "bcc"], strategy=strategy, seed=[1, 2]) for strategy in (ZipAR(2), Raster(), CoupledJacobi(7))
    )
    assert fast.stats.forward_passes == 12
    assert jacobi.tokens.tolist() == raster.tokens.tolist()
    with torch.inference_mode():
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = own(ids).logits[:, -1, pipe.model.head_rows]
        prefix = pipe.model.prompt(ids, torch.ones_like(ids))
        grid = pipe.model.grid(64, 96)
        found = decode(pipe.model, prefix, grid, Raster(), Sampling(temperature=0), [0])
    assert found.tokens[0, 0] == expected.argmax()


class TestLoading:
    @pytest.fixture
    def copy(self, emu35_directory, tmp_path):
        return Path(shutil.copytree(emu35_directory, tmp_path / "copy"))

    def test_the_outline_needs_no_weights(self, copy):
        for path in copy.rglob("*.safetensors"):
            path.unlink()
        outline = auto.outline(copy)
        assert outline.grid(64, 96).tokens == 24
        assert outline.device.type == "meta"
        assert outline.defaults == IMAGE

    @pytest.mark.parametrize("name", ["tokenizer.json", "image_tokenizer.safetensors", "decoder"])
    def test_files_that_are_missing(self, copy, name):
        if (copy / name).is_dir():
            shutil.rmtree(copy / name)
        else:
            (copy / name).unlink()
        with pytest.raises(ZipARError, match=name):
            auto.load(copy, device="cpu")

    @pytest.mark.parametrize(
        "change", [{"sizes": None}, {"sizes": [[4]]}, {"sizes": []}, {"sampling": {}}, {"image_tokenizer": {"a": 1}}]
    )
    def test_a_config_that_is_wrong(self, copy, change):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        if change == {"sampling": {}}:
            assert auto.load(copy, device="cpu").defaults == Sampling()
            return
        with pytest.raises(ZipARError):
            auto.load(copy, device="cpu")
