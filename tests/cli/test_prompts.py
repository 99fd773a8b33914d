import dataclasses
import json
import shutil


def test_a_vocabulary(zipar, text_model, plain):
    code, out, err = zipar("prompts", "--model", text_model)
    assert (code, err) == (0, "")
    assert "A prompt reads like: a fox on a blue background" in out
    assert "object (required) fox (red fox) apple background (optional) blue background" in plain(out)


def test_names_of_classes(zipar, class_models, class_names, tmp_path, plain):
    shutil.copytree(class_models[10], tmp_path / "named")
    (tmp_path / "named" / "prompts.json").write_text(json.dumps(dataclasses.asdict(class_names)))
    code, out, err = zipar("prompts", "--model", "named")
    assert (code, err) == (0, "")
    assert "A prompt reads like: T-shirt Or it is the number of a class, counted from 0" in plain(out)
    assert all(name in out for name in class_names.attributes["class"])
    for prompt in ("Ankle boot", "9"):
        code, _, err = zipar("generate", prompt, "--model", "named")
        assert (code, "warning" in err.lower()) == (0, False)
    code, _, err = zipar("generate", "an ankle bot", "--model", "named")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean ankle boot" in err


def test_any_sentence(zipar, text_model, tmp_path):
    shutil.copytree(text_model, tmp_path / "free")
    (tmp_path / "free" / "prompts.json").unlink()
    code, out, _ = zipar("prompts", "--model", "free")
    assert code == 0
    assert "any sentence" in out


def test_classes(zipar, class_models):
    assert "0 to 9" in zipar("prompts", "--model", class_models[10])[1]
    lines = zipar("prompts", "--model", class_models[1000])[1].splitlines()
    assert len(lines) == 1001
    assert lines[2].split(maxsplit=1) == ["1", "goldfish, Carassius auratus"]
    assert zipar("generate", "goldfish", "--model", class_models[1000])[0] == 0


def test_no_such_model(zipar):
    code, out, err = zipar("prompts", "--model", "nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)
