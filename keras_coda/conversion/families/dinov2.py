"""DINOv2: pre-LN blocks with layer scale, whose outputs are a pyramid."""

from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family


def run_encoder(layer, call, inputs):
    outputs, pyramid = inputs, {}
    for number, block in enumerate(layer.layers, start=1):
        outputs = call(block, outputs)
        pyramid[f"stage{number}"] = outputs
    return outputs, pyramid


register_family(
    Family(
        backbone="DINOV2Backbone",
        parts=Parts(
            attention="attention/attention",
            attention_norm="norm1",
            after_attention={
                "attention_dropout": "attention/dropout",
                "attention_scale": "layer_scale1",
                "drop_path": "drop_path",
            },
            feedforward_norm="norm2",
            feedforward={
                "feedforward": "mlp",
                "feedforward_scale": "layer_scale2",
                "drop_path": "drop_path",
            },
        ),
        blocks=lambda backbone: backbone.encoder.layers,
        run={"DINOV2Encoder": run_encoder},
        num_prefix_tokens=lambda backbone: 1 + backbone.num_register_tokens,
        pooled="class and register tokens",
    )
)
