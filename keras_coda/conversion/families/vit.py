"""ViT: pre-LN blocks inside one encoder layer."""

from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family


def run_encoder(layer, call, inputs):
    outputs = layer.dropout(inputs)
    for block in layer.encoder_layers:
        outputs = call(block, outputs)
    return call(layer.layer_norm, outputs)


register_family(
    Family(
        backbone="ViTBackbone",
        parts=Parts(
            attention="mha",
            attention_norm="layer_norm_1",
            after_attention={"attention_dropout": "dropout"},
            feedforward_norm="layer_norm_2",
            feedforward={"feedforward": "mlp"},
        ),
        blocks=lambda backbone: (
            backbone.get_layer("vit_encoder").encoder_layers
        ),
        run={"ViTEncoder": run_encoder},
        num_prefix_tokens=lambda backbone: int(backbone.use_class_token),
        pooled="class token",
        exports=("tf_saved_model", "onnx", "litert", "torch"),
    )
)
