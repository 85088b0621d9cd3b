"""Writes docs/families.md from the families that are registered.

python docs/make_families.py
"""

import pathlib

import keras_coda
from keras_coda.conversion.unsupported import UNSUPPORTED

PATH = pathlib.Path(__file__).with_name("families.md")

FOOT = """
## What to know of some

Of KerasHub 0.32, seen when the families were tested:

- RoFormerV2 and ESM mask padding on PyTorch only; on JAX and TensorFlow padding
  changes what the dense models compute. Converted ones mask it everywhere, so
  with padding they equal the dense model on PyTorch alone.
- Moonshine normalises over all of the audio, padding included, and takes no
  mixed precision.
- T5Gemma has no windows in its encoder, whatever its layer types say, and
  neither has the converted one. T5Gemma 2 has them.
- Qwen's windows are KerasHub's: it forgets them on JAX and PyTorch, where it
  calls fused attention. EmbeddingGemma, a Gemma 3 that reads both ways,
  converts; Gemma 3 with a vision encoder does not.
- In the last block of CLIP's and SigLIP's text towers only the pooled token is
  read, and it is always routed: a large reduction factor there loses nothing.
"""

HEAD = """# Models that `coda_wrap` converts

Written by `python docs/make_families.py`;
`print(keras_coda.supported_models())` prints it for the KerasHub that you have
installed. Each converts at `reduction_factor=1` to what it computes, trains,
calibrates, aligns, is saved to `.keras`, presets and adapter files, and is
exported to a SavedModel: the tests check it for each row, on a tiny model.

Decoders are not routed; their blocks get dense adapters.

"""


def content():
    """The whole page."""
    lines = [HEAD, keras_coda.supported_models().to_markdown(), "\n"]
    lines.append("## Models that cannot be routed\n\n")
    lines += [f"- {name}: {why}.\n" for name, why in UNSUPPORTED.items()]
    return "".join([*lines, FOOT])


if __name__ == "__main__":
    PATH.write_text(content())
