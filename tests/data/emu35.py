"""Records what the authors' code of Emu3.5 computes, for tests/models/test_emu35.py and its conversion to compare with.

The models are tiny and their weights are made up from a seed, so that the tests can make up the same ones; what is
recorded is what the authors' tokenizer, decoder, guidance, constraints and image decoder do with them, and how their
tensors are named and shaped.

    git clone https://github.com/baaivision/Emu3.5
    python tests/data/emu35.py --reference Emu3.5 tests/data/emu35.safetensors

It needs torch, tiktoken, einops, omegaconf, and the transformers that the authors ask for (4.48.2); nothing of ZipAR.
"""

import argparse
import base64
import json
import os
import random
import sys
import tempfile
import types
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent))
from lumina_mgpt import fill, made_up

CODES = 64
NAMED = ["<|image token|>", "<|image start|>", "<|image end|>"]
VISION_WORDS = [*NAMED, *(f"<|visual token {code:06}|>" for code in range(CODES))]


def ranked_words() -> list[bytes]:
    """All bytes, printable ones first, as published; then longer words, many of which can be merged in several ways."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    words = [bytes([byte]) for byte in [*printable, *(byte for byte in range(256) if byte not in printable)]]
    rng = random.Random(0)
    pieces = [b"a", b"b", b"c", b" ", b"s", "é".encode()[:1], "é".encode()[1:]]
    while len(words) < 320:
        word = rng.choice(pieces) + rng.choice(pieces)
        if word not in words and len(word) < 6:
            words.append(word)
            pieces.append(word)
    return words


FIRST_NAMED = len(ranked_words())
"""The id of <|endoftext|>; two more words, 205 extras and ``VISION_WORDS`` follow."""
_PLACES = {"PAD": 0, "EOL": 203, "EOF": 204, "BOS": 206, "EOS": 207, "IMG": 208, "BOI": 209, "EOI": 210}
IDS = {name: FIRST_NAMED + place for name, place in _PLACES.items()}
FIRST = IDS["EOI"] + 1
"""The id of code 0."""
DECODER = {
    "vocab_size": FIRST + CODES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 400,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-6,
    **{f"{name.lower()}_token_id": token for name, token in IDS.items()},
}
IMAGE_TOKENIZER = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": [1, 1, 1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "in_channels": 3,
    "resolution": 64,
    "z_channels": 8,
    "double_z": False,
    "dropout": 0.0,
}
EMBED_DIM = 256
PARTS = ("decoder", "image_tokenizer")
PROMPTS = ["abacus cab", "a base é, sacs's 12 \n bcc <|visual token 000003|>", ""]
ROWS, COLUMNS = 4, 6
GUIDANCE, TOP_K = 3.0, 12
SCORED = (0, 1, 5, 13, 23)
"""Of the visual tokens, those whose scores are recorded."""


RECORDED = Path(__file__).with_suffix(".safetensors")


def published(part: str) -> dict[str, torch.Tensor]:
    """The weights of the "decoder" or the "image_tokenizer", named as the authors name them."""
    with safe_open(RECORDED, "pt") as file:
        shapes = json.loads(file.metadata()[part])
    return made_up({name: torch.Size(shape) for name, shape in shapes.items()}, PARTS.index(part))


def write_words(directory: Path) -> None:
    """The two files of the published tokenizer."""
    lines = [f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(ranked_words())]
    (directory / "emu3.tiktoken").write_text("".join(lines))
    (directory / "emu3_vision_tokens.txt").write_text("\n".join(VISION_WORDS) + "\n")


def import_authors(clone: Path) -> types.SimpleNamespace:
    """What is run of the authors' code, with the ids of the tiny vocabulary in place of theirs."""
    sys.path.insert(0, str(clone))
    from configs import example_config_t2i
    from src.emu3p5 import Emu3Config, Emu3ForCausalLM
    from src.tokenizer_emu3_ibq import tokenization_emu3
    from src.utils import generation_utils, logits_processor
    from src.vision_tokenizer import IBQ

    tokenization_emu3.SPECIAL_START_ID = FIRST_NAMED
    for name in IDS:
        setattr(logits_processor, name, IDS[name])
    logits_processor.BOV = FIRST
    return types.SimpleNamespace(
        config=Emu3Config,
        decoder=Emu3ForCausalLM,
        tokenizer=tokenization_emu3.Emu3Tokenizer,
        generation=generation_utils,
        ibq=IBQ,
        settings=example_config_t2i,
    )


@torch.inference_mode()
def record(authors: types.SimpleNamespace) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        write_words(Path(folder))
        files = [str(Path(folder) / name) for name in ("emu3.tiktoken", "emu3_vision_tokens.txt")]
        tokenizer = authors.tokenizer(files[0], special_tokens_file=files[1])
    for name, word in authors.settings.special_tokens.items():
        setattr(tokenizer, f"{name.lower()}_token", word)

    def read(text: str) -> torch.Tensor:
        return tokenizer.encode(text, return_tensors="pt", add_special_tokens=False)

    settings = authors.settings
    sizes = [[int(side) for side in size.split("*")] for size in settings.aspect_ratios.values() if size]
    found = {"sizes": torch.tensor(sizes), "top_k": torch.tensor(settings.sampling_params["image_top_k"])}
    found["guidance"] = torch.tensor(settings.classifier_free_guidance)
    for number, prompt in enumerate(PROMPTS):
        found[f"prompt.{number}"] = read(settings.template.format(question=prompt))[0]
    found["unconditional"] = read(settings.unc_prompt)[0]

    config = authors.config(**DECODER, attn_implementation="eager")
    model = fill(authors.decoder(config), 0)
    settings.target_height, settings.target_width = ROWS, COLUMNS
    settings.classifier_free_guidance = GUIDANCE
    settings.sampling_params |= {"image_top_k": TOP_K, "do_sample": False}
    settings.special_token_ids = IDS
    start = torch.cat([read(settings.template.format(question=PROMPTS[0])), torch.tensor([[IDS["BOI"]]])], 1)
    process = authors.generation.build_logits_processor(settings, read(settings.unc_prompt), model, tokenizer)
    ids, scores = start, []
    while ids[0, -1] != IDS["EOI"]:
        logits = model(input_ids=ids).logits
        scores.append(process(ids, logits[:, -1].clone()))
        ids = torch.cat([ids, scores[-1].argmax(-1, keepdim=True)], dim=1)
    settings.sampling_params["max_new_tokens"] = ids.shape[1] - start.shape[1]
    generated = authors.generation.non_streaming_generate(
        settings, model, tokenizer, start, read(settings.unc_prompt), None
    )
    assert generated.tolist() == ids[0, start.shape[1] :].tolist()
    found["ids"] = ids[0]
    visual = [place for place in range(ids.shape[1]) if ids[0, place] >= FIRST][-ROWS * COLUMNS :]
    found["logits"] = logits[0, [place - 1 for place in visual], FIRST:].contiguous()
    chosen = [scores[visual[number] - start.shape[1]][0, FIRST:] for number in SCORED]
    found["scores"] = torch.stack(chosen)
    codes = (ids[0, visual] - FIRST).view(ROWS, COLUMNS)
    found["codes"] = codes

    ibq = fill(authors.ibq(IMAGE_TOKENIZER, CODES, EMBED_DIM), 1)
    found["pixels"] = ibq.decode_code(codes[None], shape=(1, ROWS, COLUMNS, EMBED_DIM))[:, :, ::3, ::5].contiguous()
    words = tokenizer.decode(ids[0, start.shape[1] - 1 :].tolist())
    ((kind, image),) = authors.generation.multimodal_decode(words, tokenizer, ibq)
    assert kind == "image"
    found["image"] = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(16 * ROWS, 16 * COLUMNS, 3)
    shapes = [{name: list(weight.shape) for name, weight in part.state_dict().items()} for part in (model, ibq)]
    return found, {part: json.dumps(held) for part, held in zip(PARTS, shapes, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="CLONE", help="the authors' repository")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    args = parser.parse_args()
    clone, out = args.reference.resolve(), args.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the authors' configs make folders where they are
        tensors, names = record(import_authors(clone))
        save_file(tensors, out, names)
        os.chdir(out.parent)


if __name__ == "__main__":
    main()
