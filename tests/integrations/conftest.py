import functools

import pytest
import torch
from transformers import (
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    GlmImageForConditionalGeneration,
    JanusForConditionalGeneration,
    Qwen3ForCausalLM,
)

import zipar
from zipar import ZipAR
from zipar.decoding.engine import decode as engine

KINDS = {
    "janus": JanusForConditionalGeneration,
    "emu3": Emu3ForConditionalGeneration,
    "emu3_5": Qwen3ForCausalLM,
    "lumina_mgpt": ChameleonForConditionalGeneration,
    "glm_image": GlmImageForConditionalGeneration,
}


PROMPTS = {
    "janus": lambda words: [[1, 7, 9, 10, 11, 8, 9, 4], [1, 7, 9, 12, 4]],
    "emu3": lambda words: [
        [words[word] for word in ("<|extra_203|>", *text, "<|image start|>", *"3*5", "<|image token|>")]
        for text in ("fox", "f")
    ],
    "emu3_5": lambda words: [[526, 64, 65, 66, 420, 529, 18, 9, 20, 528], [526, 65, 420, 529, 18, 9, 20, 528]],
    "lumina_mgpt": lambda words: [[0, 8913, 8914, 8915, 8710, 8197, 8806, 8807], [0, 8918, 8710, 8197, 8806, 8807]],
    "glm_image": lambda words: [[70, 71, 72, 73, 74, 75, 64], [70, 76, 64]],
}
ASKED = {
    "janus": {"generation_mode": "image"},
    "glm_image": {
        "image_grid_thw": torch.tensor([[1, 4, 5], [1, 3, 4]] * 2),
        "images_per_sample": torch.tensor([2, 2]),
        "max_new_tokens": 33,
    },
}


class Case:
    """A family, where its model is, how it is asked for images, and what it answers."""

    def __init__(self, family, directory):
        self.family, self.kind = family, KINDS[family]
        inside = [directory / name for name in ("decoder", "vision_language_encoder")]
        self.directory = next((path for path in inside if path.is_dir()), directory)
        self.plain = self.load()
        prompts = PROMPTS[family](getattr(self.plain.config, "vocabulary_map", None))
        padding = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        ids = [[0] * n + prompt for n, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * n + [1] * len(prompt) for n, prompt in zip(padding, prompts, strict=True)]
        asked = ASKED.get(family, {"guidance_scale": 3.0, "max_new_tokens": 50})
        self.arguments = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "do_sample": False}
        self.arguments |= asked
        self.expected = self.images(self.plain)

    def load(self, **settings):
        return self.kind.from_pretrained(self.directory, **settings)

    def images(self, model, **settings):
        with zipar.accelerate(model, ZipAR(3)):
            return model.generate(**self.arguments | settings)

    def text(self, model):
        """What the model writes for prompts that ask for no image; of one that always does, logits."""
        mode = {"generation_mode": "text"} if self.family == "janus" else {"guidance_scale": None}
        ids = self.arguments["input_ids"][:, :-3]
        mask = self.arguments["attention_mask"][:, :-3]
        if self.family == "glm_image":
            return model(input_ids=ids, attention_mask=mask).logits
        given = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
        return model.generate(**given | mode)

    def visual(self, sequences):
        """Which tokens stand for a piece of an image, as transformers has them."""
        mapping = getattr(self.plain.model, "vocabulary_mapping", None)
        codes = {"janus": range(50), "glm_image": range(64), "emu3_5": range(531, 595)}.get(self.family)
        return torch.isin(sequences, torch.tensor(codes or mapping.image_tokens))


@pytest.fixture
def passes(monkeypatch):
    """Forward passes of each decoding."""
    taken = []

    def decode(*args, **settings):
        found = engine(*args, **settings)
        taken.append(found.forward_passes)
        return found

    monkeypatch.setattr("zipar.models.decodings.decode", decode)
    return taken


@pytest.fixture(scope="session")
def case_of(checkpoints):
    """case_of("emu3") -> its Case, whose model and tokens are for looking at alone."""

    @functools.cache
    def make(family):
        found = Case(family, checkpoints(family))
        assert len(found.expected.unique()) > 10
        return found

    return make


@pytest.fixture(scope="module", params=KINDS)
def case(request, case_of):
    return case_of(request.param)
