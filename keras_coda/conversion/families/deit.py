"""DeiT: pre-LN blocks inside one encoder layer, and two pooled tokens."""

from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family


def run_encoder(layer, call, inputs):
    outputs = inputs
    for block in layer.encoder_layers:
        outputs = call(block, outputs)
    # The backbone asks for no hidden states and for no scores.
    return call(layer.layer_norm, outputs), (), ()


register_family(
    Family(
        backbone="DeiTBackbone",
        parts=Parts(
            attention="mha",
            attention_norm="layer_norm_1",
            feedforward_norm="layer_norm_2",
            feedforward={
                "intermediate": "mlp",
                "output_projection": "output_layer/dense",
                "feedforward_dropout": "output_layer/dropout",
            },
        ),
        blocks=lambda backbone: (
            backbone.get_layer("deit_encoder").encoder_layers
        ),
        run={"DeiTEncoder": run_encoder},
        num_prefix_tokens=2,
        pooled="class and distillation token",
    )
)
