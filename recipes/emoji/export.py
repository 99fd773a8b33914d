"""Puts the trained parts together: the checkpoint directory that ships in the package."""

import argparse
import shutil
from pathlib import Path

import torch

import reading
from emoji import scenes, text
from emoji.decoder import untrained
from emoji.image_tokenizer import CONFIG as IMAGE_TOKENIZER
from zipar.conversion.llamagen import write
from zipar.decoding.sampling import Sampling
from zipar.image_tokenizers.vq import VQModel
from zipar.models.llamagen import LlamaGen
from zipar.prompts import PromptVocabulary

LICENCES = Path(__file__).parent / "ARTWORK.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--temperature", type=float, default=0.6)
    args = parser.parse_args()

    tokenizer = reading.tokenizer(text.vocabulary())
    trained = untrained(len(tokenizer))
    # the averaged weights of the newest step, whether the training is done or still goes on
    trained.load_state_dict(torch.load(scenes.BUILD / "decoder_own.pt", weights_only=True)["average"])
    image_tokenizer = VQModel(IMAGE_TOKENIZER)
    image_tokenizer.load_state_dict(torch.load(scenes.BUILD / "image_tokenizer_final.pt", weights_only=True))
    model = LlamaGen(
        trained.decoder,
        image_tokenizer,
        trained.text_encoder,
        tokenizer,
        Sampling(guidance_scale=args.guidance_scale, temperature=args.temperature),
        PromptVocabulary(**text.vocabulary()),
    )
    write(model, args.output, torch.bfloat16)
    shutil.copy(LICENCES, args.output / "ARTWORK.md")
    judge = scenes.BUILD / "judge"
    if judge.exists():
        shutil.copytree(judge, args.output / "judge")


if __name__ == "__main__":
    main()
