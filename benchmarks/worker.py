"""A benchmark's other process, for what cannot share this one: a line of JSON a message, the first one its own."""

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


@contextmanager
def worker(command: Sequence[str | Path]) -> Iterator[tuple[Answer, Callable[[Any], Answer]]]:
    """What a process says of itself, and a function that puts a request to it; it lives as long as the block."""
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def answer() -> Answer:
            line = answers.readline()
            if not line:
                raise SystemExit(f"{' '.join(map(str, command))} gave no answer: see above")
            found: Answer = json.loads(line)
            return found

        def ask(request: Any) -> Answer:
            print(json.dumps(request), file=requests, flush=True)
            return answer()

        yield answer(), ask
