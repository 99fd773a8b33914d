"""Puts the trained parts together: the checkpoint directory that ships in the package."""

import json
import shutil
from pathlib import Path

import torch

import reading
from clips import scenes, text
from clips.decoder import untrained
from clips.image_tokenizer import CONFIG as IMAGE_TOKENIZER
from emoji.export import LICENCES
from zipar.checkpoints.tuned import FILE
from zipar.conversion.llamagen import write
from zipar.decoding.sampling import Sampling
from zipar.image_tokenizers.vq import VQModel
from zipar.models.clips import Clips
from zipar.prompts import PromptVocabulary

STRATEGY = "jacobi:64"
"""Of the fewest passes by docs/video.md, and lossless."""


def main() -> None:
    parser = scenes.parser(__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--temperature", type=float, default=0.6)
    args = parser.parse_args()

    tokenizer = reading.tokenizer(text.vocabulary())
    trained = untrained(len(tokenizer))
    # the averaged weights of the newest step, whether the training is done or still goes on
    newest = next(path for name in ("decoder_own", "decoder") if (path := args.build / f"{name}.pt").exists())
    trained.load_state_dict(torch.load(newest, weights_only=True)["average"])
    image_tokenizer = VQModel(IMAGE_TOKENIZER)
    image_tokenizer.load_state_dict(torch.load(args.build / "image_tokenizer_final.pt", weights_only=True))
    model = Clips(
        trained.decoder,
        image_tokenizer,
        trained.text_encoder,
        tokenizer,
        Sampling(guidance_scale=args.guidance_scale, temperature=args.temperature),
        PromptVocabulary(**text.vocabulary()),
        fps=scenes.FPS,
    )
    write(model, args.output, torch.bfloat16)
    (args.output / FILE).write_text(json.dumps({"strategy": STRATEGY}) + "\n", encoding="utf-8")
    shutil.copy(LICENCES, args.output / "ARTWORK.md")
    if (args.build / "judge").exists():
        shutil.copytree(args.build / "judge", args.output / "judge")
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{args.output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
