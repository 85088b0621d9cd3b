"""ViT: pre-LN blocks inside one encoder layer."""

import keras
import keras_hub

from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_task import CodaTask
from keras_coda.conversion.family import Family
from keras_coda.layers import DenseBlock
from keras_coda.layers.attend import attend
from keras_coda.layers.dense_block import BlockMultiplyAdds
from keras_coda.layers.dense_block import kernel_size


class ViTBlock(DenseBlock):
    """KerasHub's ViT encoder block, ready for routing.

    It shares the weights of `layer` but for the layer normalisations.
    """

    def __init__(self, layer, copy_norm, **kwargs):
        super().__init__(**kwargs)
        self.attention_norm = copy_norm(layer.layer_norm_1, "attention_norm")
        self.attention = layer.mha
        self.attention_dropout = layer.dropout
        self.feedforward_norm = copy_norm(
            layer.layer_norm_2, "feedforward_norm"
        )
        self.feedforward = layer.mlp
        self.built = True

    @property
    def norms(self):
        return [self.attention_norm, self.feedforward_norm]

    def attention_input(self, inputs):
        return self.attention_norm(inputs)

    def residual_update(
        self, rows, queries, context, attention_mask=None, training=None
    ):
        attended = attend(
            self.attention, queries, context, attention_mask, training
        )
        attended = self.attention_dropout(attended, training=training)
        hidden = self.feedforward_norm(rows + attended)
        return attended + self.feedforward(hidden, training=training)

    def multiply_adds(self):
        attention, feedforward = self.attention, self.feedforward
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
            feedforward=kernel_size(feedforward.dense_1, feedforward.dense_2),
        )


class ViTFamily(Family):
    backbone_cls = keras_hub.models.ViTBackbone
    block_cls = ViTBlock

    def num_prefix_tokens(self, backbone):
        # The class token, which the image classifier pools.
        return 1 if backbone.use_class_token else 0

    def padding_mask(self, inputs):
        return None

    def encoder_blocks(self, backbone):
        return backbone.get_layer("vit_encoder").encoder_layers

    def other_multiply_adds(
        self, backbone, sequence_length, decoder_sequence_length
    ):
        (embedding,) = [
            layer
            for layer in backbone.layers
            if hasattr(layer, "patch_embedding")
        ]
        num_patches = sequence_length - backbone.use_class_token
        return num_patches * kernel_size(embedding.patch_embedding)

    def expand(self, layer):
        if hasattr(layer, "encoder_layers"):
            return [layer.dropout, *layer.encoder_layers, layer.layer_norm]
        return [layer]


@keras.saving.register_keras_serializable(package="keras_coda")
class CodaViTBackbone(CodaBackbone):
    """`keras_hub.models.ViTBackbone` with conditional adapters."""

    family = ViTFamily()


@keras.saving.register_keras_serializable(package="keras_coda")
class CodaViTImageClassifier(CodaTask, keras_hub.models.ViTImageClassifier):
    """`keras_hub.models.ViTImageClassifier` with conditional adapters."""

    backbone_cls = CodaViTBackbone
