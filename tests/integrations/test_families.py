"""Emu3, Emu3.5 and Chameleon with ours underneath: against transformers' generation and the authors' code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    Emu3Processor,
    LogitsProcessorList,
    Qwen3ForCausalLM,
    TopKLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

import zipar
from zipar import Raster, Sampling, ZipAR, ZipARError
from zipar.decoding.engine import decode
from zipar.models.lumina_mgpt import Anole, LuminaMGPT

ROWS, COLUMNS = 3, 5
RECORDED = load_file(Path(__file__).parents[1] / "data" / "lumina_mgpt.safetensors")


@pytest.fixture(scope="module")
def processor(emu3_directories):
    return Emu3Processor.from_pretrained(emu3_directories(scrambled=False))


@pytest.fixture(scope="module")
def emu3(emu3_directories):
    return Emu3ForConditionalGeneration.from_pretrained(emu3_directories(scrambled=False))


@pytest.fixture(scope="module")
def chameleon(lumina_models):
    return ChameleonForConditionalGeneration.from_pretrained(lumina_models("7b") / "decoder")


def constraint(model, processor, height=ROWS, width=COLUMNS):
    """``prefix_allowed_tokens_fn`` as transformers documents it."""
    visual_tokens = model.model.vocabulary_mapping.image_tokens

    def prefix_allowed_tokens_fn(batch_id, input_ids):
        image_wrapper_token_id = torch.tensor([processor.tokenizer.image_wrapper_token_id])
        eoi_token_id = torch.tensor([processor.tokenizer.eoi_token_id])
        eos_token_id = torch.tensor([processor.tokenizer.eos_token_id])
        pad_token_id = torch.tensor([processor.tokenizer.pad_token_id])
        eof_token_id = torch.tensor([processor.tokenizer.eof_token_id])
        eol_token_id = torch.tensor(processor.tokenizer.convert_tokens_to_ids(["<|extra_200|>"]))
        position = torch.nonzero(input_ids == image_wrapper_token_id, as_tuple=True)[0][0]
        offset = input_ids.shape[0] - position
        if offset % (width + 1) == 0:
            return (eol_token_id,)
        if offset == (width + 1) * height + 1:
            return (eof_token_id,)
        if offset == (width + 1) * height + 2:
            return (eoi_token_id,)
        if offset == (width + 1) * height + 3:
            return (eos_token_id,)
        if offset > (width + 1) * height + 3:
            return (pad_token_id,)
        return visual_tokens

    return prefix_allowed_tokens_fn


@pytest.fixture(scope="module")
def documented(emu3, processor):
    """The documented call: two prompts of different lengths, a negative prompt without a size."""
    padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    size = {"return_for_image_generation": True, "ratio": f"{COLUMNS}:{ROWS}", "image_area": 64 * ROWS * COLUMNS}
    inputs = processor(text=["a red fox in the snow", "fox"], **padded, **size)
    assert torch.as_tensor(inputs["image_sizes"]).tolist() == [[ROWS, COLUMNS]] * 2
    negative = processor(text=["blurry", "ugly and blurry"], **padded)
    return {
        **inputs,
        "max_new_tokens": 50,
        "do_sample": False,
        "guidance_scale": 3.0,
        "prefix_allowed_tokens_fn": constraint(emu3, processor),
        "negative_prompt_ids": negative["input_ids"],
        "negative_prompt_attention_mask": negative["attention_mask"],
    }


def test_emu3_makes_its_own_images(emu3, documented):
    own = emu3.generate(**documented)
    with zipar.accelerate(emu3, Raster()):
        assert emu3.generate(**documented).equal(own)
        assert emu3.generate(**{**documented, "prefix_allowed_tokens_fn": None, "image_sizes": None}).equal(own)
    assert "generate" not in vars(emu3)
    assert emu3.generate(**documented, custom_generate=zipar.generate, strategy=Raster()).equal(own)
    assert len(own[:, documented["input_ids"].shape[1] :].unique()) > 10


@pytest.mark.parametrize(
    "others",
    [
        {"max_new_tokens": 9},
        {"do_sample": True, "top_k": 1},
        {"guidance_scale": 1.0},
        {"guidance_scale": None},
        {"negative_prompt_ids": None, "negative_prompt_attention_mask": None},
        {"negative_prompt_attention_mask": None},
    ],
    ids=str,
)
def test_arguments_mean_what_they_mean_to_emu3(emu3, documented, others):
    own = emu3.generate(**{**documented, **others})
    with zipar.accelerate(emu3, Raster()):
        assert emu3.generate(**{**documented, **others}).equal(own)


def test_images_of_one_prompt_of_emu3_lie_side_by_side(emu3, documented):
    """transformers itself cannot repeat negative prompts."""
    with zipar.accelerate(emu3, Raster()):
        single = emu3.generate(**documented)
        found = emu3.generate(**{**documented, "do_sample": True, "top_k": 1, "num_return_sequences": 2})
    assert found.equal(single.repeat_interleave(2, 0))


@pytest.mark.parametrize(
    "given",
    [UnbatchedClassifierFreeGuidanceLogitsProcessor(4.0, None), TopKLogitsWarper(7)],
    ids=lambda given: type(given).__name__,
)
def test_a_processor_that_says_otherwise_than_the_arguments_is_refused(emu3, documented, given):
    chosen = {"custom_generate": zipar.generate, "logits_processor": LogitsProcessorList([given])}
    with pytest.raises(ZipARError, match=rf"^logits_processor \({type(given).__name__}\)"):
        emu3.generate(**{**documented, **chosen})


def test_emu3_takes_fewer_passes_for_the_same_layout(emu3, documented, passes):
    own = emu3.generate(**documented)
    with zipar.accelerate(emu3, ZipAR(2)):
        found = emu3.generate(**documented)
    assert passes == [COLUMNS + (ROWS - 1) * 2]
    assert found.shape == own.shape
    assert not found.equal(own)
    visual = torch.tensor(emu3.model.vocabulary_mapping.image_tokens)
    for sequence in found, own:
        assert torch.isin(sequence, visual).sum() == 2 * ROWS * COLUMNS
    known = ~torch.isin(own, visual)
    assert found[known].equal(own[known])
    written = found[:, documented["input_ids"].shape[1] :]
    images = emu3.decode_image_tokens(image_tokens=written, height=ROWS, width=COLUMNS)
    assert len(images) == 2


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_p": 0.9, "guidance_scale": 1.5}], ids=str)
def test_text_of_emu3_is_left_as_it_is(emu3, processor, documented, settings):
    inputs = processor(text=["a red fox"], return_tensors="pt")

    def written():
        torch.manual_seed(4)
        return emu3.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, output_logits=True, **settings)

    own = written()
    with zipar.accelerate(emu3):
        emu3.generate(**documented)
        found = written()
    assert found.sequences.equal(own.sequences)
    assert torch.stack(found.logits).equal(torch.stack(own.logits))


@pytest.mark.parametrize(
    ("name", "value"), [("num_beams", 2), ("typical_p", 0.5), ("pixel_values", torch.zeros(2, 3, 6, 10))], ids=str
)
def test_what_emu3_cannot_honour_is_named(emu3, documented, name, value):
    with zipar.accelerate(emu3), pytest.raises(ZipARError, match=rf"^{name} \(.*cannot be honoured"):
        emu3.generate(**{**documented, "do_sample": name == "typical_p", name: value})


@pytest.mark.parametrize(("height", "width"), [(4, 5), (2, 5), (6, 2), (3, 11), (3, 4)])
def test_another_constraint_is_refused(emu3, processor, documented, height, width):
    other = constraint(emu3, processor, height, width)
    with zipar.accelerate(emu3), pytest.raises(ZipARError, match=r"prefix_allowed_tokens_fn .*3 x 5 tokens"):
        emu3.generate(**{**documented, "prefix_allowed_tokens_fn": other})


def test_a_constraint_that_leaves_out_visual_tokens_is_refused(emu3, documented):
    allowed = documented["prefix_allowed_tokens_fn"]
    some = lambda image, ids: found[1:] if len(found := allowed(image, ids)) > 1 else found  # noqa: E731
    with zipar.accelerate(emu3), pytest.raises(ZipARError, match=r"prefix_allowed_tokens_fn .* at token 0, or allows"):
        emu3.generate(**{**documented, "prefix_allowed_tokens_fn": some})


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"negative_prompt_ids": torch.ones(1, 3, dtype=torch.int64)}, r"negative_prompt_ids of shape \(1, 3\)"),
        ({"negative_prompt_ids": torch.ones(2, 3, dtype=torch.int64)}, "negative_prompt_attention_mask of shape"),
        ({"negative_prompt_ids": None}, "negative_prompt_attention_mask of shape"),
    ],
    ids=str,
)
def test_negative_prompts_must_fit(emu3, documented, others, message):
    with zipar.accelerate(emu3), pytest.raises(ZipARError, match=message):
        emu3.generate(**{**documented, **others})


def test_padding_after_tokens_is_refused(emu3, documented):
    mask = documented["negative_prompt_attention_mask"].flip(1)
    with zipar.accelerate(emu3), pytest.raises(ZipARError, match="pad on the left"):
        emu3.generate(**{**documented, "negative_prompt_attention_mask": mask})
    right = {name: documented[name].clone() for name in ("input_ids", "attention_mask")}
    right["input_ids"][1] = right["input_ids"][1].roll(1)
    with zipar.accelerate(emu3), pytest.raises(ZipARError, match="should all end with one size"):
        emu3.generate(**{**documented, **right})


def test_a_prompt_padded_behind_its_image_is_no_text(emu3, chameleon, documented, lumina_recipe):
    prompts = {emu3: documented["input_ids"], chameleon: lumina_inputs(lumina_recipe)["input_ids"]}
    for model, ids in prompts.items():
        padded = torch.nn.functional.pad(ids, (0, 2), value=model.generation_config.pad_token_id or 0)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 2))
        with zipar.accelerate(model), pytest.raises(ZipARError, match="pad on the left"):
            model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=3)


@pytest.mark.parametrize("negative", [True, False])
def test_emu35_makes_the_images_of_a_constrained_qwen3(emu35_directory, emu35_recipe, passes, negative):
    """What transformers' own guidance writes where nothing but an image is allowed, row ends and all."""
    model, ids = Qwen3ForCausalLM.from_pretrained(emu35_directory / "decoder"), emu35_recipe.IDS
    header = [ids["BOI"], 15 + ROWS, 9, 15 + COLUMNS, ids["IMG"]]
    prompts = torch.tensor([[ids["BOS"], 64, 65, *header], [ids["BOS"], 66, 67, *header]])
    visual = [*range(emu35_recipe.FIRST, model.config.vocab_size)]

    def allowed(_, written):
        row, column = divmod(len(written) - prompts.shape[1], COLUMNS + 1)
        return visual if column < COLUMNS else [ids["EOL" if row < ROWS - 1 else "EOI"]]

    asked = {"guidance_scale": 3.0, "max_new_tokens": ROWS * (COLUMNS + 1), "do_sample": False}
    if negative:
        asked["negative_prompt_ids"] = torch.tensor([[ids["BOS"], *header]] * 2)
    own = model.generate(prompts, prefix_allowed_tokens_fn=allowed, **asked)
    with zipar.accelerate(model, Raster()):
        assert model.generate(prompts, **asked).equal(own)
    with zipar.accelerate(model, ZipAR(2)):
        found = model.generate(prompts, **asked)
    assert found.shape == own.shape
    assert (
        found[:, COLUMNS + prompts.shape[1] :: COLUMNS + 1] == own[:, COLUMNS + prompts.shape[1] :: COLUMNS + 1]
    ).all()
    assert passes == [ROWS * COLUMNS, COLUMNS + 2 * (ROWS - 1)]


def test_prompts_of_emu35_should_all_end_with_one_size(emu35_directory):
    model = Qwen3ForCausalLM.from_pretrained(emu35_directory / "decoder")
    for prompts in (
        [[5, 528]],
        [[529, 18, 9, 20, 528], [529, 18, 9, 21, 528]],
        [[529, 18, 9, 20, 528], [5, 6, 7, 8, 9]],
    ):
        with zipar.accelerate(model), pytest.raises(ZipARError, match="should all end with one size of an image"):
            model.generate(torch.tensor(prompts))


def lumina_inputs(recipe):
    return {"input_ids": torch.tensor([[*recipe.PROMPT, 8197, 8806, 8807]]), "do_sample": False}


def test_lumina_mgpt_writes_what_the_authors_code_writes(chameleon, lumina_recipe, passes):
    inputs = lumina_inputs(lumina_recipe)
    with zipar.accelerate(chameleon, Raster()):
        found = chameleon.generate(**inputs, guidance_scale=lumina_recipe.GUIDANCE)
    assert found[0].equal(RECORDED["7b.ids"].long())
    assert "generate" not in vars(chameleon)
    chosen = {"custom_generate": zipar.generate, "strategy": ZipAR(2), "guidance_scale": lumina_recipe.GUIDANCE}
    assert chameleon.generate(**inputs, **chosen).shape == found.shape
    assert passes == [24, 6 + 3 * 2]


def test_lumina_mgpt_2_writes_what_the_authors_code_writes(lumina2_directory, lumina2_recipe):
    recorded = load_file(Path(__file__).parents[1] / "data" / "lumina_mgpt2.safetensors")["ids"].long()
    model = ChameleonForConditionalGeneration.from_pretrained(lumina2_directory / "decoder")
    inputs = {"input_ids": recorded[None, : len(lumina2_recipe.PROMPT) + 3], "do_sample": False}
    with zipar.accelerate(model, Raster()):
        found = model.generate(**inputs, guidance_scale=lumina2_recipe.GUIDANCE)
    assert found[0].equal(recorded)


def test_a_negative_prompt_of_chameleon_is_the_unconditional_branch(chameleon, lumina_recipe):
    inputs, own = lumina_inputs(lumina_recipe), [8197, 8806, 8807]
    with zipar.accelerate(chameleon, Raster()):
        plain, same, other = (
            chameleon.generate(**inputs, guidance_scale=4.0, negative_prompt_ids=ids)
            for ids in (None, torch.tensor([own]), torch.tensor([[0, 8903, 8710, *own]]))
        )
        with pytest.raises(ZipARError, match="prefix_allowed_tokens_fn"):
            chameleon.generate(**inputs, prefix_allowed_tokens_fn=lambda *_: [1])
    assert plain.equal(same)
    assert not plain.equal(other)


@pytest.mark.parametrize(("kind", "size"), [(LuminaMGPT, (64, 96)), (Anole, (512, 512))])
def test_chameleons_write_what_zipar_decodes(chameleon, kind, size):
    """Two prompts of different lengths, sampled."""
    model = kind(chameleon, image_size=96 if kind is LuminaMGPT else 512)
    grid, sampling, strategy = model.grid(*size), Sampling(3.0, 0.8, top_k=50), ZipAR(4)
    header = model.header(grid)
    ids = torch.tensor([[0, 8913, 8914, 8915, 8710, *header], [1, 1, 0, 8918, 8710, *header]])
    mask = (ids != 1).long()
    negative = torch.tensor([model.unconditional(grid)] * 2)
    pad = ids.shape[1] - negative.shape[1], 0
    everything = torch.cat([ids, torch.nn.functional.pad(negative, pad)])
    valid = torch.cat([mask, torch.nn.functional.pad(torch.ones_like(negative), pad)])
    with torch.inference_mode():
        prefix = model.prompt(everything, valid)
    torch.manual_seed(5)
    seeds = torch.randint(2**63 - 1, (2,)).tolist()
    expected = model.written(decode(model, prefix, grid, strategy, sampling, seeds).tokens, grid)
    with zipar.accelerate(chameleon, strategy):
        torch.manual_seed(5)
        found = chameleon.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=0.8, guidance_scale=3.0
        )
    assert found[:, : ids.shape[1]].equal(ids)
    assert found[:, ids.shape[1] :].equal(expected[:, len(header) : -1])  # all but the end of the turn


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_p": 0.9, "guidance_scale": 1.5}], ids=str)
def test_text_of_chameleon_is_left_as_it_is(chameleon, lumina_recipe, settings):
    def written():
        torch.manual_seed(4)
        shown = {"return_dict_in_generate": True, "output_logits": True}
        return chameleon.generate(torch.tensor([lumina_recipe.PROMPT]), max_new_tokens=8, **shown, **settings)

    own = written()
    with zipar.accelerate(chameleon):
        chameleon.generate(**lumina_inputs(lumina_recipe))
        found = written()
    assert found.sequences.equal(own.sequences)
    assert torch.stack(found.logits).equal(torch.stack(own.logits))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([[8197, 8806, 8807], [8914, 8915, 8916]], r"should all end with begin-of-image \(<racm3:break>\)"),
        ([[8197, 8806, 8807], [8914, 8915, 8197]], r"should all end with begin-of-image \(<racm3:break>\)"),
        ([[8197, 8806, 8807], [8197, 8807, 8806]], "should all end with one size"),
    ],
)
def test_prompts_of_chameleon_must_agree(chameleon, ends, message):
    with zipar.accelerate(chameleon), pytest.raises(ZipARError, match=message):
        chameleon.generate(torch.tensor([[0, *end] for end in ends]))
