import re

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
from transformers.utils import logging

from zipar.conversion.llamagen import write
from zipar.decoding.sampling import Sampling
from zipar.image_tokenizers.vq import VQConfig, VQModel
from zipar.models.llamagen import LlamaGen, LlamaGenConfig, Transformer
from zipar.prompts import PromptVocabulary

logging.disable_progress_bar()  # of fixtures that save models

VOCABULARY = PromptVocabulary(
    attributes={
        "object": {"fox": ["fox", "red fox"], "apple": ["apple"]},
        "background": {"blue": ["blue background"], "green": ["green background"]},
    },
    required=["object"],
    fillers=["a", "on", "background"],
    example="a fox on a blue background",
)


def _tokenizer(length):
    phrases = [p for values in VOCABULARY.attributes.values() for ps in values.values() for p in ps]
    words = sorted({word for phrase in [*phrases, *VOCABULARY.fillers] for word in phrase.split()})
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", *words])}, unk_token="<pad>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", model_max_length=length, padding_side="left"
    )


def _llamagen(text, **conditions):
    torch.manual_seed(0)
    shape = {"layers": 2, "heads": 2, "dim": 32, "vocab_size": 50, "grid_side": 8, "multiple_of": 16}
    decoder = Transformer(LlamaGenConfig(**shape, **conditions))
    for name, weight in decoder.named_parameters():
        if not name.endswith("norm.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    image_tokenizer = VQModel(VQConfig(50, 4, 16, (1, 1), 1, 16, 4))
    if not text:
        return LlamaGen(decoder, image_tokenizer)
    words = _tokenizer(8)
    encoder = T5EncoderModel(T5Config(vocab_size=len(words), d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2))
    return LlamaGen(decoder, image_tokenizer, encoder, words, Sampling(guidance_scale=2.0), VOCABULARY)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory):
    """The directory of a random text-conditional LlamaGen with a vocabulary: 8 x 8 tokens, 16 x 16 pixels."""
    directory = tmp_path_factory.mktemp("models") / "text"
    write(_llamagen(True, caption_dim=16, prefix_length=8), directory, torch.float32)
    return str(directory)


@pytest.fixture(scope="session")
def class_models(tmp_path_factory):
    """Directories of random class-conditional LlamaGens, by their number of classes."""
    directories = {}
    for classes in (10, 1000):
        directories[classes] = tmp_path_factory.mktemp("models") / f"classes-{classes}"
        write(_llamagen(False, classes=classes), directories[classes], torch.float32)
    return directories


@pytest.fixture
def zipar(capfd, tmp_path, monkeypatch):
    """Runs a command line in an empty directory: zipar("plan", "--json") -> exit code, stdout, stderr."""
    from zipar.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args):
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def plain():
    """Takes a text; gives it without colours and line breaks."""
    return lambda text: " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
