"""What a model's prompts may say, for models that know: a closed vocabulary, kept beside the checkpoint."""

import difflib
import itertools
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from zipar.errors import ZipARError


@dataclass(frozen=True)
class PromptVocabulary:
    """The attributes that prompts may mention, their values, and the phrases that mean each value."""

    attributes: dict[str, dict[str, list[str]]]
    required: list[str]
    fillers: list[str]
    example: str
    numbered: str | None = None
    """An attribute whose values, in order, a prompt may also give by number, from 0 on."""

    @classmethod
    def load(cls, path: Path) -> "PromptVocabulary":
        """Read ``prompts.json``: attributes -> values -> phrases, and the names of the required attributes."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def parse(self, prompt: str) -> dict[str, str]:
        """Attribute -> value, for each attribute that ``prompt`` mentions; longer phrases win over shorter.

        A prompt that is nothing but a number stands for the ``numbered`` attribute's value of that place.
        """
        if (by_number := self._by_number(prompt)) is not None:
            return by_number
        text = f" {' '.join(_words(prompt))} "
        found = {}
        for phrase, attribute, value in self._phrases():
            if attribute not in found and f" {phrase} " in text:
                found[attribute] = value
                text = text.replace(f" {phrase} ", " | ", 1)
        return found

    def unknown(self, prompt: str) -> list[str]:
        """Words of ``prompt`` that mean nothing to the model, in order."""
        if self._by_number(prompt) is not None:
            return []
        known = {word for phrase, _, _ in self._phrases() for word in phrase.split()} | set(self.fillers)
        return [word for word in _words(prompt) if word not in known]

    def check(self, prompt: str) -> None:
        """Raise where a required attribute is missing.

        Raises:
            ZipARError: the message lists values that look like the words of ``prompt``.
        """
        missing = [name for name in self.required if name not in self.parse(prompt)]
        if not missing:
            return
        phrases = {phrase: value for phrase, attribute, value in self._phrases() if attribute == missing[0]}
        words = _words(prompt)
        pairs = [" ".join(pair) for pair in itertools.pairwise(words)]
        close = [match for word in [*words, *pairs] for match in difflib.get_close_matches(word, phrases, 3)]
        hint = ", ".join(dict.fromkeys(phrases[match] for match in close))
        known = len(set(phrases.values()))
        number = f" or is a number, 0 to {known - 1}" if missing[0] == self.numbered else ""
        raise ZipARError(
            f"no {missing[0]} that the model knows in the prompt {prompt!r}: "
            + (f"did you mean {hint}? " if hint else "")
            + f"A prompt reads like {self.example!r}{number}; `zipar prompts` lists the {known} known"
        )

    def sample(self, seed: int) -> str:
        """A prompt like the example, with values drawn for the attributes that the example names."""
        draw, named = random.Random(seed), self.parse(self.example)
        drawn = {name: draw.choice(list(values.values()))[0] for name, values in self.attributes.items()}
        mentions = [(phrase, name) for phrase, name, value in self._phrases() if named.get(name) == value]
        if not mentions:
            return self.example
        between = r"\W+"
        patterns = "|".join(f"({phrase.replace(' ', between)})" for phrase, _ in mentions)
        return re.sub(
            rf"\b(?:{patterns})\b",
            lambda found: drawn[mentions[(found.lastindex or 0) - 1][1]],
            self.example,
            flags=re.IGNORECASE,
        )

    def _by_number(self, prompt: str) -> dict[str, str] | None:
        digits = prompt.strip()
        if self.numbered is None or not digits.isdecimal() or len(digits) > 9:
            return None
        values = list(self.attributes[self.numbered])
        return {self.numbered: values[int(digits)]} if int(digits) < len(values) else None

    def _phrases(self) -> list[tuple[str, str, str]]:
        phrases = [
            (" ".join(_words(phrase)), attribute, value)
            for attribute, values in self.attributes.items()
            for value, meanings in values.items()
            for phrase in meanings
        ]
        return sorted(phrases, key=lambda entry: -len(entry[0]))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
