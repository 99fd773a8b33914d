import dataclasses
import json
import re
import warnings

import pytest
import torch

import zipar
from zipar.conversion.llamagen import write
from zipar.models.auto import outline
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, RMSNorm, Transformer, rotary_2d, rotate_

PROMPTS = ["a red fox in the snow", "apple"]


@pytest.mark.parametrize(
    ("layers", "heads", "dim", "condition", "parameters"),
    [
        (12, 12, 768, {"classes": 1000}, 110_888_448),
        (24, 16, 1024, {"classes": 1000}, 342_910_976),
        (36, 20, 1280, {"classes": 1000}, 774_699_520),
        (48, 24, 1536, {"classes": 1000}, 1_410_972_672),
        (24, 32, 3200, {"classes": 1000}, 3_096_659_200),
        (36, 20, 1280, {"caption_dim": 2048, "prefix_length": 120}, 777_923_840),
    ],
    ids=["B", "L", "XL", "XXL", "3B", "XL for text"],
)
def test_published_sizes_have_the_parameters_of_the_authors_models(layers, heads, dim, condition, parameters):
    with torch.device("meta"):
        decoder = Transformer(LlamaGenConfig(layers, heads, dim, **condition))
    assert sum(weight.numel() for weight in decoder.parameters()) == parameters


def test_the_unconditional_branch_of_classes_is_the_embedding_of_no_class(tiny_models):
    table = tiny_models.by_class.decoder.cls_embedding.embedding_table.weight
    prefix = tiny_models.by_class.prefix(["3", "7"], None, guided=True)
    assert torch.equal(prefix.embeddings[:, 0], table[[3, 7, 10, 10]])
    assert prefix.valid.shape == (4, 1)
    assert prefix.valid.all()
    assert torch.equal(tiny_models.by_class.prefix(["3"], None, guided=False).embeddings[:, 0], table[[3]])


def moved_to_the_right(model, prompts):
    """Features and mask as the authors make them: padded on the right for T5, then valid tokens moved to the end."""
    ids = model.text_tokenizer(prompts)["input_ids"]
    length = model.decoder.config.prefix_length
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    features = model.text_encoder(input_ids=padded, attention_mask=mask).last_hidden_state
    moved = [torch.cat([row[len(words) :], row[: len(words)]]) for row, words in zip(features, ids, strict=True)]
    return torch.stack(moved), mask.flip(-1).bool()


def test_padding_on_the_left_gives_the_features_that_the_authors_move_there(tiny_models):
    model = tiny_models.by_text
    features, valid = moved_to_the_right(model, PROMPTS)
    prefix = model.prefix(PROMPTS, None, guided=False)
    length = prefix.valid.shape[1]
    assert length == 7  # as long as the longest prompt, not as the longest possible
    assert torch.equal(prefix.valid, valid[:, -length:])
    wanted = model.decoder.cls_embedding.cap_proj(features)[:, -length:]
    torch.testing.assert_close(prefix.embeddings[prefix.valid], wanted[prefix.valid])


def test_the_unconditional_branch_of_text_is_the_end_of_the_learned_features_under_the_same_mask(tiny_models):
    model = tiny_models.by_text
    prefix = model.prefix(PROMPTS, None, guided=True)
    conditional, unconditional = prefix.valid.chunk(2)
    assert torch.equal(conditional, unconditional)
    embedder = model.decoder.cls_embedding
    learned = embedder.cap_proj(embedder.uncond_embedding)[-7:].expand(2, -1, -1)
    torch.testing.assert_close(prefix.embeddings[2:], learned)


@pytest.mark.parametrize(("kind", "prompts", "negative"), [("by_class", ["3"], ["7"]), ("by_text", ["a fox"], ["x"])])
def test_a_negative_prompt_is_encoded_as_a_prompt_and_takes_the_unconditional_branch(
    tiny_models, kind, prompts, negative
):
    model = getattr(tiny_models, kind)
    prefix = model.prefix(prompts, negative, guided=True)
    for row, prompt in enumerate([prompts, negative]):
        alone = model.prefix(prompt, None, guided=False)
        torch.testing.assert_close(prefix.embeddings[row][prefix.valid[row]], alone.embeddings[0])


def test_a_prompt_longer_than_the_prefix_is_cut_before_its_end_of_sentence_and_warned_about(tiny_models):
    model = tiny_models.by_text
    long = "one two three four five six seven eight nine"
    with pytest.warns(UserWarning, match=re.escape(f"first 8 tokens of 10 count in the prompt {long!r}")):
        cut = model.prefix([long], None, guided=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = model.prefix([" ".join(long.split()[:7])], None, guided=False)
    assert torch.equal(cut.embeddings, fits.embeddings)


def test_case_and_spaces_of_a_prompt_do_not_matter(tiny_models):
    one, other = (tiny_models.by_text.prefix([p], None, guided=False) for p in ("a red fox", " A  Red fox\n"))
    assert torch.equal(one.embeddings, other.embeddings)


def test_an_image_size_that_it_was_not_trained_on_is_an_error(tiny_models):
    assert tiny_models.by_class.grid(6, 6).tokens == 36
    with pytest.raises(zipar.ZipARError, match=r"12x6.*trained on 6x6"):
        tiny_models.by_class.grid(12, 6)


def test_a_text_encoder_belongs_to_text_conditional_models_alone(tiny_models):
    by_class, by_text = tiny_models.by_class, tiny_models.by_text
    with pytest.raises(zipar.ZipARError, match="text encoder"):
        LlamaGen(by_text.decoder, by_text.image_tokenizer)
    with pytest.raises(zipar.ZipARError, match="text encoder"):
        LlamaGen(by_class.decoder, by_class.image_tokenizer, by_text.text_encoder, by_text.text_tokenizer)


def test_rotations_turn_half_of_the_pairs_with_the_row_and_half_with_the_column():
    side, head_dim, base = 3, 8, 100.0
    rotary = rotary_2d(side, head_dim, base)
    x = torch.randn(1, side * side, 1, head_dim)
    turned = x.clone()
    rotate_(turned, rotary[None, :, None])
    half = x.bfloat16()
    rotate_(half, rotary[None, :, None])
    torch.testing.assert_close(half.float(), turned, atol=0.05, rtol=0.02)
    for slot in range(side * side):
        for pair in range(head_dim // 2):
            position = slot // side if pair < 2 else slot % side
            angle = torch.tensor(position * base ** (-(pair % 2) / 2))
            a, b = x[0, slot, 0, 2 * pair : 2 * pair + 2]
            wanted = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()])
            torch.testing.assert_close(turned[0, slot, 0, 2 * pair : 2 * pair + 2], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e3])
def test_normalisation_is_that_of_pytorch(dtype, size):
    norm = RMSNorm(24, 1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = (size * torch.randn(3, 2, 24)).to(dtype)
    expected = torch.nn.functional.rms_norm(x, (24,), norm.weight, 1e-5)
    assert norm(x).equal(expected)  # where gradients are wanted it is that
    with torch.inference_mode():
        torch.testing.assert_close(norm(x), expected, atol=1e-6, rtol=1e-6 if dtype == torch.float32 else 0.01)


def test_example_prompts_suit_the_model(tiny_models):
    classes = tiny_models.by_class.examples(40)
    assert {int(text) for text in classes} <= set(range(10))
    assert len(set(classes)) > 3
    sentences = tiny_models.by_text.examples(40)
    assert len(sentences) == 40
    assert all(len(text.split()) > 3 for text in sentences)
    for model, prompts in ((tiny_models.by_class, classes), (tiny_models.by_text, sentences)):
        assert model.examples(3) == prompts[:3]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tiny model reads 8 words of a prompt
            assert len(model.prefix(prompts[:4], None, False).valid) == 4


@pytest.fixture
def named(tiny_models, class_names, tmp_path):
    """The directory of a model whose ten classes have names."""
    model = tiny_models.by_class
    write(LlamaGen(model.decoder, model.image_tokenizer, vocabulary=class_names), tmp_path / "named")
    return tmp_path / "named"


def test_classes_may_have_names(tiny_models, class_names, named, recwarn):
    assert json.loads((named / "prompts.json").read_text()).keys() == {"attributes", "required", "fillers", "example"}
    pipe, plain = zipar.pipeline(named, device="cpu"), zipar.pipeline(tiny_models.by_class)
    for number, prompt in ((0, "T-shirt"), (0, "a t shirt"), (6, "Shirt"), (9, "the ANKLE boot"), (4, "4"), (4, 4)):
        assert (pipe(prompt).tokens == plain(number).tokens).all(), prompt
    steered = pipe([3, "bag"], negative_prompt="coat", guidance_scale=2)
    assert (steered.tokens == plain([3, 8], negative_prompt=4, guidance_scale=2).tokens).all()
    assert not [warning for warning in recwarn if "does not know" in str(warning.message)]
    with pytest.warns(UserWarning, match="passed over: shiny"):
        pipe("a shiny bag")
    assert set(pipe.model.examples(100)) == set(class_names.attributes["class"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "an ankle bot"}, "did you mean ankle boot"),
        ({"prompt": "10"}, "is a number, 0 to 9; `zipar prompts` lists the 10 known"),
        ({"prompt": 10}, "from 0 to 9"),
        ({"prompt": "goldfish"}, "no class that the model knows"),
        ({"prompt": "bag", "negative_prompt": "sock", "guidance_scale": 2}, "no class .* 'sock'"),
    ],
)
def test_what_names_no_class(named, arguments, message):
    with pytest.raises(zipar.ZipARError, match=message):
        zipar.pipeline(named, device="cpu")(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": {"class": {"bag": ["bag"]}}}, "10 classes .* names 1:"),
        ({"attributes": {"kind": {"bag": ["bag"]}}, "required": ["kind"]}, "10 classes .* names 0:"),
        ({"required": []}, "required attribute 'class', but does not require one"),
    ],
)
def test_names_of_other_classes_than_the_decoder_s(tiny_models, class_names, named, change, message):
    (named / "prompts.json").write_text(json.dumps({**dataclasses.asdict(class_names), **change}))
    for load in (zipar.pipeline, outline):
        with pytest.raises(zipar.ZipARError, match=f"{named.name}.*{message}"):
            load(named)
    model, names = tiny_models.by_class, dataclasses.replace(class_names, **change)
    with pytest.raises(zipar.ZipARError, match=f"the vocabulary .*{message}"):
        LlamaGen(model.decoder, model.image_tokenizer, vocabulary=names)
