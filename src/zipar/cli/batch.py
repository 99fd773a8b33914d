"""``zipar batch``: a file of prompts to a directory of images."""

import re
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from zipar.arguments import shown
from zipar.cli import options, outputs
from zipar.cli.terminal import orderly
from zipar.errors import ZipARError, reason
from zipar.serving import torchrun


def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS.jsonl",
            help='A line for each image, such as {"id": "fox-1", "prompt": "a fox", "seed": 7}.',
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory: ID.png for each line, manifest.jsonl.")],
    model: options.Model = "emoji",
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            "-s",
            metavar="NAME[:NUMBER...]",
            help="Such as zipar:8.",
            show_default=f"what `zipar tune` chose, else {options.DEFAULT_STRATEGY}",
        ),
    ] = None,
    size: options.Size = None,
    dtype: options.WeightType = None,
    quantize: options.Quantize = None,
    device: options.Device = None,
    cuda_graphs: options.CudaGraphs = True,
    rows: options.Rows = 8,
    longest_prompt: options.LongestPrompt = 256,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only each N-th line, from the I-th on, 1/N to N/N: of an array of Slurm's jobs, numbered from 1, "
            "$SLURM_ARRAY_TASK_ID/N.",
            show_default=False,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed when this was run before.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**62,
            metavar="NUMBER",
            help="Of lines without one: that of line 1, from which they count up.",
            rich_help_panel="Sampling",
        ),
    ] = 0,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: options.NegativePrompt = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    ray: options.Ray = False,
    ray_address: options.RayAddress = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65536,
            metavar="NUMBER",
            help="Processes with a model each.",
            show_default="one a GPU, or one a CPU where there is none",
            **options.RAY,
        ),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Paint a file of prompts, each once, in lanes that are kept full. Needs the extra zipar-torch\\[serve].

    Lines may have the fields of the images API, for which the options are defaults. Run again after whatever stopped
    it, it goes on where it was. Exits with 0 once all images are there, with 1 if some failed, of which manifest.jsonl
    tells why.
    """
    pixels = options.parse_size(size)
    asked = {
        "strategy": strategy,
        "size": pixels and f"{pixels[1]}x{pixels[0]}",
        "guidance_scale": guidance_scale,
        "negative_prompt": None if negative_prompt is None else options.as_text(negative_prompt),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    defaults = {name: value for name, value in asked.items() if value is not None}
    part = _shard(shard)
    if workers and not ray:
        raise ZipARError(f"--workers {workers} are of a Ray cluster: add --ray")
    if ray:
        torchrun.check_without_ray()
    outputs.check_directory(out)
    try:
        from zipar.serving import shards
        from zipar.serving.batch import Recipe, finished
        from zipar.serving.folder import Folder, Manifest
        from zipar.serving.lines import PromptFile

        if ray:
            from zipar.serving import cluster
    except ImportError as error:
        extra = "ray" if ray else "serve"
        raise ZipARError(f"this needs more packages ({reason(error)}): pip install 'zipar-torch[{extra}]'") from error
    from zipar.cli import session
    from zipar.cli.progress import counter

    session.hush()
    recipe = Recipe(
        name=model,
        model=session.anywhere(model),
        out=out.resolve(),
        dtype=dtype and dtype.value,
        quantize=quantize and quantize.value,
        device=device,
        cuda_graphs=cuda_graphs,
        tensor_parallel=torchrun.several(),
        rows=rows,
        longest_prompt=longest_prompt,
        defaults=defaults,
        seed=seed,
    )
    if torchrun.follows():
        shards.follow(lambda: [recipe.served()])
        return
    lines = PromptFile(prompts, part)
    ids = lines.check()
    folder = Folder(out)
    with orderly(), shards.leading() as leader, Manifest(folder, part, retry_failed) as manifest:
        left = (line for line in lines if line.id not in manifest.done)
        if count := len(ids - manifest.done):
            with (
                counter(count, quiet) as show,
                session.enough_memory(),
                cluster.workers(recipe, ray_address, workers) if ray else recipe.started(leader) as make,
                closing(finished(make, left)) as records,
            ):
                for record in records:
                    manifest.add(record)
                    folder.forget(record["id"])
                    show("painting", 1)
        folder.tidy()
        elsewhere = manifest.elsewhere & ids
        if not quiet:
            failed = f", {manifest.failed} failed: see {manifest.path}" if manifest.failed else ""
            failed += f", {len(elsewhere)} failed in other shards" if elsewhere else ""
            print(f"{out}: {manifest.made} images{failed}")
        raise typer.Exit(1 if manifest.failed or elsewhere else 0)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ZipARError(f"shard {shown(text)} is none: use 1/N to N/N, such as 3/8")
    return int(found[1]), int(found[2])
