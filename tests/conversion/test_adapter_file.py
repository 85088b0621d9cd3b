import json
import os
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import keras_coda
from keras_coda.conversion import adapter_file
from keras_coda.conversion.layer_names import base_names
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
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


@slow_to_compile
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


@slow_to_compile
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


def disk_full(*args):
    raise OSError("disk full")


def test_failed_save_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="disk full"):
        classifier(seed=2).save_adapter(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@same_on_every_backend
@pytest.mark.parametrize("has_nameless_files", [True, False])
def test_permissions_and_links(path, monkeypatch, has_nameless_files):
    if not has_nameless_files:
        monkeypatch.setattr(adapter_file, "_write_nameless", disk_full)
    link = path.with_name("link")
    link.symlink_to(path)
    before = os.umask(0o027)
    try:
        classifier(seed=2).save_adapter(link)
    finally:
        os.umask(before)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    task = classifier(seed=3)
    task.load_adapter(link)
    expected = predict(classifier(seed=2), bert_inputs())
    assert_close(predict(task, bert_inputs()), expected)
    assert sorted(os.listdir(path.parent)) == [path.name, "link"]


SAVE_AND_STALL = """
import os, sys, keras_coda
from keras_coda.conversion import adapter_file
from tests.conversion.test_adapter_file import classifier

def stall(*args):
    print("written", flush=True)
    sys.stdin.read()

os.link = stall
classifier(seed=2).save_adapter(sys.argv[1])
"""


@same_on_every_backend
@pytest.mark.skipif(
    not hasattr(os, "O_TMPFILE"), reason="files always have a name"
)
def test_a_killed_save_leaves_nothing(path):
    before = path.read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_AND_STALL, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.communicate()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda x: x * np.nan, "router/kernel.*16 of 16 not finite"),
        (lambda x: x.astype("float16"), "router/kernel.*float16"),
    ],
)
def test_damaged_numbers_are_refused(path, damage, match):
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    name = "transformer_layer_1/router/kernel"
    tensors[name] = damage(tensors[name])
    save_file(tensors, path, metadata=metadata)
    refused(classifier(seed=2, reduction_factor=2), path, match)


@slow_to_compile
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_adapters_of_float_and_int8_backbones(path):
    quantized = bert_backbone()
    quantized.quantize("int8")
    expected = predict(classifier(seed=1), bert_inputs())
    task = classifier(quantized, seed=2)
    task.load_adapter(path)
    np.testing.assert_allclose(predict(task, bert_inputs()), expected, atol=0.1)
    task.save_adapter(path)
    again = classifier(seed=2)
    again.load_adapter(path)
    assert_close(predict(again, bert_inputs()), expected)
    other = bert_backbone(seed=5)
    other.quantize("int8")
    refused(classifier(other, reduction_factor=2), path, "differs")


def test_numbers_of_made_up_names_are_left_out():
    """But not those of names that were given, as in each of two blocks."""
    layers = [keras.layers.Dense(2, name="dense_1") for _ in range(3)]
    layers[0].build((None, 2))
    for number in (1, 2):
        with keras.name_scope(f"block_{number}"):
            layers[number].build((None, 2))
    assert base_names(layers) == {"dense_1": "dense"}


def test_metadata_are_readable(path):
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "keras_coda_adapter"
    settings = json.loads(metadata["settings"])
    assert settings["backbone class"] == "BertBackbone"
    assert settings["attention"] == "k_to_all"
    assert json.loads(metadata["reduction_factor"]) == 4
