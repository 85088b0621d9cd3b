"""BERT: post-LN blocks, KerasHub's `TransformerEncoder`."""

from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family

register_family(
    Family(
        backbone="BertBackbone",
        num_prefix_tokens=1,
        pooled="[CLS]",
        exports=("tf_saved_model", "onnx", "litert", "torch"),
    )
)
