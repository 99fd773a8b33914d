"""CLIP score: how well pictures fit their prompts.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021 (arXiv 2104.08718).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from zipar.arguments import text
from zipar.checkpoints.files import read_config
from zipar.checkpoints.pretrained import load_model, load_processor
from zipar.errors import ZipARError
from zipar.evaluation.images import checked
from zipar.models import auto

BATCH = 32
EXAMPLE = "openai/clip-vit-large-patch14"


class ClipScorer:
    """Scores pictures against their prompts with a CLIP.

    The score is 100 times the cosine of the angle between the embeddings of the picture and of its prompt: what most
    papers on image generation report as CLIP score. The paper's own CLIP-S is ``2.5 * max(cosine, 0)`` of the prompt
    behind "A photo depicts ": that is ``max(score, 0) / 40`` of such a prompt. Scores of different CLIPs cannot be
    compared: name the one you took.
    """

    def __init__(self, name: str | Path, device: str | torch.device = "cpu") -> None:
        """
        Args:
            name: a directory or a hub id, with safetensors, such as "openai/clip-vit-large-patch14". The CLIP of the
                paper, "openai/clip-vit-base-patch32", is published as a pickle: save it as safetensors first.
            device: where CLIP runs, in float32.

        Raises:
            ZipARError: there is no such checkpoint, it is damaged, or it is no CLIP.
        """
        directory = auto.find(name)
        if (kind := read_config(directory).get("model_type")) != "clip":
            raise ZipARError(f"{name} holds a model of type {kind!r}, not a CLIP: give one, such as {EXAMPLE}")
        if not any(directory.glob("*.safetensors")):
            raise ZipARError(f"{name} has no weights in safetensors: give a CLIP that has, such as {EXAMPLE}")
        self.model = load_model(CLIPModel, directory, torch.float32).to(auto.usable(device)).eval()
        self.processor = load_processor(CLIPProcessor, directory)
        # where torchvision is installed, transformers resizes with it: to other pixels than those CLIP was trained on
        self.processor.image_processor = CLIPImageProcessorPil.from_pretrained(directory, local_files_only=True)

    @torch.inference_mode()
    def score(self, images: np.ndarray | Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores, float32 (n,) on the CPU, of uint8 images (n, height, width, 3), each against its prompt.

        What of a prompt is beyond the tokens that CLIP takes, 77 with start and end, does not count.

        Raises:
            ZipARError: images of another shape or dtype, not as many prompts, or prompts that are no text.
        """
        images = checked(images)
        prompts = [text("prompts", prompt) for prompt in prompts]
        if len(prompts) != len(images):
            raise ZipARError(f"{len(images)} images need as many prompts, not {len(prompts)}")
        scores = torch.empty(len(images))
        for first in range(0, len(images), BATCH):
            part = slice(first, first + BATCH)
            inputs = self.processor(
                text=list(prompts[part]),
                images=[Image.fromarray(image) for image in images[part].cpu().numpy()],
                padding=True,
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            seen = self.model(**inputs.to(self.model.device))
            scores[part] = 100 * (seen.image_embeds * seen.text_embeds).sum(-1)
        return scores
