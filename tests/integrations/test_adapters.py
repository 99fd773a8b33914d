"""Adapters of peft, as they are and unmerged: the images are those of the model that peft merges them into."""

import copy
import warnings

import pytest
import torch

import zipar

peft = pytest.importorskip("peft")

LAYERS = ["q_proj", "v_proj", "down_proj"]
SQUARE = ["q_proj", "o_proj"]
ADAPTERS = {
    "LoRA": ("LoraConfig", {"target_modules": LAYERS}),
    "LoRA of head and embeddings": ("LoraConfig", {"target_modules": [*LAYERS, "lm_head", "embed_tokens"]}),
    "a trained head": ("LoraConfig", {"target_modules": LAYERS, "modules_to_save": ["lm_head"]}),
    "DoRA": ("LoraConfig", {"target_modules": LAYERS, "use_dora": True}),
    "PiSSA": ("LoraConfig", {"target_modules": LAYERS, "init_lora_weights": "pissa"}),
    "AdaLoRA": ("AdaLoraConfig", {"target_modules": LAYERS, "total_step": 10}),
    "BOFT": ("BOFTConfig", {"target_modules": SQUARE, "boft_block_size": 4}),
    "C3A": ("C3AConfig", {"target_modules": SQUARE, "block_size": 4}),
    "DeLoRA": ("DeloraConfig", {"target_modules": LAYERS}),
    "FourierFT": ("FourierFTConfig", {"target_modules": LAYERS, "n_frequency": 10}),
    "GraLoRA": ("GraloraConfig", {"target_modules": SQUARE, "gralora_k": 2}),
    "HRA": ("HRAConfig", {"target_modules": LAYERS}),
    "IA3": ("IA3Config", {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "LN tuning": ("LNTuningConfig", {"target_modules": ["input_layernorm", "post_attention_layernorm"]}),
    "LoHa": ("LoHaConfig", {"target_modules": LAYERS}),
    "LoKr": ("LoKrConfig", {"target_modules": LAYERS}),
    "MiSS": ("MissConfig", {"target_modules": LAYERS, "r": 4}),
    "OFT": ("OFTConfig", {"target_modules": LAYERS, "oft_block_size": 4, "r": 0}),
    "OSF": ("OSFConfig", {"target_modules": LAYERS}),
    "PVeRA": ("PveraConfig", {"target_modules": LAYERS, "r": 4}),
    "RandLoRA": ("RandLoraConfig", {"target_modules": LAYERS}),
    "RoAd": ("RoadConfig", {"target_modules": LAYERS, "group_size": 8}),
    "SHiRA": ("ShiraConfig", {"target_modules": LAYERS, "r": 4}),
    "trained tokens": ("TrainableTokensConfig", {"target_modules": ["embed_tokens"]}),
    "VB-LoRA": ("VBLoRAConfig", {"target_modules": SQUARE, "vector_length": 8}),
    "VeRA": ("VeraConfig", {"target_modules": LAYERS, "r": 4}),
    "WaveFT": ("WaveFTConfig", {"target_modules": LAYERS, "n_frequency": 10}),
}


HEADS = {"LoRA of head and embeddings", "a trained head", "trained tokens"}
EVERYWHERE = {
    "emu3": {*HEADS, "DoRA", "HRA"},
    "emu3_5": {*HEADS, "LN tuning", "OFT"},
    "lumina_mgpt": {*HEADS, "DoRA", "LN tuning"},
    "glm_image": {*HEADS, "HRA", "OFT"},
}
"""Those that the other families are tried with: their heads and embeddings, and by turns each way to wrap a layer."""


def disturb(model):
    """Training, in a manner."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)
    model.eval()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter(case, adapter):
    if case.family != "janus" and adapter not in EVERYWHERE[case.family]:
        return
    name, settings = ADAPTERS[adapter]
    if adapter == "trained tokens":
        settings = settings | {"token_indices": case.arguments["input_ids"].unique().tolist()}
    model = case.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, getattr(peft, name)(**settings))
    disturb(wrapped)
    found = case.images(model)
    assert case.images(copy.deepcopy(wrapped).merge_and_unload()).equal(found)
    assert not found.equal(case.expected)


@pytest.mark.parametrize("family", ["llamagen", "janus"])
def test_an_adapter_in_a_pipeline(family, checkpoints):
    """Its weights lie packed until peft asks for them."""
    settings = {"strategy": "zipar:1", "temperature": 0}
    pipe = zipar.pipeline("emoji" if family == "llamagen" else checkpoints(family))
    decoder, layers = pipe.model.decoder, ["wqkv", "w2", "output"] if family == "llamagen" else LAYERS
    before = pipe("a red fox", **settings).tokens
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=layers, use_dora=True), decoder)
    disturb(decoder)
    found = pipe("a red fox", **settings).tokens
    assert (found != before).any()
    for module in [*decoder.modules()]:
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    assert (pipe("a red fox", **settings).tokens == found).all()
