"""``zipar prompts``: what a model's prompts may say."""

from importlib.resources import files
from typing import TYPE_CHECKING

from zipar.cli import options

if TYPE_CHECKING:
    from zipar.prompts import PromptVocabulary


def prompts(model: options.Model = "emoji") -> None:
    """List what a model knows: the words of its prompts, or its classes."""
    from zipar.models.auto import outline

    outlined = outline(model)
    if outlined.vocabulary is not None:
        _list(outlined.vocabulary)
    elif outlined.wordless:
        print(f"{model} takes no prompt: it goes on from frames (`zipar generate --given FILE`).")
    elif outlined.classes is None:
        print(f'{model} takes any sentence, such as "a red fox in the snow".')
    else:
        names = files("zipar.models").joinpath("imagenet.txt").read_text(encoding="utf-8").splitlines()
        if outlined.classes != len(names):
            print(f"{model} takes the number of a class, 0 to {outlined.classes - 1}.")
            return
        print(f"{model} takes an ImageNet class, by number or by any of its names:")
        for number, name in enumerate(names):
            print(f"{number:5}  {name}")


def _list(vocabulary: "PromptVocabulary") -> None:
    from rich.columns import Columns
    from rich.padding import Padding
    from rich.text import Text

    from zipar.cli.terminal import console

    screen = console()
    screen.print(Text(f"A prompt reads like: {vocabulary.example}"))
    if vocabulary.numbered is not None:
        screen.print(Text(f"Or it is the number of a {vocabulary.numbered}, counted from 0 in this order:"))
    for attribute, values in vocabulary.attributes.items():
        needed = "required" if attribute in vocabulary.required else "optional"
        screen.print(Text(f"\n{attribute}", "bold").append(f" ({needed})", "dim"))
        entries = [
            Text(phrases[0]).append(f" ({', '.join(phrases[1:])})" if phrases[1:] else "", "dim")
            for phrases in values.values()
        ]
        screen.print(Padding(Columns(entries, padding=(0, 3), column_first=True), (0, 0, 0, 2)))
