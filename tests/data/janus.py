"""Records what the authors' code of Janus computes, for tests/conversion/test_janus.py to compare with.

The model is tiny and its weights are made up from a seed, so that the tests can make up the same ones; what is recorded
is the names and shapes of its tensors, the prompts, and what the authors' class, their loop and their image tokenizer
do with them.

    git clone https://github.com/deepseek-ai/Janus
    python tests/data/janus.py --reference Janus tests/data/janus.safetensors

It needs torch, torchvision, transformers, timm, einops and attrdict, and nothing of ZipAR.
"""

import argparse
import ast
import json
import sys
import types
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.torch import save_file

SIDE, PATCH, CODES, CODE_DIM, DIM, VISION_DIM = 6, 4, 50, 8, 32, 128
VISION = {"image_size": SIDE * PATCH, "patch_size": PATCH, "width": VISION_DIM, "layers": 2, "heads": 2, "mlp_ratio": 2}
IMAGE_TOKENIZER = {
    "codebook_size": CODES,
    "codebook_embed_dim": CODE_DIM,
    "encoder_ch_mult": [1, 1, 2],
    "decoder_ch_mult": [1, 1, 2],
    "z_channels": 64,
}
CHANNELS = 32
CONFIG = {
    "model_type": "multi_modality",
    "architectures": ["MultiModalityCausalLM"],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "vision_config": {
        "cls": "CLIPVisionTower",
        "model_type": "vision",
        "params": {
            "image_size": SIDE * PATCH,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    },
    "aligner_config": {
        "cls": "MlpProjector",
        "model_type": "aligner",
        "params": {"depth": 2, "input_dim": VISION_DIM, "n_embed": DIM, "projector_type": "mlp_gelu"},
    },
    "gen_vision_config": {
        "cls": "VQ-16",
        "model_type": "gen_vision",
        "params": {"image_token_size": CODES, "n_embed": CODE_DIM},
    },
    "gen_aligner_config": {
        "cls": "MlpProjector",
        "model_type": "gen_aligner",
        "params": {"depth": 2, "input_dim": CODE_DIM, "n_embed": DIM, "projector_type": "mlp_gelu"},
    },
    "gen_head_config": {
        "cls": "vision_head",
        "model_type": "gen_head",
        "params": {"image_token_embed": DIM, "image_token_size": CODES, "n_embed": DIM},
    },
    "language_config": {
        "model_type": "llama",
        "max_position_embeddings": 256,
        "hidden_size": DIM,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "torch_dtype": "bfloat16",
    },
}
"""Laid out as the published ones are, in small."""

BOS, PAD, BOI = 1, 0, 4
IDS = [BOS, 11, 21, 13, 14, 15, 12, 21, BOI]
PROMPTS = ["a red fox in the snow", "  two small birds \n", ""]
ROLES = {"plain": ("User", "Assistant"), "tagged": ("<|User|>", "<|Assistant|>")}


def made_up(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that keep activations alive, the same for the same names and shapes."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name in sorted(shapes):
        noise, parent = torch.randn(shapes[name], generator=generator), name.split(".")[-2]
        if "norm" in parent:
            weights[name] = name.endswith("weight") + 0.1 * noise
        elif noise.ndim == 1:
            weights[name] = 0.1 * noise
        else:
            weights[name] = noise * (1.0 if "embed" in parent else 2 * noise[0].numel() ** -0.5)
    return weights


def pictures() -> torch.Tensor:
    """Normalised pixels, float32 (2, 3, height, width)."""
    return torch.rand(2, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1)) * 2 - 1


def import_authors(clone: Path) -> types.SimpleNamespace:
    """The authors' modules, with a tiny vision tower and image tokenizer in place of those that they know by name."""
    sys.path.insert(0, str(clone))
    from janus.models import modeling_vlm, processing_vlm, siglip_vit, vq_model

    siglip_vit.SigLIP_MODEL_CONFIG["siglip_large_patch16_384"].update(VISION)
    vq_model.Encoder, vq_model.Decoder = (partial(part, ch=CHANNELS) for part in (vq_model.Encoder, vq_model.Decoder))
    vq_model.VQ_models["VQ-16"] = lambda: vq_model.VQModel(vq_model.ModelArgs(**IMAGE_TOKENIZER))
    return types.SimpleNamespace(modeling=modeling_vlm, processing=processing_vlm)


class Greedy:
    """torch, for a loop that draws tokens and asks for CUDA."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def multinomial(self, probabilities, num_samples):
        return probabilities.argmax(-1, keepdim=True)

    def zeros(self, *args, **settings):
        zeros = torch.zeros(*args, **settings)
        zeros.cuda = lambda: zeros
        return zeros


def loop_of(clone: Path, painted: MagicMock) -> types.FunctionType:
    """``generate`` of the authors' generation_inference.py, without the script around it."""
    tree = ast.parse((clone / "generation_inference.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "generate")
    scope = {"torch": Greedy(), "np": np, "os": MagicMock(), "PIL": painted}
    scope |= {"MultiModalityCausalLM": None, "VLChatProcessor": None}
    exec(compile(ast.Module([function], []), "generation_inference.py", "exec"), scope)
    return scope["generate"]


@torch.inference_mode()
def record(authors: types.SimpleNamespace, clone: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    model = authors.modeling.MultiModalityCausalLM(authors.modeling.MultiModalityConfig(**CONFIG))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(made_up(shapes))
    model.eval()

    found, logits, painted = {}, [], MagicMock()
    model.gen_head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    own = model.gen_vision_model.decode_code

    def decode_code(codes, shape):
        found["codes"], found["decoded"] = codes, own(codes, shape)
        return found["decoded"]

    model.gen_vision_model.decode_code = decode_code
    processor = types.SimpleNamespace(tokenizer=types.SimpleNamespace(encode=lambda prompt: IDS), pad_id=PAD)
    loop_of(clone, painted)(
        model,
        processor,
        "",
        parallel_size=1,
        image_token_num_per_image=SIDE**2,
        img_size=SIDE * PATCH,
        patch_size=PATCH,
    )
    found["logits"] = torch.stack(logits)[::5]
    found["pixels"] = torch.stack([torch.from_numpy(call.args[0]) for call in painted.Image.fromarray.call_args_list])
    found["text"] = model.language_model(torch.tensor([IDS])).logits[0]
    found["features"] = model.aligner(model.vision_model(pictures()))
    found["encoded"] = model.gen_vision_model.quant_conv(model.gen_vision_model.encoder(pictures()))

    template = authors.processing.VLChatProcessor.apply_sft_template_for_multi_turn_prompts
    prompts = {
        name: [
            template(None, [{"role": user, "content": prompt}, {"role": assistant, "content": ""}], "deepseek")
            for prompt in PROMPTS
        ]
        for name, (user, assistant) in ROLES.items()
    }
    user, assistant = ROLES["tagged"]
    said = [
        {"role": user, "content": "<image_placeholder>\nWhat is it?"},
        {"role": assistant, "content": "A fox."},
        {"role": user, "content": "Which colour?"},
        {"role": assistant, "content": ""},
    ]
    prompts["conversation"] = [template(None, said, "deepseek", "You are helpful.")]
    return found, {"shapes": json.dumps(shapes), "prompts": json.dumps(prompts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the authors' repository")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    args = parser.parse_args()
    tensors, texts = record(import_authors(args.reference), args.reference)
    save_file({name: value.contiguous() for name, value in tensors.items()}, args.out, texts)


if __name__ == "__main__":
    main()
