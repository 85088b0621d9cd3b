import dataclasses
import json
import warnings
import weakref

import keras
import keras_hub

from keras_coda._keras_internals import sublayers
from keras_coda._keras_internals import track_variables_anew
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.coda_model import router_fingerprints
from keras_coda.conversion.graph import convert_graph
from keras_coda.conversion.norms import is_norm
from keras_coda.conversion.quantization import describe_quantization
from keras_coda.conversion.quantization import restore_quantization
from keras_coda.conversion.serialization import copy_model
from keras_coda.conversion.serialization import serialize_uncompiled
from keras_coda.conversion.serialization import with_dtype
from keras_coda.conversion.settings import Settings
from keras_coda.layers.block_settings import documents_settings
from keras_coda.layers.block_settings import field_names
from keras_coda.layers.block_settings import takes_settings
from keras_coda.layers.partly_frozen import PartlyFrozen
from keras_coda.layers.set_reduction_factor import conditional_blocks
from keras_coda.layers.set_reduction_factor import forget_compiled
from keras_coda.validation import validate_positive_integer


@documents_settings(Settings)
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
        {settings}
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

    # Set by `register_family`.
    family = None
    dense_cls = None

    @takes_settings(Settings)
    def __init__(self, backbone, settings, trainable=True, **kwargs):
        family = self.family
        if settings.adapter == "prefix" and not family.takes_prefix:
            raise ValueError(
                f"{self.dense_cls.__name__} takes no prefix: it has a "
                "decoder, or attention that is not to keys and values alone. "
                "Use `adapter='sequential'` or `adapter='parallel'`. Received: "
                "adapter='prefix'"
            )
        is_new = not isinstance(backbone, dict)
        if not is_new:
            backbone = keras.saving.deserialize_keras_object(backbone)
        elif settings.lora_rank is not None:
            # LoRA changes the projections, which would else be shared.
            backbone = copy_model(backbone)
        if settings.lora_rank is not None:
            validate_positive_integer("lora_rank", settings.lora_rank)
            for layer in sublayers(backbone, recursive=True):
                if layer.name in family.lora_layer_names:
                    layer.enable_lora(settings.lora_rank)
        if settings.num_prefix_tokens == "auto" and family.pins_a_prefix:
            settings = dataclasses.replace(
                settings, num_prefix_tokens=family.count_prefix_tokens(backbone)
            )

        # === Layers ===
        graph = convert_graph(backbone, family, settings)
        for name, value in graph.layers.items():
            setattr(self, name, value)

        # === Functional Model ===
        # Not the dense class's `__init__`, which would make a dense model.
        keras_hub.models.Backbone.__init__(
            self,
            inputs=graph.inputs,
            outputs=graph.outputs,
            dtype=backbone.dtype_policy,
            **kwargs,
        )
        for block, reduction_factor in zip(
            self.conditional_blocks, graph.reduction_factors
        ):
            block.reduction_factor = reduction_factor
        for name, value in graph.values.items():
            if name in field_names(Settings):
                # Where the dense model has what is called like a setting.
                vars(self)[name] = value
            else:
                setattr(self, name, value)
        if trainable:
            self.freeze()
        else:
            self.trainable = False

        # === Config ===
        self.settings = settings
        # What KerasHub puts before the names of a tower's layers, if the tower
        # was given a name.
        self.name_prefix = f"{backbone.name}_"
        # As text, because Keras tracks what is inside a dict attribute.
        self._dense_config = json.dumps(serialize_uncompiled(backbone))
        self._followers = weakref.WeakSet()
        # What a file holds may have been calibrated or trained.
        self._new_routers = router_fingerprints(self) if is_new else None

    @property
    def conditional_blocks(self):
        """The `ConditionalTransformerBlock` layers, in order."""
        return conditional_blocks(self)

    @property
    def nested_backbones(self):
        """The converted backbones inside, by the attributes that hold them."""
        attributes = {id(value): name for name, value in vars(self).items()}
        return {
            attributes.get(id(layer), layer.name): layer
            for layer in self.layers
            if isinstance(layer, CodaBackbone)
        }

    @property
    def named_blocks(self):
        """The conditional blocks by name, in order.

        Names of blocks in a nested backbone begin with the attribute that holds
        it.
        """
        nested = {
            id(block): f"{attribute}/{name.removeprefix(backbone.name_prefix)}"
            for attribute, backbone in self.nested_backbones.items()
            for name, block in backbone.named_blocks.items()
        }
        return {
            nested.get(id(block), block.name): block
            for block in self.conditional_blocks
        }

    def trained_layers(self):
        trained = []
        for layer in self.layers:
            if isinstance(layer, PartlyFrozen):
                trained += layer.trained_layers()
            elif is_norm(layer):
                trained.append(layer)
        return trained

    def follow(self, task):
        """Lets a task made from this backbone notice when it changes."""
        self._followers.add(task)

    def forget_compiled(self):
        """Makes the backbone, and tasks made from it, trace anew."""
        for model in [self, *self._followers]:
            forget_compiled(model)

    def forget_removed(self):
        """Makes them forget the variables that were quantized."""
        for model in [self, *self._followers]:
            track_variables_anew(model)

    def warn_of_new_routers(self):
        """Warns, once, if routing is on and no router was ever fitted."""
        if self._new_routers is None or not self._new_routers:
            return
        if all(
            block.reduction_factor == 1 for block in self.conditional_blocks
        ):
            return
        if router_fingerprints(self) == self._new_routers:
            warnings.warn(
                "The routers of this model are as they were made: at "
                f"`reduction_factor={self.reduction_factor}` it computes "
                "tokens picked at random, and its outputs are poor. Call "
                "`keras_coda.training.calibrate` on some inputs, train the "
                "model, or `load_adapter`. With `reduction_factor = 1` it is "
                "the dense model.",
                stacklevel=3,
            )
        self._new_routers = None

    def enable_lora(self, rank, target_layer_names=None):
        """Not available: LoRA is part of the conversion."""
        raise ValueError(
            "LoRA is enabled when a model is converted, so that adapters and "
            "routers train beside it: "
            f"`keras_coda.coda_wrap(model, lora_rank={rank})`."
        )

    def get_config(self):
        # Not the dense class's, which describes a dense model.
        config = keras_hub.models.Backbone.get_config(self)
        # The dense backbone's config has it.
        config.pop("dtype")
        activation = keras.activations.get(self.adapter_activation)
        config.update(
            {
                "backbone": json.loads(self._dense_config),
                **dataclasses.asdict(self.settings),
                "reduction_factor": self.reduction_factor,
                "attention": self.attention,
                "adapter_activation": keras.activations.serialize(activation),
            }
        )
        quantization = describe_quantization(self)
        if quantization:
            config["quantization"] = quantization
        return config

    @classmethod
    def from_config(cls, config):
        config = {**config}
        # `from_preset(..., dtype=...)` arrives here.
        dtype = config.pop("dtype", None)
        if dtype is not None:
            config["backbone"] = with_dtype(config["backbone"], dtype)
        quantization = config.pop("quantization", [])
        backbone = cls(**config)
        if quantization:
            restore_quantization(backbone, quantization)
        return backbone
