"""Records what the authors' code of Lumina-mGPT computes, for tests/models/test_lumina_mgpt.py to compare with.

The models are tiny and their weights are made up from a seed, so that the tests can make up the same ones; what is
recorded is what the authors' decoder, their guidance and constraints on logits, their list of image sizes, and Meta's
image tokenizer do with them.

    git clone https://github.com/Alpha-VLLM/Lumina-mGPT
    python tests/data/lumina_mgpt.py --reference Lumina-mGPT tests/data/lumina_mgpt.safetensors

It needs torch, sentencepiece and a transformers of the time of the authors' code (4.44), and nothing of ZipAR.
"""

import argparse
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCAB_SIZE, CODES = 8960, 8192
DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "model_parallel_size": 2,
    "mask_image_logits": False,
    "attn_implementation": "eager",
}
SIZES = {"7b": {"num_key_value_heads": 4}, "34b": {"num_key_value_heads": 2, "swin_norm": True}}
"""What the two published sizes differ in."""
IMAGE_TOKENIZER = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": [1, 1, 1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 64,
    "z_channels": 8,
    "double_z": False,
}
PROMPT = [0, 8901, 8907, 8903, 8912, 8710]
ROWS, COLUMNS = 4, 6
GUIDANCE = 4.0


def made_up(shapes: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep activations alive, the same for the same names and shapes."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name in sorted(shapes):
        noise = torch.randn(shapes[name], generator=generator)
        if "norm" in name.split(".")[-2]:
            weights[name] = name.endswith("weight") + 0.1 * noise
        else:
            weights[name] = noise * (2 * shapes[name][1:].numel() ** -0.5 if noise.ndim > 1 else 0.1)
    return weights


def vocabulary() -> dict[str, int]:
    """The names that the authors' code asks for, at Chameleon's ids; codes lie there in another order."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = {f"IMGIMG{str(code).translate(letters)}Z": 4 + (code * 5 + 3) % CODES for code in range(CODES)}
    names |= {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<eoss>": 8196, "<racm3:break>": 8197}
    return names | {f"<reserved{number:05}>": number + 4 for number in range(8706, 8870)}


def fill(module: torch.nn.Module, seed: int, without: str | None = None) -> torch.nn.Module:
    """Give ``module`` made-up weights, except for the part ``without``, which no output depends on."""
    names = [name for name in module.state_dict() if without is None or without not in name]
    weights = made_up({name: module.state_dict()[name].shape for name in names}, seed)
    module.load_state_dict({**module.state_dict(), **weights})
    return module.eval()


class OnCPU:
    """torch, for a module that asks it for tensors on CUDA."""

    def __getattr__(self, name):
        found = getattr(torch, name)
        if name in ("tensor", "arange"):
            return lambda *args, device=None, **settings: found(*args, **settings)
        return found


def import_authors(clone: Path) -> types.SimpleNamespace:
    """What is run of the authors' code, without the data sets and the CUDA device that it asks for."""
    sys.path[:0] = [str(clone / "lumina_mgpt"), str(clone)]
    reader = types.ModuleType("xllmx.data.data_reader")
    reader.read_general = None
    sys.modules[reader.__name__] = reader

    import inference_solver
    from data import item_processor
    from model import chameleon
    from model.chameleon_vae_ori import vocab, vqgan

    inference_solver.torch = OnCPU()
    return types.SimpleNamespace(
        solver=inference_solver, items=item_processor, chameleon=chameleon, vocab=vocab, vqgan=vqgan
    )


@torch.inference_mode()
def record(authors: types.SimpleNamespace) -> dict[str, torch.Tensor]:
    found = {}
    for side in (512, 768, 1024):
        sizes = authors.items.generate_crop_size_list((side // 32) ** 2, 32)
        found[f"sizes.{side}"] = torch.tensor(sizes, dtype=torch.int16)  # width, height

    translation = authors.vocab.VocabTranslation(authors.vocab.VocabInfo(vocabulary()), device="cpu")
    header = [8197, 8804 + ROWS // 2, 8804 + COLUMNS // 2]
    for name, settings in SIZES.items():
        config = authors.chameleon.ChameleonConfig(**DECODER, **settings, vocabulary_map=vocabulary())
        model = fill(authors.chameleon.ChameleonForConditionalGeneration(config), 0, "vqmodel")
        guidance = authors.solver.LLMImageStartTriggeredUnbatchedClassifierFreeGuidanceLogitsProcessor(
            guidance_scale=GUIDANCE,
            model=model,
            image_start_token_id=8197,
            image_end_token_id=8196,
            image_next_line_token_id=8803,
            patch_size=32,
        )
        constraint = authors.solver.MultiModalLogitsProcessor(8197, 8196, 8803, 32, VOCAB_SIZE)
        ids = torch.tensor([PROMPT + header])
        while ids[0, -1] != 8196:
            logits = model(input_ids=ids).logits
            scores = constraint(ids, guidance(ids, logits[:, -1]))
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        start = len(PROMPT) + len(header)
        found[f"{name}.ids"] = ids[0].to(torch.int16)
        found[f"{name}.logits"] = logits[0, start - 1 :: 5, 4 : 4 + CODES : 64].contiguous()
        image = ids[0, start:-1].view(ROWS, COLUMNS + 1)[:, :-1]
        found[f"{name}.codes"] = torch.tensor(
            [[translation.bpe2img[token] for token in row] for row in image.tolist()], dtype=torch.int16
        )

    vqgan = fill(authors.vqgan.VQModel(IMAGE_TOKENIZER, CODES, 4), 1)
    codes = found["7b.codes"][:2, :3].long()
    latents = vqgan.quantize.get_codebook_entry(codes.flatten(), (1, 2, 3, 4))
    found["pixels"] = vqgan.decode(latents)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the authors' repository")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    args = parser.parse_args()
    save_file(record(import_authors(args.reference)), args.out)


if __name__ == "__main__":
    main()
