"""Janus in DeepSeek's layout, against what its authors' code computes (see tests/data/janus.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, JanusForConditionalGeneration, JanusProcessor

import zipar
from zipar.conversion.janus import ROLES, convert, template_of
from zipar.models import auto

RECORDED = Path(__file__).parents[1] / "data" / "janus.safetensors"
PROMPT = "a red fox"
SPECIAL = {
    "<｜▁pad▁｜>": 0,
    "<｜begin▁of▁sentence｜>": 1,
    "<｜end▁of▁sentence｜>": 2,
    "<image_placeholder>": 3,
    "<begin_of_image>": 4,
    "<end_of_image>": 5,
}
TAGS = {"<|User|>": 8, "<|Assistant|>": 9}
WORDS = {"<unk>": 6, "User": 11, "Assistant": 12, "a": 13, "red": 14, "fox": 15, ":": 21}
INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDED)


@pytest.fixture(scope="module")
def texts():
    with safe_open(RECORDED, "pt") as file:
        return {name: json.loads(text) for name, text in file.metadata().items()}


@pytest.fixture(scope="module")
def weights(janus_recipe, texts):
    return janus_recipe.made_up(texts["shapes"])


def write_tokenizer(folder, tagged=True):
    special = SPECIAL | (TAGS if tagged else {})
    tokenizer = Tokenizer(models.WordLevel(special | WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_weights(folder, weights, layout):
    """The files of a layout, such as "2 bin": in how many files, and of which kind."""
    number, kind = layout.split()
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    names = [stem + suffix] if number == "1" else [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    index = {name: names[i % len(names)] for i, name in enumerate(weights)}
    for file in names:
        held = {name: tensor for name, tensor in weights.items() if index[name] == file}
        if kind == "safetensors":
            save_file(held, folder / file)
        else:
            torch.save(held, folder / file, _use_new_zipfile_serialization=kind != "old-bin")
    if number != "1":
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.fixture(scope="module")
def published(janus_recipe, weights, tmp_path_factory):
    """The published files in small, as those of Janus-Pro-7B are: in two pickles."""
    folder = tmp_path_factory.mktemp("Janus-Pro")
    bos, eos = ({"__type": "AddedToken", "content": word} for word in list(SPECIAL)[1:3])
    settings = {
        "config.json": janus_recipe.CONFIG,
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast", "bos_token": bos, "eos_token": eos},
        "processor_config.json": {"processor_class": "VLChatProcessor", "sft_format": "deepseek"},
        "preprocessor_config.json": {
            "image_size": 24,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_processor_type": "VLMImageProcessor",
        },
    }
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content))
    write_tokenizer(folder)
    write_weights(folder, weights, "2 bin")
    return folder


@pytest.fixture
def source(published, tmp_path):
    """Published files of one's own."""
    return shutil.copytree(published, tmp_path / "published")


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    directory = tmp_path_factory.mktemp("converted") / "janus"
    convert(published, directory, template="janus")
    return directory


@pytest.fixture(scope="module")
def model(converted):
    return auto.load(converted, device="cpu")


def stored(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


class TestAgainstTheAuthors:
    def test_raster_order_gives_their_tokens_and_pixels(self, model, recorded):
        found = zipar.Pipeline(model)(PROMPT, strategy=zipar.Raster(), temperature=0)
        assert len(recorded["codes"].unique()) > 15
        assert found.tokens.reshape(1, 36).tolist() == recorded["codes"].tolist()
        decoded = model.model.decode_image_tokens(recorded["codes"].long()).permute(0, 3, 1, 2)
        torch.testing.assert_close(decoded, recorded["decoded"], atol=1e-4, rtol=0)
        difference = np.asarray(found.images[0], int) - recorded["pixels"][0].numpy()
        assert np.abs(difference).max() <= 1  # of numbers that are cut off where they are all but whole

    @torch.inference_mode()
    def test_logits_of_both_branches(self, model, recorded, janus_recipe):
        prefix = model.prefix([PROMPT], None, True, model.grid(24, 24))
        conditional = model.decoder.embed_tokens(torch.tensor(janus_recipe.IDS))
        assert prefix.embeddings[0].equal(conditional)
        fed = model.embed(recorded["codes"][:, :-1].long()).expand(2, -1, -1)
        hidden = model.decoder(inputs_embeds=torch.cat([prefix.embeddings, fed], 1)).last_hidden_state
        logits = model.logits(hidden[:, -36:]).transpose(0, 1)
        torch.testing.assert_close(logits[::5], recorded["logits"], atol=1e-4, rtol=0)

    @torch.inference_mode()
    def test_text_and_given_images(self, model, recorded, janus_recipe):
        network, pictures = model.model, janus_recipe.pictures()
        text = network(input_ids=torch.tensor([janus_recipe.IDS])).logits[0]
        torch.testing.assert_close(text, recorded["text"], atol=1e-4, rtol=0)
        features = network.model.aligner(network.model.vision_model(pictures).last_hidden_state)
        torch.testing.assert_close(features, recorded["features"], atol=1e-4, rtol=0)
        encoded = network.model.vqmodel.quant_conv(network.model.vqmodel.encoder(pictures))
        torch.testing.assert_close(encoded, recorded["encoded"], atol=1e-4, rtol=0)

    @pytest.mark.parametrize(
        ("template", "roles"),
        [("janus", "plain"), ("janus-pro", "tagged"), ("janus-4o", "tagged"), ("t2i-r1", "plain")],
    )
    def test_prompts(self, source, out, texts, janus_recipe, template, roles):
        convert(source, out, template=template)
        processor = JanusProcessor.from_pretrained(out)
        asked = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in janus_recipe.PROMPTS]
        assert processor.apply_chat_template(asked, add_generation_prompt=True) == texts["prompts"][roles]
        assert processor.use_default_system_prompt is (template != "t2i-r1")

    def test_conversations(self, source, out, texts):
        convert(source, out)
        said = [
            {"role": "system", "content": "You are helpful."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A fox."}]},
            {"role": "user", "content": "Which colour?"},
        ]
        processor = JanusProcessor.from_pretrained(out)
        assert [processor.apply_chat_template(said, add_generation_prompt=True)] == texts["prompts"]["conversation"]


class TestConversion:
    @pytest.mark.parametrize("layout", ["1 bin", "2 bin", "1 old-bin", "1 safetensors", "2 safetensors"])
    def test_of_all_kinds_of_files(self, source, out, converted, weights, layout):
        for path in source.glob("pytorch_model*"):
            path.unlink()
        write_weights(source, weights, layout)
        assert convert(source, out) == {torch.float32}
        expected, found = stored(converted), stored(out)
        assert found.keys() == expected.keys()
        assert all(found[name].equal(tensor) for name, tensor in expected.items())
        assert len([*out.glob("*.safetensors")]) == int(layout[0])  # converted file by file

    def test_gives_transformers_a_whole_janus(self, converted):
        network, loading = JanusForConditionalGeneration.from_pretrained(converted, output_loading_info=True)
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert network.lm_head.weight is not network.get_input_embeddings().weight
        assert network.config.image_token_id == 3
        config = network.generation_config
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
        assert config.generation_kwargs == {"boi_token_id": 4}
        assert AutoTokenizer.from_pretrained(converted).encode(PROMPT) == [1, 13, 14, 15]

    def test_samples_as_the_authors_do(self, model):
        assert model.defaults == zipar.Sampling(guidance_scale=5.0)
        assert model.image_size == (24, 24)
        assert model.positions == 256

    def test_knows_a_template_by_the_tokenizer(self, source, out, janus_recipe):
        assert template_of(source) == "janus-pro"
        write_tokenizer(source, tagged=False)
        assert template_of(source) == "janus"
        convert(source, out)
        model = auto.load(out, device="cpu")
        prefix = model.prefix([PROMPT], None, False, model.grid(24, 24))
        assert prefix.embeddings[0].equal(model.decoder.embed_tokens(torch.tensor(janus_recipe.IDS)))

    def test_keeps_the_number_format_of_each_tensor(self, source, out, weights):
        halves = {
            name: tensor.to(torch.bfloat16 if i % 2 else torch.float16)
            for i, (name, tensor) in enumerate(weights.items())
        }
        write_weights(source, halves, "2 bin")
        assert convert(source, out) == {torch.bfloat16, torch.float16}
        assert json.loads((out / "config.json").read_text())["dtype"] == "float32"  # holds both

    def test_is_self_contained_and_as_small_as_told(self, source, out):
        assert convert(source, out, dtype=torch.bfloat16) == {torch.bfloat16}
        shutil.rmtree(source)
        assert {tensor.dtype for tensor in stored(out).values()} == {torch.bfloat16}
        image = zipar.pipeline(out, dtype=torch.bfloat16, device="cpu")(PROMPT).images[0]
        assert image.size == (24, 24)

    def test_an_image_token_that_the_vocabulary_lacks_is_added_to_it(self, source, out):
        words = source / "tokenizer.json"
        words.write_text(words.read_text().replace("<image_placeholder>", "<other>"))
        convert(source, out)
        added = JanusProcessor.from_pretrained(out).tokenizer.convert_tokens_to_ids("<image_placeholder>")
        assert json.loads((out / "config.json").read_text())["image_token_id"] == added == 15


def test_files_are_whole_and_as_the_umask_has_them(published, check_written):
    check_written(lambda out: convert(published, out))


def test_a_published_directory_names_the_command(published):
    with pytest.raises(zipar.ZipARError, match="a Janus in DeepSeek's layout: `zipar convert janus` makes it loadable"):
        zipar.pipeline(published)


@pytest.mark.usefixtures("nothing_is_written")
class TestConversionOf:
    """Everything that is not what it should be: one clear error, and nothing written."""

    @pytest.fixture
    def fails(self, source, out):
        def run(message, **options):
            with pytest.raises(zipar.ZipARError, match=message) as error:
                convert(source, out, **options)
            assert "\n" not in str(error.value)

        return run

    def test_another_template(self, fails):
        fails(f"template 'emu3' is not possible: use {', '.join(ROLES)}", template="emu3")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("config.json", "is no checkpoint directory: it has no config.json"),
            ("tokenizer.json", "tokenizer.json is missing"),
            ("tokenizer_config.json", "it has no tokenizer_config.json"),
            ("processor_config.json", "it has no processor_config.json"),
            ("preprocessor_config.json", "it has no preprocessor_config.json"),
            (INDEX, "holds no weights: model.safetensors or pytorch_model.bin or its index is missing"),
            ("pytorch_model-00002-of-00002.bin", "lacks 1 of the 2 files of its weights, such as pytorch_model-00002"),
        ],
    )
    def test_missing_files(self, fails, source, name, message):
        (source / name).unlink()
        fails(message)

    @pytest.mark.parametrize("kept", [0, 5, 5000])
    def test_truncated_files(self, fails, source, kept):
        for name in ("pytorch_model-00001-of-00002.bin", "tokenizer.json", "config.json"):
            (source / name).write_bytes((source / name).read_bytes()[: min(kept, (source / name).stat().st_size - 1)])
            fails(name)

    @pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": "../out"}}', '{"weight_map": {"a": 3}}'])
    def test_an_index_of_something_else(self, fails, source, index):
        (source / INDEX).write_text(index)
        fails(INDEX)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "llama"}, "a model of type 'llama' that writes no image tokens: give a Janus"),
            ({"gen_head_config": None}, "'multi_modality' that writes no image tokens"),
            ({"language_config": None}, "is no checkpoint that can be read"),
            ({"language_config": {}}, "lacks .* tensors expected, such as model.language_model"),
            ({"language_config": {"hidden_size": "wide"}}, "is no checkpoint that can be read"),
        ],
    )
    def test_another_config(self, fails, source, change, message):
        config = json.loads((source / "config.json").read_text()) | change
        kept = {name: value for name, value in config.items() if value is not None}
        (source / "config.json").write_text(json.dumps(kept))
        fails(message)

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("gen_vision_model.quantize.embedding.weight", None, "is no Janus: it has no quantize.embedding"),
            ("gen_head.vision_head.weight", None, "lacks 1 of the .*generation_head.vision_head.weight"),
            ("gen_head.vision_head.weight", torch.zeros(9), "vision_head.weight is of shape .9,., but should be"),
            ("vision_model.vision_tower.pos_embed", torch.tensor(0.0), "position_embedding.weight is of shape"),
            (
                "vision_model.vision_tower.pos_embed",
                torch.zeros(1, 30, 128),
                r"of shape \(30, 128\), but .* \(25, 128\)",
            ),
            ("vision_model.vision_tower.blocks.1.attn.qkv.bias", torch.tensor(0.0), "lacks 3 of the"),
            ("vision_gen_enc.weight", torch.zeros(3), "holds 1 tensors that do not belong, such as vision_gen_enc"),
        ],
    )
    def test_other_weights(self, fails, source, weights, name, tensor, message):
        changed = {**weights, name: tensor}
        write_weights(source, {key: value for key, value in changed.items() if value is not None}, "2 bin")
        fails(message)

    def test_tensors_that_share_their_numbers(self, fails, source, weights):
        shared = weights["language_model.model.embed_tokens.weight"]
        write_weights(source, {**weights, "language_model.lm_head.weight": shared}, "1 bin")
        (source / INDEX).unlink()
        fails("is no checkpoint that can be read")

    def test_a_pickle_that_wants_to_run_code(self, fails, source, tmp_path, order_to_touch):
        torch.save({"a": order_to_touch(tmp_path / "ran")}, source / "pytorch_model-00001-of-00002.bin")
        fails("was not opened, for it wants to run")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("word", ["<begin_of_image>", "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>"])
    def test_a_tokenizer_without_a_special_word(self, fails, source, word):
        words = source / "tokenizer.json"
        words.write_text(words.read_text(encoding="utf-8").replace(word, "<other>"), encoding="utf-8")
        fails(f"tokenizer.json has no .*{word}")

    @pytest.mark.parametrize("settings", ["[]", '{"image_mean": "?"}'])
    def test_other_settings_of_images(self, fails, source, settings):
        (source / "preprocessor_config.json").write_text(settings)
        fails("preprocessor_config.json")


def test_a_result_that_is_there_already_is_not_touched(source, out):
    out.mkdir(parents=True)
    (out / "mine").touch()
    with pytest.raises(zipar.ZipARError, match="out exists already"):
        convert(source, out)
    assert [path.name for path in out.iterdir()] == ["mine"]
