"""The contract of a model family, and how families are found.

A family is one module in `keras_coda/conversion/families`. It holds a subclass
of `CodaBackbone` with a `family`, and one of `CodaTask` for each KerasHub task
of the family. `docs/adding_a_family.md` walks through one.
"""

import importlib
import pkgutil

import keras

from keras_coda.layers import ConditionalTransformerBlock


class Family:
    """What `coda_wrap` has to know about a KerasHub backbone class.

    Attributes:
        backbone_cls: the KerasHub backbone class.
        block_cls: the `DenseBlock` made from an encoder block; it takes
            `layer, copy_norm, **kwargs`.
        conditional_block_cls: the `ConditionalTransformerBlock` around it.
        lora_layer_names: the names of the projections that LoRA changes, in
            every attention layer.
    """

    backbone_cls = None
    block_cls = None
    conditional_block_cls = ConditionalTransformerBlock
    lora_layer_names = ("query", "value")

    def padding_mask(self, inputs):
        """The encoder's padding mask among the backbone's inputs, if any."""
        return inputs["padding_mask"]

    def is_norm(self, layer):
        """Whether `layer` is a layer normalisation."""
        return isinstance(
            layer,
            (keras.layers.LayerNormalization, keras.layers.RMSNormalization),
        )

    def num_prefix_tokens(self, backbone):
        """How many leading tokens the family's heads pool."""
        return 0

    def encoder_blocks(self, backbone):
        """The layers to route, in order."""
        raise NotImplementedError

    def conditional_block(self, layer, dtype, **settings):
        """What replaces an encoder block.

        It shares the frozen weights of `layer` and copies its layer
        normalisations. `settings` are the arguments of
        `ConditionalTransformerBlock` after `block`.
        """
        block = self.block_cls(layer, self.copy_norm, dtype=dtype, name="block")
        return self.conditional_block_cls(block, dtype=dtype, **settings)

    def copy_norm(self, norm, name):
        """A copy, with its weights, of a built layer normalisation.

        Layer normalisations train; were they shared, training would change the
        model that was converted.
        """
        copy = type(norm).from_config({**norm.get_config(), "name": name})
        copy.build((None, *norm.weights[0].shape))
        copy.set_weights(norm.get_weights())
        return copy

    def other_multiply_adds(
        self, backbone, sequence_length, decoder_sequence_length
    ):
        """Multiply-adds of a sequence outside the encoder blocks.

        Without the decoder's adapters. `backbone` is a converted one.
        """
        return 0

    def decoder_blocks(self, backbone):
        """The layers that get dense adapters and no routing, in order."""
        return []

    def decoder_block(self, layer, **adapter_settings):
        """The layer that replaces a decoder block.

        `adapter_settings` are the arguments of `ParallelAdapter`.
        """
        raise NotImplementedError

    def expand(self, layer):
        """The layers that a layer of the backbone's graph runs in sequence.

        A layer that holds the blocks inside lists its parts here.
        """
        return [layer]


def import_families():
    """Imports every module in `families`, which registers its classes."""
    package = importlib.import_module("keras_coda.conversion.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def all_subclasses(cls):
    """The subclasses of `cls` at any depth."""
    found = []
    for subclass in cls.__subclasses__():
        found += [subclass, *all_subclasses(subclass)]
    return found
