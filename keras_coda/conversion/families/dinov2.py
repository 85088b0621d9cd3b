"""DINOv2: pre-LN blocks with layer scale, whose outputs are a pyramid."""

import dataclasses

from keras_coda.conversion.encoder_block import DINO_ENCODER
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
        parts=dataclasses.replace(
            DINO_ENCODER,
            attention="attention/attention",
            after_attention={
                "attention_dropout": "attention/dropout",
                **DINO_ENCODER.after_attention,
            },
        ),
        blocks=lambda backbone: backbone.encoder.layers,
        run={"DINOV2Encoder": run_encoder},
        num_prefix_tokens=lambda backbone: 1 + backbone.num_register_tokens,
        pooled="class and register tokens",
    )
)
