"""BERT: post-LN blocks, KerasHub's `TransformerEncoder`."""

import keras
import keras_hub

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_task import CodaTask
from keras_coda.conversion.family import Family
from keras_coda.layers import DenseBlock
from keras_coda.layers.attend import attend
from keras_coda.layers.dense_block import BlockMultiplyAdds
from keras_coda.layers.dense_block import kernel_size


class BertBlock(DenseBlock):
    """A post-LN `keras_hub.layers.TransformerEncoder`, ready for routing.

    It shares the weights of `layer` but for the layer normalisations.
    """

    def __init__(self, layer, copy_norm, **kwargs):
        super().__init__(**kwargs)
        # The parts of the encoder layer have no public attributes, but their
        # names are public: they are in every checkpoint.
        parts = {part.name: part for part in sublayers(layer)}
        self.attention = parts["self_attention_layer"]
        self.attention_dropout = parts["self_attention_dropout"]
        self.attention_norm = copy_norm(
            parts["self_attention_layer_norm"], "attention_norm"
        )
        self.intermediate = parts["feedforward_intermediate_dense"]
        self.output_projection = parts["feedforward_output_dense"]
        self.feedforward_dropout = parts["feedforward_dropout"]
        self.feedforward_norm = copy_norm(
            parts["feedforward_layer_norm"], "feedforward_norm"
        )
        self.built = True

    @property
    def norms(self):
        return [self.attention_norm, self.feedforward_norm]

    def attention_input(self, inputs):
        return inputs

    def residual_update(
        self, rows, queries, context, attention_mask=None, training=None
    ):
        attended = attend(
            self.attention, queries, context, attention_mask, training
        )
        attended = self.attention_dropout(attended, training=training)
        hidden = self.attention_norm(rows + attended)
        outputs = self.output_projection(self.intermediate(hidden))
        outputs = self.feedforward_dropout(outputs, training=training)
        return self.feedforward_norm(hidden + outputs) - rows

    def multiply_adds(self):
        attention = self.attention
        return BlockMultiplyAdds(
            row_projections=kernel_size(
                attention.query_dense, attention.output_dense
            ),
            context_projections=kernel_size(
                attention.key_dense, attention.value_dense
            ),
            pair=2 * attention.num_heads * attention.key_dim,
            absorbed_pair=2
            * attention.num_heads
            * attention.key_dense.kernel.shape[0],
            feedforward=kernel_size(self.intermediate, self.output_projection),
        )


class BertFamily(Family):
    backbone_cls = keras_hub.models.BertBackbone
    block_cls = BertBlock

    def num_prefix_tokens(self, backbone):
        # [CLS], which the pooled output is made of.
        return 1

    def encoder_blocks(self, backbone):
        return backbone.transformer_layers

    def other_multiply_adds(
        self, backbone, sequence_length, decoder_sequence_length
    ):
        # The pooler reads [CLS] alone.
        return kernel_size(backbone.pooled_dense)


@keras.saving.register_keras_serializable(package="keras_coda")
class CodaBertBackbone(CodaBackbone):
    """`keras_hub.models.BertBackbone` with conditional adapters."""

    family = BertFamily()


@keras.saving.register_keras_serializable(package="keras_coda")
class CodaBertTextClassifier(CodaTask, keras_hub.models.BertTextClassifier):
    """`keras_hub.models.BertTextClassifier` with conditional adapters."""

    backbone_cls = CodaBertBackbone


@keras.saving.register_keras_serializable(package="keras_coda")
class CodaBertMaskedLM(CodaTask, keras_hub.models.BertMaskedLM):
    """`keras_hub.models.BertMaskedLM` with conditional adapters."""

    backbone_cls = CodaBertBackbone


@keras.saving.register_keras_serializable(package="keras_coda")
class CodaBertTextEmbedder(CodaTask, keras_hub.models.BertTextEmbedder):
    """`keras_hub.models.BertTextEmbedder` with conditional adapters."""

    backbone_cls = CodaBertBackbone
