import json
import weakref

import keras
import keras_hub

from keras_coda._keras_internals import forget_compiled_functions
from keras_coda._keras_internals import sublayers
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers.partly_frozen import PartlyFrozen
from keras_coda.layers.set_reduction_factor import per_block_reduction_factors
from keras_coda.layers.set_reduction_factor import set_reduction_factor
from keras_coda.layers.validation import validate_positive_integer


class CodaBackbone(PartlyFrozen, CodaModel, keras_hub.models.Backbone):
    """A KerasHub backbone whose blocks compute only the tokens they need.

    What `keras_coda.coda_wrap` returns for a backbone: a subclass of this
    class, one for each family. It is a `keras_hub.models.Backbone` with the
    inputs, outputs, config attributes and layer names of the backbone that it
    was made from, and KerasHub tasks of the family take it in its place. Its
    frozen weights are those of that backbone, shared and not copied.

    Only adapters, routers and layer normalisations are trainable, whenever the
    backbone is, and also after loading.

    Args:
        backbone: a KerasHub backbone of the family, or its serialised config.
        reduction_factor: a number >= 1, or a list with one per encoder block.
            Defaults to `4`.
        num_prefix_tokens: int, or `"auto"` for what the family's heads pool.
            Defaults to `"auto"`.
        adapter_dim: int. Width of the adapters. Defaults to `64`.
        adapter_activation: a Keras activation. Defaults to `"relu"`.
        adapter_scale: float. Factor on the adapters' outputs. Defaults to
            `1.0`.
        shortcut_dim, attention, router, epsilon: see
            `keras_coda.layers.ConditionalTransformerBlock`.
        lora_rank: optional int >= 1, see `keras_coda.coda_wrap`.
        trainable: bool. Whether what is not frozen is trainable. Defaults to
            `True`.
        **kwargs: `name`.

    Example:

    >>> dense = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> backbone = keras_coda.coda_wrap(dense, reduction_factor=4)
    >>> backbone.reduction_factor = 2
    >>> print(isinstance(backbone, keras_coda.CodaBackbone))
    True
    >>> print(backbone.predict(np.ones((1, 8, 8, 3)), verbose=0).shape)
    (1, 5, 8)
    """

    family = None

    def __init__(
        self,
        backbone,
        reduction_factor=4,
        num_prefix_tokens="auto",
        adapter_dim=64,
        adapter_activation="relu",
        adapter_scale=1.0,
        shortcut_dim=None,
        attention="k_to_all",
        router="exact",
        epsilon=0.03,
        lora_rank=None,
        trainable=True,
        **kwargs,
    ):
        if isinstance(backbone, dict):
            backbone = keras.saving.deserialize_keras_object(backbone)
        elif lora_rank is not None:
            # LoRA changes the projections, which would else be shared.
            backbone = _copy_model(backbone)
        family = self.family
        if lora_rank is not None:
            validate_positive_integer("lora_rank", lora_rank)
            for layer in sublayers(backbone, recursive=True):
                if layer.name in family.lora_layer_names:
                    layer.enable_lora(lora_rank)
        if num_prefix_tokens == "auto":
            num_prefix_tokens = family.num_prefix_tokens(backbone)
        adapter_settings = {
            "adapter_dim": adapter_dim,
            "activation": adapter_activation,
            "scale": adapter_scale,
        }
        block_settings = {
            "adapter_dim": adapter_dim,
            "adapter_activation": adapter_activation,
            "adapter_scale": adapter_scale,
            "shortcut_dim": shortcut_dim,
            "attention": attention,
            "router": router,
            "epsilon": epsilon,
            "num_prefix_tokens": num_prefix_tokens,
        }

        # === Layers ===
        encoder_blocks = family.encoder_blocks(backbone)
        reduction_factors = per_block_reduction_factors(
            reduction_factor, len(encoder_blocks)
        )
        replacements = {}
        for layer, value in zip(encoder_blocks, reduction_factors):
            replacements[id(layer)] = _replacement(
                layer,
                family.conditional_block,
                reduction_factor=value,
                **block_settings,
            )
        for layer in family.decoder_blocks(backbone):
            replacements[id(layer)] = _replacement(
                layer, family.decoder_block, **adapter_settings
            )

        # === Functional Model ===
        clone = _clone_graph(backbone, family, replacements)
        config_values = {}
        for name, value in _public_attributes(backbone, clone).items():
            if _holds_layers(value):
                setattr(self, name, _replace(value, replacements))
            else:
                config_values[name] = value
        if backbone.token_embedding is not None:
            self.token_embedding = backbone.token_embedding
        super().__init__(
            inputs=clone.input,
            outputs=clone.output,
            dtype=backbone.dtype_policy,
            **kwargs,
        )
        if trainable:
            self.freeze()
        else:
            self.trainable = False

        # === Config ===
        for name, value in config_values.items():
            setattr(self, name, value)
        self.num_prefix_tokens = num_prefix_tokens
        self.adapter_dim = adapter_dim
        self.adapter_activation = keras.activations.get(adapter_activation)
        self.adapter_scale = adapter_scale
        self.shortcut_dim = shortcut_dim
        self.attention = attention
        self.router = router
        self.epsilon = epsilon
        self.lora_rank = lora_rank
        # As text, because Keras tracks what is inside a dict attribute.
        self._dense_config = json.dumps(_serialize_uncompiled(backbone))
        self._tasks = weakref.WeakSet()

    @property
    def conditional_blocks(self):
        """The `ConditionalTransformerBlock` layers, in order."""
        return [
            layer
            for layer in self.layers
            if isinstance(layer, ConditionalTransformerBlock)
        ]

    def trained_layers(self):
        trained = []
        for layer in self.layers:
            if isinstance(layer, PartlyFrozen):
                trained += layer.trained_layers()
            elif self.family.is_norm(layer):
                trained.append(layer)
        return trained

    @property
    def reduction_factor(self):
        """Ratio of tokens to routed tokens: a number, or one per block.

        Setting it takes effect from the next step of `fit` or `predict` on, of
        the backbone and of the KerasHub tasks made from it. For another model
        around the backbone use `keras_coda.set_reduction_factor`.
        """
        values = [block.reduction_factor for block in self.conditional_blocks]
        return values[0] if len(set(values)) == 1 else values

    @reduction_factor.setter
    def reduction_factor(self, value):
        set_reduction_factor(self, value)
        for task in self._tasks:
            forget_compiled_functions(task)

    def enable_lora(self, rank, target_layer_names=None):
        """Not available: LoRA is part of the conversion."""
        raise ValueError(
            "LoRA is enabled when a model is converted, so that adapters and "
            "routers train beside it: "
            f"`keras_coda.coda_wrap(model, lora_rank={rank})`."
        )

    def get_config(self):
        config = super().get_config()
        # The dense backbone's config has it.
        config.pop("dtype")
        config.update(
            {
                "backbone": json.loads(self._dense_config),
                "reduction_factor": self.reduction_factor,
                "num_prefix_tokens": self.num_prefix_tokens,
                "adapter_dim": self.adapter_dim,
                "adapter_activation": keras.activations.serialize(
                    self.adapter_activation
                ),
                "adapter_scale": self.adapter_scale,
                "shortcut_dim": self.shortcut_dim,
                "attention": self.attention,
                "router": self.router,
                "epsilon": self.epsilon,
                "lora_rank": self.lora_rank,
            }
        )
        return config

    @classmethod
    def from_config(cls, config):
        config = {**config}
        # `from_preset(..., dtype=...)` arrives here.
        dtype = config.pop("dtype", None)
        if dtype is not None:
            backbone = config["backbone"]
            config["backbone"] = {
                **backbone,
                "config": {**backbone["config"], "dtype": dtype},
            }
        return cls(**config)


def _copy_model(model):
    copy = keras.saving.deserialize_keras_object(_serialize_uncompiled(model))
    copy.set_weights(model.get_weights())
    return copy


def _serialize_uncompiled(model):
    """The config of a model, without what `compile` and `build` add."""
    serialized = keras.saving.serialize_keras_object(model)
    keys = ("module", "class_name", "config", "registered_name")
    return {key: serialized[key] for key in keys}


def _replacement(layer, make, **settings):
    """Makes what replaces `layer`, under its name and in its dtype."""
    # The scope gives the weights that are made now the paths that those made
    # in `build` have.
    with keras.name_scope(layer.name):
        return make(
            layer, name=layer.name, dtype=layer.dtype_policy, **settings
        )


def _clone_graph(backbone, family, replacements):
    """The backbone's graph, with its blocks and norms replaced.

    `replacements` maps the ids of layers to what replaces them; the copies of
    the layer normalisations that stand in the graph itself are added to it.
    """

    def call_replacement(layer, *args, **kwargs):
        for part in family.expand(layer):
            if id(part) not in replacements and family.is_norm(part):
                replacements[id(part)] = family.copy_norm(part, part.name)
            outputs = replacements.get(id(part), part)(*args, **kwargs)
            args = (outputs, *args[1:])
        return outputs

    return keras.models.clone_model(
        backbone,
        clone_function=lambda layer: layer,
        call_function=call_replacement,
    )


def _public_attributes(backbone, plain_model):
    """What the backbone's class adds to a plain functional model."""
    known = vars(plain_model)
    return {
        name: value
        for name, value in vars(backbone).items()
        if not name.startswith("_") and name not in known
    }


def _holds_layers(value):
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_holds_layers, value))
    return isinstance(value, keras.layers.Layer)


def _replace(value, replacements):
    if isinstance(value, (list, tuple)):
        return [_replace(item, replacements) for item in value]
    return replacements.get(id(value), value)
