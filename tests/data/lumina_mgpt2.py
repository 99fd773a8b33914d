"""Records what the authors' code of Lumina-mGPT 2.0 computes, for tests/models/test_lumina_mgpt2.py to compare with.

The models are tiny and their weights are made up as those of lumina_mgpt.py are; what is recorded is what the authors'
decoder, their guidance and constraints on logits, their list of image sizes, their prompts, and their MoVQGAN do with
them, and how MoVQGAN's tensors are called.

    git clone https://github.com/Alpha-VLLM/Lumina-mGPT-2.0
    python tests/data/lumina_mgpt2.py --reference Lumina-mGPT-2.0 tests/data/lumina_mgpt2.safetensors

It needs torch, einops and a transformers of the time of the authors' code (4.46), and nothing of ZipAR.
"""

import argparse
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCAB_SIZE, FIRST, CODES = 171392, 155000, 16384
DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "model_parallel_size": 1,
    "mask_image_logits": False,
    "attn_implementation": "eager",
}
IMAGE_TOKENIZER = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": [1, 1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "in_channels": 3,
    "resolution": 64,
    "z_channels": 4,
    "double_z": False,
}
WORDS = {word: 100 + i for i, word in enumerate(["a", "red", "fox", "in", "the", "snow", "bird"])}
PROMPT = [151645, 100, 101, 102, 171384]
ROWS, COLUMNS = 8, 4
GUIDANCE = 4.0


def vocabulary() -> dict[str, int]:
    """The names that the authors' code asks for, at the ids that it has in numbers."""
    names = ["<racm3:break>", "<eoss>", *(f"<reserved{number:05}>" for number in (8796, 8797, 8798, 8799))]
    names += [f"<reserved{8800 + count:05}>" for count in range(1, 65)]
    special = {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<reserved08706>": 171384}
    return special | {name: 151665 + i for i, name in enumerate(names)}


def stand_in(name: str, **held: object) -> None:
    """A module in place of one that is imported, and of which nothing is run."""
    module = types.ModuleType(name)
    vars(module).update(held)
    sys.modules[name] = module


class Names:
    """In place of the authors' item processor, which downloads the published tokenizer and image tokenizer."""

    def __init__(self, **settings: object) -> None:
        self.names = {token: name for name, token in vocabulary().items()}

    def id2token(self, token: torch.Tensor) -> str:
        return self.names[int(token)]


def import_authors(clone: Path) -> types.SimpleNamespace:
    """What is run of the authors' code, without the data sets, the training and the CUDA device that it asks for."""
    import transformers.generation.logits_process  # noqa: F401  # before the stand-ins, which it would look for
    from lumina_mgpt import OnCPU

    sys.path[:0] = [str(clone / "lumina_mgpt"), str(clone)]
    stand_in("xllmx.data.data_reader", read_general=None)
    stand_in("pytorch_lightning", LightningModule=torch.nn.Module)
    stand_in("sentencepiece", SentencePieceProcessor=None)
    stand_in("torchvision", transforms=None)

    import inference_solver
    from data import convertsation, item_processor
    from model import chameleon
    from movqgan.models import vqgan

    inference_solver.torch, inference_solver.FlexARItemProcessor = OnCPU(), Names
    return types.SimpleNamespace(
        solver=inference_solver,
        items=item_processor,
        conversation=convertsation.Conversation,
        chameleon=chameleon,
        vqgan=vqgan,
    )


@torch.inference_mode()
def record(authors: types.SimpleNamespace) -> dict[str, torch.Tensor]:
    from lumina_mgpt import fill

    found = {}
    for side in (512, 768):
        sizes = authors.items.generate_crop_size_list((side // 32) ** 2, 32)
        found[f"sizes.{side}"] = torch.tensor(sizes, dtype=torch.int16)  # width, height

    conversation = authors.conversation()
    conversation.load_qas([["Generate it", None]])
    found["conversation"] = torch.tensor(list(conversation.get_prompt().encode()), dtype=torch.uint8)

    names = vocabulary()
    start, end, newline = (names[name] for name in ("<racm3:break>", "<eoss>", "<reserved08799>"))
    header = [start, *(names[f"<reserved{8800 + tokens // 4:05}>"] for tokens in (ROWS, COLUMNS))]
    config = authors.chameleon.ChameleonConfig(**DECODER, vocabulary_map=names)
    model = fill(authors.chameleon.ChameleonForConditionalGeneration(config), 0, "vqmodel")
    ends = {"image_start_token_id": start, "image_end_token_id": end, "image_next_line_token_id": newline}
    guidance = authors.solver.LLMImageStartTriggeredUnbatchedClassifierFreeGuidanceLogitsProcessor(
        GUIDANCE, model, **ends, patch_size=32, target_size=768
    )
    constraint = authors.solver.MultiModalLogitsProcessor(**ends, patch_size=32, voc_size=VOCAB_SIZE, target_size=768)
    ids = torch.tensor([PROMPT + header])
    while ids[0, -1] != end:
        logits = model(input_ids=ids).logits
        scores = constraint(ids, guidance(ids, logits[:, -1]))
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
    first = len(PROMPT) + len(header)
    found["ids"] = ids[0].to(torch.int32)
    found["logits"] = logits[0, first - 1 :: 7, FIRST : FIRST + CODES : 256].contiguous()
    image = ids[0, first:-1].view(ROWS, COLUMNS + 1)[:, :-1] - FIRST
    found["codes"] = image.to(torch.int16)

    movqgan = fill(authors.vqgan.MOVQ(IMAGE_TOKENIZER, CODES, 4), 1, "encoder")
    shapes = {name: value.shape for name, value in movqgan.state_dict().items() if "encoder" not in name}
    found |= {f"movqgan.{name}": torch.tensor(shape, dtype=torch.int16) for name, shape in shapes.items()}
    codes = found["codes"][None, :2, :3].long()
    found["pixels"] = movqgan.decode_code(codes, 2, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the authors' repository")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    args = parser.parse_args()
    save_file(record(import_authors(args.reference)), args.out)


if __name__ == "__main__":
    main()
