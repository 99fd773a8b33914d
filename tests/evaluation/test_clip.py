import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, T5Config, T5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from zipar import ZipARError
from zipar.evaluation import clip
from zipar.evaluation.clip import ClipScorer

PROMPTS = ["a red fox", "two small birds in the snow, 3d style", "", "A PHOTO", "a red foxes"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random CLIP of 77 tokens and 16 x 16 pixels and its processor, as transformers saves them."""
    directory = tmp_path_factory.mktemp("clip")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({word: number for number, word in enumerate(words)}, [])
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(directory)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**shape, **text, "max_position_embeddings": 77},
            vision_config={**shape, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    )
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def scorer(directory):
    return ClipScorer(directory)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 24, 40, 3), dtype=np.uint8)


def reference(directory, image, prompt):
    """CLIP's own logit of one pair, without its learned scale."""
    model, processor = CLIPModel.from_pretrained(directory).eval(), CLIPProcessor.from_pretrained(directory)
    with torch.inference_mode():
        seen = model(**processor(text=prompt, images=Image.fromarray(image), return_tensors="pt"))
        return float(seen.logits_per_image / model.logit_scale.exp())


def test_scores_are_clip_s_own_logits(directory, scorer, images):
    expected = [100 * reference(directory, *pair) for pair in zip(images, PROMPTS, strict=True)]
    scores = scorer.score(images, PROMPTS)
    assert scores.dtype == torch.float32
    assert scores.shape == (5,)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scorer.score(torch.from_numpy(images), PROMPTS), scores)


def test_batches_do_not_matter(scorer, images, monkeypatch):
    scores = scorer.score(images, PROMPTS)
    monkeypatch.setattr(clip, "BATCH", 2)
    torch.testing.assert_close(scorer.score(images, PROMPTS), scores, rtol=1e-4, atol=1e-3)
    assert scorer.score(images[:0], []).shape == (0,)


def test_long_prompts_are_cut_to_77_tokens(scorer, images):
    letters = "a b c d e f g " * 20  # a token each; start and end take 2 of the 77
    long, cut, shorter = scorer.score(images[[0, 0, 0]], [letters, letters[: 2 * 75], letters[: 2 * 74]])
    assert long == pytest.approx(float(cut), abs=1e-3)
    assert long != pytest.approx(float(shorter), abs=1e-2)


def test_processor_files_of_published_checkpoints(directory, scorer, images, tmp_path):
    shutil.copytree(directory, tmp_path / "clip")
    (tmp_path / "clip" / "processor_config.json").unlink()
    published = {
        "crop_size": 16,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 16,
    }
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(published))
    scores = ClipScorer(tmp_path / "clip").score(images, PROMPTS)
    torch.testing.assert_close(scores, scorer.score(images, PROMPTS))


def test_images_and_prompts_must_match(scorer, images):
    with pytest.raises(ZipARError, match="5 images need as many prompts, not 2"):
        scorer.score(images, PROMPTS[:2])
    with pytest.raises(ZipARError, match="uint8"):
        scorer.score(images.astype(np.float32), PROMPTS)


def test_what_is_no_clip_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZipARError, match="empty"):
        ClipScorer(tmp_path / "empty")
    with pytest.raises(ZipARError, match="absent"):
        ClipScorer(tmp_path / "absent")
    with pytest.raises(ZipARError, match=r"emoji .* not a CLIP"):
        ClipScorer("emoji")
    T5EncoderModel(T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    with pytest.raises(ZipARError, match="'t5', not a CLIP"):
        ClipScorer(tmp_path / "t5")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "processor_config.json"])
def test_what_is_missing_is_named(name, directory, tmp_path):
    shutil.copytree(directory, tmp_path / "clip")
    (tmp_path / "clip" / name).unlink()
    with pytest.raises(ZipARError, match=str(tmp_path / "clip")):
        ClipScorer(tmp_path / "clip")
