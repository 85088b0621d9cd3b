"""VideoPrism: pre-LN blocks over patches, frames, both, and a text."""

import keras
from keras import ops

from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.conversion.token_positions import token_positions


class VideoPrismEncoderBlock(EncoderBlock):
    """Its attention may cap the scores."""

    def attend(self, routed, training=None):
        return self.attention(
            routed.queries,
            value=routed.context,
            key=routed.context,
            attention_mask=routed.mask,
            training=training,
        )

    def attention_kernels(self):
        return {**super().attention_kernels(), "absorbs": False}


def run_encoder(layer, call, inputs, attention_mask=None):
    masks = {}
    if attention_mask is not None:
        # A text, which is causal and ends with a class token: the token that
        # attends to all real ones, and is pooled.
        padding_mask = attention_mask[:, -1]
        positions = token_positions(padding_mask)
        masks = {
            "padding_mask": padding_mask,
            "attention_mask": attention_mask,
            "pinned": ops.equal(
                positions, ops.max(positions, axis=-1, keepdims=True)
            ),
        }
    # The encoders give their parts the same names, which a graph may not have.
    outputs = keras.layers.Dropout(
        layer.dropout.rate,
        dtype=layer.dtype_policy,
        name=f"{layer.name}_dropout",
    )(inputs)
    for block in layer.encoder_layers:
        outputs = call(block, outputs, **masks)
    if layer.layer_norm is None:
        return outputs
    return call(layer.layer_norm, outputs)


def list_blocks(backbone):
    return [
        block
        for layer in backbone.layers
        if layer.name.endswith("_encoder")
        for block in layer.encoder_layers
    ]


def count_sequences(backbone):
    embedding = backbone.get_layer("spatial_patching_and_embedding")
    return {
        "spatial_encoder": backbone.num_frames,
        "temporal_encoder": embedding.num_patches,
    }


register_family(
    Family(
        backbone="VideoPrismBackbone",
        parts=Parts(
            attention="mha",
            attention_norm="layer_norm_1",
            after_attention={"attention_dropout": "dropout"},
            feedforward_norm="layer_norm_2",
            feedforward={"feedforward": "mlp"},
        ),
        blocks=list_blocks,
        block_cls=VideoPrismEncoderBlock,
        run={"VideoPrismEncoder": run_encoder},
        num_sequences=count_sequences,
        pooled="class token of the text",
        routed="all encoders",
    )
)
