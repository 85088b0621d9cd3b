import json
import os

import keras_hub
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import keras_coda
from keras_coda.conversion import adapter_file
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict
from tests.conversion.models import randomize


def classifier(backbone=None, num_classes=3, seed=1, **settings):
    """A converted classifier, with trained weights that `seed` determines."""
    task = keras_coda.coda_wrap(
        keras_hub.models.BertTextClassifier(
            backbone or bert_backbone(), num_classes=num_classes
        ),
        **{"adapter_dim": 8, **settings},
    )
    for layer in [*task.backbone.trained_layers(), task.output_dense]:
        randomize(layer, seed)
    return task


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "adapter.safetensors"
    classifier(seed=1).save_adapter(path)
    return path


def test_task_round_trip_includes_the_head(path):
    expected = predict(classifier(seed=1), bert_inputs())
    task = classifier(seed=2, reduction_factor=2)
    assert np.abs(predict(task, bert_inputs()) - expected).max() > 1e-2
    task.load_adapter(path)
    assert task.reduction_factor == 4
    assert_close(predict(task, bert_inputs()), expected)


def test_swapping_tasks_on_a_live_model(tmp_path):
    backbone = bert_backbone()
    paths = [tmp_path / "first", tmp_path / "second"]
    outputs = []
    for seed, path in enumerate(paths):
        task = classifier(backbone, seed=seed)
        task.save_adapter(path)
        outputs.append(predict(task, bert_inputs()))
    live = classifier(backbone, seed=7)
    live.fit(bert_inputs(), np.array([0, 1, 2]), verbose=0)
    for index in (0, 1, 0):
        live.load_adapter(paths[index])
        assert_close(predict(live, bert_inputs()), outputs[index])


def test_file_is_small(path):
    with safe_open(path, framework="numpy") as file:
        sizes = {key: file.get_tensor(key).size for key in file.keys()}
    task = classifier()
    trained = sum(
        size for key, size in sizes.items() if not key.startswith("backbone/")
    )
    assert trained == task.trainable_summary(print_fn=str).trainable
    assert (
        max(size for key, size in sizes.items() if key.startswith("backbone/"))
        <= 16
    )


def test_bfloat16_backbone_takes_a_float32_adapter(path):
    task = classifier(bert_backbone(dtype="bfloat16"), seed=2)
    task.load_adapter(path)
    expected = predict(classifier(seed=1), bert_inputs())
    actual = np.asarray(predict(task, bert_inputs()), "float32")
    assert_close(actual, expected, atol=0.5)


def refused(task, path, match):
    """Checks that `path` is refused and that `task` is left as it was."""
    before = task.get_weights()
    with pytest.raises(ValueError, match=match):
        task.load_adapter(path)
    assert task.reduction_factor == 2
    assert all(map(np.array_equal, before, task.get_weights()))


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"attention": "k_to_k"}, "attention='k_to_all'.*attention='k_to_k'"),
        ({"router": "sigmoid"}, "router='exact'.*router='sigmoid'"),
        ({"adapter_dim": 4}, "adapter_dim=8.*adapter_dim=4"),
        ({"num_prefix_tokens": 0}, "num_prefix_tokens=1.*num_prefix_tokens=0"),
        ({"epsilon": 0.1}, "epsilon=0.03.*epsilon=0.1"),
        ({"num_classes": 2}, "head/logits/kernel.*16, 3.*16, 2"),
        ({"backbone": {"num_layers": 3}}, "num_layers=2.*num_layers=3"),
        ({"backbone": {"seed": 5}}, "embeddings' differs"),
    ],
)
def test_other_settings_are_refused(path, settings, match):
    if "backbone" in settings:
        settings = {"backbone": bert_backbone(**settings["backbone"])}
    task = classifier(**settings, seed=2, reduction_factor=2)
    refused(task, path, match)


def test_backbone_file_is_no_task_file(tmp_path):
    task = classifier(reduction_factor=2)
    task.backbone.save_adapter(tmp_path / "backbone")
    refused(task, tmp_path / "backbone", "head/logits/kernel.*no such weight")


def test_damaged_and_foreign_files(path, tmp_path):
    task = classifier(seed=2, reduction_factor=2)
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:100]):
        (tmp_path / "damaged").write_bytes(damaged)
        refused(task, tmp_path / "damaged", "not an adapter file, or it is dam")
    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    refused(task, tmp_path / "foreign", "no adapter file of keras_coda")
    with pytest.raises(FileNotFoundError, match="no adapter file"):
        task.load_adapter(tmp_path / "absent")


def test_later_format_version(path, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_file, "FORMAT_VERSION", "2")
    classifier().save_adapter(tmp_path / "later")
    monkeypatch.undo()
    task = classifier(seed=2, reduction_factor=2)
    refused(task, tmp_path / "later", "format version 2.*Upgrade")


def test_failed_save_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(tensors, temporary_path, metadata):
        with open(temporary_path, "w") as file:
            file.write("half")
        raise OSError("disk full")

    monkeypatch.setattr(adapter_file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        classifier(seed=2).save_adapter(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_metadata_are_readable(path):
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "keras_coda_adapter"
    settings = json.loads(metadata["settings"])
    assert settings["backbone class"] == "BertBackbone"
    assert settings["attention"] == "k_to_all"
    assert json.loads(metadata["reduction_factor"]) == 4
