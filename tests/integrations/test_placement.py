"""Models in half precision, scattered, compiled and sharded: accelerated, they make the images of the plain model.

Those of the plain ones are compared with transformers' own and with the authors' in the tests beside this one. Batches
with sharded ones are compared with the pipeline's.
"""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import zipar


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case, dtype):
    model = case.load(dtype=dtype)
    found = case.images(model)
    assert model.dtype == dtype
    visual = case.visual(case.expected)
    assert case.visual(found).equal(visual)
    assert found[~visual].equal(case.expected[~visual])
    # tokens follow others once one differs, where two were about as likely; noise would agree on one in a codebook
    assert (found == case.expected)[visual].float().mean() > 0.07


def test_layers_embeddings_and_head_on_disk(case, tmp_path):
    pytest.importorskip("accelerate")
    places = {}
    for name, module in case.plain.named_modules():
        inside = any(name.startswith(f"{place}.") for place in places)
        if re.search(r"(layers\.1|embed_tokens|generation_embeddings|generation_head|lm_head)$", name):
            places[name] = "disk"
        elif not inside and [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            places[name] = "cpu"
    model = case.load(device_map=places, offload_folder=tmp_path)
    assert model.get_input_embeddings().weight.is_meta  # until it is used
    assert case.images(model).equal(case.expected)


def test_a_compiled_model(case):
    compiled = torch.compile(case.load(), backend="eager")
    assert case.images(compiled).equal(case.expected)


def test_a_compiled_decoder(case):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = case.load()
    places = {"janus": "language_model", "emu3": "text_model", "glm_image": "language_model"}
    holder, name = (model.model, places[case.family]) if case.family in places else (model, "model")
    decoder = getattr(holder, name)
    decoder.layers, decoder.config.num_hidden_layers = decoder.layers[:1], 1  # compilation takes its time
    expected = case.images(model)
    setattr(holder, name, torch.compile(decoder, backend="eager"))
    assert case.images(model).equal(expected)
    grids = 2 if case.family == "glm_image" else 1
    assert 1 <= torch._dynamo.utils.counters["frames"]["ok"] <= 3 * grids  # a prefill, passes of one query, of several


PROCESS = """
import os, sys
import torch, torch.distributed, transformers
from transformers.distributed import DistributedConfig
import zipar
from zipar.cli.main import main
from zipar.decoding.cache import SlotCacheLayer

heads, update = set(), SlotCacheLayer.update
def recorded(layer, key, value):
    found = update(layer, key, value)
    heads.add(layer.keys.shape[1])
    return found
SlotCacheLayer.update = recorded
new = hasattr(DistributedConfig(), "tp_plan")
asked = {"distributed_config": DistributedConfig(tp_plan="auto")} if new else {"tp_plan": "auto"}
saved, batch = torch.load(sys.argv[1])
for kind, directory, arguments, expected, held in saved:
    model = getattr(transformers, kind).from_pretrained(directory, **asked)
    assert hasattr(model.lm_head.weight, "placements") == new, kind  # older versions shard no head of these
    heads.clear()
    with zipar.accelerate(model, zipar.ZipAR(3)):
        assert model.generate(**arguments).equal(expected), kind
        torch.manual_seed(0)
        drawn = model.generate(**arguments | {"do_sample": True})
    assert heads == {held}, (kind, heads)
    everywhere = [torch.empty_like(drawn) for _ in range(2)]
    torch.distributed.all_gather(everywhere, drawn)
    assert everywhere[0].equal(everywhere[1]), kind
torch.distributed.barrier()
heads.clear()
follows = torch.distributed.get_rank() > 0
for refused in ("--quantize", "int8"), ("--model", "emoji"):
    assert main([*batch, *refused]) == (0 if follows else 2)
for _ in range(2):  # the second time there is nothing left to do
    assert main(batch) == (0 if follows else 1)  # a line is bad
assert heads == {1}
sys.stderr.flush()
os._exit(0)  # now and then, threads of torch abort an orderly exit
"""


LINES = {
    "fox": {"prompt": "a red fox", "seed": 7},
    "long": {"prompt": "a fox " * 20},
    "birds": {"prompt": "two small birds", "seed": 8, "strategy": "jacobi:4", "negative_prompt": "blurry"},
    "snow": {"prompt": "the snow", "seed": 9, "guidance_scale": 2.0, "temperature": 0.5},
}


def test_tensor_parallelism(case_of, tmp_path):
    pytest.importorskip("accelerate")  # transformers loads no sharded model without it
    assert not case_of("lumina_mgpt").plain.supports_tp_plan  # or else it belongs below, and into the README
    # of the two that the models have: transformers shards the layers, but of Emu3 the ends alone
    held = {"janus": 1, "emu3": 2, "emu3_5": 1, "glm_image": 1}
    saved = []
    for family, heads in held.items():
        case = case_of(family)
        saved.append((case.kind.__name__, str(case.directory), case.arguments, case.expected, heads))
    (tmp_path / "process.py").write_text(PROCESS)
    lines, out, model = tmp_path / "prompts.jsonl", tmp_path / "out", str(case_of("janus").directory)
    lines.write_text("".join(json.dumps({"id": name} | line) + "\n" for name, line in LINES.items()))
    batch = ["batch", str(lines), str(out), "--model", model, "-s", "zipar:3", "--longest-prompt", "20", "-q"]
    torch.save((saved, batch), tmp_path / "saved.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [tmp_path / "process.py", tmp_path / "saved.pt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 2
    assert told[0].startswith("error: quantize 'int8' is not possible with tensor parallelism")
    assert "holds a model that has no plan for tensor parallelism" in told[1]
    records = {record["id"]: record for record in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}
    assert records.keys() == LINES.keys()
    assert "is too long" in records["long"]["error"]
    plain = zipar.pipeline(model, dtype="float32", device="cpu")
    for name, line in LINES.items():
        if name != "long":
            made = plain(**{"strategy": "zipar:3"} | line)
            assert np.array_equal(Image.open(out / f"{name}.png"), made.images[0])
            assert records[name]["passes"] == made.stats.forward_passes
