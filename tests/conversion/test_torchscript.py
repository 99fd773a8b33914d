import io
import pickle
import zipfile

import pytest
import torch
from torch import nn

import zipar
from zipar.conversion.torchscript import read_torchscript


class Network(nn.Module):
    """Tensors of several formats: strided, part of a storage, buffers, and one at the end of a longer path."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 2, (1, 3, 1)), nn.Identity())
        self.narrow = nn.Linear(2, 3).bfloat16()
        self.register_buffer("levels", torch.tensor([8, 5], dtype=torch.int32))
        self.register_buffer("turned", torch.arange(12.0).view(3, 4)[1:].t(), persistent=False)

    def forward(self, x):
        return self.first(x) * self.levels.sum() * self.turned.sum(), self.narrow(x.flatten()[:2].bfloat16())


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    script = torch.jit.trace(Network().eval(), torch.zeros(1, 1, 2, 3, 2))
    torch.jit.save(script, tmp_path / "network.jit")
    return tmp_path / "network.jit"


def rewritten(path, pickled):
    """``path`` with another pickle in it."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)


def test_tensors_are_those_that_pytorch_loads(saved, monkeypatch):
    expected = torch.jit.load(saved).state_dict()
    monkeypatch.setattr(torch._C, "import_ir_module", None)  # what compiles an archive's code
    held = read_torchscript(saved)
    assert held.keys() == expected.keys() > {"first.0.weight", "narrow.bias", "levels", "turned"}
    for name, value in expected.items():
        assert held[name].dtype == value.dtype
        assert held[name].equal(value)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["builtins.exec", "os.system", "torch.load", "torch.hub.load", "collections.Counter"])
def test_a_pickle_that_names_anything_else_runs_nothing(saved, tmp_path, name):
    module, _, function = name.rpartition(".")
    call = f"c{module}\n{function}\n(V{tmp_path / 'ran'}\ntR.".encode()
    rewritten(saved, call)
    with pytest.raises(zipar.ZipARError, match=f"network.jit was not opened, for it wants to run {name}: get the pub"):
        read_torchscript(saved)


def test_code_hidden_in_a_pickle_is_not_run(saved, tmp_path):
    rewritten(saved, pickle.dumps(Malicious(exec, f"open({str(tmp_path / 'ran')!r}, 'w')"), protocol=2))
    with pytest.raises(zipar.ZipARError, match=r"wants to run __builtin__.exec"):
        read_torchscript(saved)
    assert not (tmp_path / "ran").exists()


def test_attributes_that_a_pickle_sets_stay_in_it(saved):
    """Of the stand-ins, and of what makes tensors."""
    good = saved.read_bytes()
    for target in (b"c__torch__\nModule\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"):
        rewritten(saved, target + b"(N}V__defaults__\n(I1\ntsV__init__\nNstb.")
        with pytest.raises(zipar.ZipARError, match=r"network.jit is damaged"):
            read_torchscript(saved)
        saved.write_bytes(good)
        assert len(read_torchscript(saved)) == 6


def damage(path, how):
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-3000])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no archive":
        torch.save({}, path, _use_new_zipfile_serialization=False)
    elif how == "weights":
        torch.save({"a": torch.zeros(2)}, path)
    elif how == "reaches too far":
        with zipfile.ZipFile(path) as archive:
            (pickled,) = (archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
        assert pickled.count(b"(K\x04K\x02t") == 1
        rewritten(path, pickled.replace(b"(K\x04K\x02t", b"(K\x04K\x7ft"))
    else:
        buffer = io.BytesIO()
        pickle.dump({"a": 1}, buffer)
        rewritten(path, buffer.getvalue())


@pytest.mark.parametrize("how", ["cut", "empty", "no archive", "weights", "reaches too far", "no module"])
def test_damaged_files_are_named(saved, how):
    damage(saved, how)
    with pytest.raises(zipar.ZipARError, match=r"network.jit is damaged, or is no TorchScript: fetch it again"):
        read_torchscript(saved)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(zipar.ZipARError, match=r"network.jit is missing"):
        read_torchscript(tmp_path / "network.jit")
