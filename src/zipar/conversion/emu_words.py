"""The published words and names of Emu3 and Emu3.5, whose tokenizers differ in their visual tokens alone."""

import base64
from pathlib import Path
from typing import Any

from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from zipar.checkpoints.files import check_readable, read_config
from zipar.errors import ZipARError
from zipar.models.emu3 import AFTER_IMAGE, BEFORE_IMAGE, ROW_END

PADDING = "<|endoftext|>"
SPARE = "<|extra_0|>"
SPECIAL = (PADDING, "<|im_start|>", "<|im_end|>", SPARE, *(f"<|extra_{i}|>" for i in range(1, 205)))
"""The words after the ranked ones; those of the vision vocabulary come after them."""

NAMED_IDS = {
    "pad_token_id": PADDING,
    "eol_token_id": ROW_END,
    **dict(zip(("bos_token_id", "boi_token_id", "img_token_id"), BEFORE_IMAGE, strict=True)),
    **dict(zip(("eof_token_id", "eoi_token_id", "eos_token_id"), AFTER_IMAGE, strict=True)),
}
"""What the published config calls them."""


def read_settings(directory: Path, kind: str, wanted: str) -> dict[str, Any]:
    """The ``config.json`` of a directory, which must be of a model of this ``kind``.

    Raises:
        ZipARError: it is missing, or of another model than ``wanted``.
    """
    settings = read_config(directory)
    if settings.get("model_type") != kind:
        raise ZipARError(f"{directory} holds a model of type {settings.get('model_type')!r}: give {wanted}")
    return settings


def read_vocabulary(directory: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary of the published tokenizer, and the merges of its byte pairs, as transformers writes them.

    ``emu3.tiktoken`` ranks words, sequences of bytes in base 64: of two neighbours whose union has a rank, those of
    the least one are merged first. The words of ``emu3_vision_tokens.txt`` are whole.

    Raises:
        ZipARError: a file is missing or damaged.
    """
    ranked, named = directory / "emu3.tiktoken", directory / "emu3_vision_tokens.txt"
    for path in (ranked, named):
        check_readable(path, f"{path} is missing: fetch it from where the model is published")
    try:
        pairs = [line.split() for line in ranked.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(word, validate=True): int(rank) for word, rank in pairs}
        whole = [*SPECIAL, *named.read_text(encoding="utf-8").split("\n")]
    except ValueError as error:
        raise ZipARError(f"{ranked} or {named} is damaged ({error}): fetch them again") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ZipARError(f"{ranked} is damaged: its ranks are not 0 to {len(ranks) - 1}, fetch it again")
    letters = bytes_to_unicode()
    spelt = {word: "".join(letters[byte] for byte in word) for word in ranks}
    merges = [
        (spelt[word[:cut]], spelt[word[cut:]])
        for word in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(word))
        if word[:cut] in ranks and word[cut:] in ranks
    ]
    vocabulary = {spelt[word]: rank for word, rank in ranks.items()}
    for word in filter(None, map(str.strip, whole)):
        vocabulary[word] = len(vocabulary)
    return vocabulary, merges


def check_vocabulary(vocabulary: dict[str, int], settings: dict[str, Any], model: Path) -> None:
    """Raise where the vocabulary is not that of a published config.

    Raises:
        ZipARError: names the first difference.
    """
    for key, word in NAMED_IDS.items():
        if settings.get(key) != vocabulary.get(word):
            raise ZipARError(
                f"{model}: {key} is {settings.get(key)}, but its vocabulary has {word} as {vocabulary.get(word)}: "
                "fetch emu3.tiktoken, emu3_vision_tokens.txt and config.json again"
            )
    if settings.get("vocab_size") != len(vocabulary):
        raise ZipARError(
            f"{model}: vocab_size is {settings.get('vocab_size')}, but its vocabulary has {len(vocabulary)} words: "
            "fetch emu3_vision_tokens.txt and config.json again"
        )
    if settings.get("rope_scaling") is not None:
        raise ZipARError(f"{model} scales its rotary embedding, which no published Emu3 does: it is not supported")


def tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]], **named: str) -> Qwen2Tokenizer:
    """The tokenizer of a vocabulary: the published one splits text and normalises it as that of Qwen2 does."""
    built = Qwen2Tokenizer(
        vocabulary,
        merges,  # type: ignore[arg-type]  # pairs, as it does take them
        bos_token=BEFORE_IMAGE[0],
        eos_token=AFTER_IMAGE[2],
        pad_token=PADDING,
        padding_side="left",
        extra_special_tokens=named,
    )
    first = vocabulary[PADDING]
    built.add_tokens([word for word, i in vocabulary.items() if i >= first], special_tokens=True)
    return built
