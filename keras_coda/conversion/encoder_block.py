"""The encoder layers of KerasHub as blocks that can be routed."""

import dataclasses
import inspect
import math

import keras

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.norms import copy_norm
from keras_coda.conversion.norms import is_norm
from keras_coda.layers import BlockKernels
from keras_coda.layers import DenseBlock
from keras_coda.layers import Prefix
from keras_coda.layers.attend import attend
from keras_coda.layers.dense import call_dense


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the parts of an encoder layer are.

    A part is named as an attribute of the layer or by the name of a layer in
    it; `"a/b"` is b inside a. Or it is a function that makes the part of the
    layer.

    Args:
        attention: self-attention.
        attention_norm: its layer normalisation.
        feedforward_norm: the layer normalisation of the feedforward network.
        feedforward: dict of the layers of the feedforward network in turn, up
            to the residual connection; from the name that files keep a part
            under to the part.
        after_attention: such a dict of what comes between attention and the
            residual connection: dropout, layer scale. Defaults to nothing.
        pre_norm: whether the layer normalises before attention and
            feedforward network, or the attribute that says so. Defaults to
            `True`.
        causal: whether no token attends to those after it, or the attribute
            that says so. Defaults to `False`.

    Example:

    >>> parts = keras_coda.conversion.Parts(
    ...     attention="mha",
    ...     attention_norm="layer_norm_1",
    ...     feedforward_norm="layer_norm_2",
    ...     feedforward={"feedforward": "mlp"},
    ... )
    >>> parts.pre_norm
    True
    """

    attention: str
    attention_norm: str
    feedforward_norm: str
    feedforward: dict
    after_attention: dict = dataclasses.field(default_factory=dict)
    pre_norm: bool | str = True
    causal: bool | str = False


# `keras_hub.layers.TransformerEncoder`, which many families are made of.
TRANSFORMER_ENCODER = Parts(
    attention="self_attention_layer",
    attention_norm="self_attention_layer_norm",
    after_attention={"attention_dropout": "self_attention_dropout"},
    feedforward_norm="feedforward_layer_norm",
    feedforward={
        "intermediate": "feedforward_intermediate_dense",
        "output_projection": "feedforward_output_dense",
        "feedforward_dropout": "feedforward_dropout",
    },
    pre_norm="normalize_first",
)

# The layers of CLIP and of models made after it.
CLIP_ENCODER = Parts(
    attention="attention",
    attention_norm="layer_norm_1",
    feedforward_norm="layer_norm_2",
    feedforward={
        "intermediate": "dense_1",
        "activation": "activation",
        "output_projection": "dense_2",
    },
    causal="use_causal_mask",
)

# The layers of DINOv2 and DINOv3.
DINO_ENCODER = Parts(
    attention="attention",
    attention_norm="norm1",
    after_attention={
        "attention_scale": "layer_scale1",
        "drop_path": "drop_path",
    },
    feedforward_norm="norm2",
    feedforward={
        "feedforward": "mlp",
        "feedforward_scale": "layer_scale2",
        "drop_path": "drop_path",
    },
)


class EncoderBlock(DenseBlock):
    """An encoder layer of one attention and one feedforward network.

    It shares the weights of the layer but for the layer normalisations, which
    it copies. A family whose attention is no
    `keras.layers.MultiHeadAttention` overrides `attend`, and
    `attention_kernels` if its projections have other names. It sets
    `takes_prefix = True` if its `attend` also reads `self.prefix`, which is a
    `keras_coda.layers.Prefix` or `None`.

    Args:
        layer: a built layer of KerasHub.
        parts: its `Parts`. Defaults to those of
            `keras_hub.layers.TransformerEncoder`.
        **kwargs: see `keras.layers.Layer`.

    Example:

    >>> layer = keras_hub.layers.TransformerEncoder(32, num_heads=2)
    >>> layer.build((None, None, 16))
    >>> block = keras_coda.conversion.EncoderBlock(layer)
    >>> print(tuple(block(np.ones((2, 5, 16))).shape))
    (2, 5, 16)
    """

    takes_prefix = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "attend" in vars(cls) and "takes_prefix" not in vars(cls):
            cls.takes_prefix = False

    def __init__(self, layer, parts=TRANSFORMER_ENCODER, **kwargs):
        super().__init__(**kwargs)
        self.attention = find_part(layer, parts.attention)
        self.attention_norm = copy_norm(
            find_part(layer, parts.attention_norm), "attention_norm"
        )
        self.attention_steps = self._hold(layer, parts.after_attention)
        self.feedforward_norm = copy_norm(
            find_part(layer, parts.feedforward_norm), "feedforward_norm"
        )
        self.feedforward_steps = self._hold(layer, parts.feedforward)
        self.pre_norm = _flag(layer, parts.pre_norm)
        self.causal = _flag(layer, parts.causal)
        # What `insert_adapters` sets.
        self.attention_adapter = None
        self.feedforward_adapter = None
        self.prefix = None
        self.built = True

    def get_config(self):
        raise NotImplementedError(
            "A block around a layer of KerasHub cannot be made from a config. "
            "To copy a converted model, in the place of "
            "`keras.models.clone_model`, use "
            "`type(model).from_config(model.get_config())`, whose weights are "
            "new."
        )

    def _hold(self, layer, parts):
        """Keeps parts as attributes, because files name weights by them.

        Returns:
            A tuple of their names, each with whether it takes `training`.
        """
        steps = []
        for name, path in parts.items():
            part = find_part(layer, path)
            takes = inspect.signature(part.call).parameters
            setattr(
                self, name, copy_norm(part, name) if is_norm(part) else part
            )
            steps.append((name, "training" in takes))
        return tuple(steps)

    def insert_adapters(self, settings):
        if settings.adapter == "prefix":
            kernels = self.kernels()
            shape = kernels.context[0].compute_output_shape((None,) * 3)
            self.prefix = Prefix(
                settings.prefix_length,
                num_heads=math.prod(shape[2:]) // kernels.head_dim,
                head_dim=kernels.head_dim,
                dtype=self.dtype_policy,
                name="prefix",
            )
            return
        self.attention_adapter, self.feedforward_adapter = (
            settings.make_adapter(dtype=self.dtype_policy, name=name)
            for name in ("attention_adapter", "feedforward_adapter")
        )

    @property
    def adapters(self):
        inserted = self.attention_adapter, self.feedforward_adapter, self.prefix
        return [adapter for adapter in inserted if adapter is not None]

    def _run(self, steps, inputs, training, adapter):
        outputs = inputs
        for name, takes_training in steps:
            part = getattr(self, name)
            if isinstance(part, keras.layers.Dropout) and not training:
                continue
            arguments = {"training": training} if takes_training else {}
            outputs = call_dense(part, outputs, **arguments)
        return outputs if adapter is None else adapter(outputs)

    @property
    def norms(self):
        steps = (*self.attention_steps, *self.feedforward_steps)
        parts = [getattr(self, name) for name, _ in steps]
        return [
            self.attention_norm,
            self.feedforward_norm,
            *filter(is_norm, parts),
        ]

    def attention_input(self, inputs):
        return self.attention_norm(inputs) if self.pre_norm else inputs

    def attend(self, routed, training=None):
        """Attention of the routed rows; of the shape of `routed.rows`."""
        return attend(
            self.attention,
            routed.queries,
            routed.context,
            routed.mask,
            training,
            self.prefix,
        )

    def residual_update(self, routed, training=None):
        if self.causal:
            routed = routed.without_later()
        attended = self.attend(routed, training)
        return self.after_attention(routed.rows, attended, training)

    def after_attention(self, rows, attended, training=None):
        """What the block adds to rows for which attention returned this."""
        attended = self._run(
            self.attention_steps, attended, training, self.attention_adapter
        )
        if self.pre_norm:
            hidden = self.feedforward_norm(rows + attended)
            return attended + self._feedforward(hidden, training)
        hidden = self.attention_norm(rows + attended)
        outputs = self._feedforward(hidden, training)
        return self.feedforward_norm(hidden + outputs) - rows

    def _feedforward(self, inputs, training):
        return self._run(
            self.feedforward_steps, inputs, training, self.feedforward_adapter
        )

    def kernels(self):
        feedforward = [
            getattr(self, name) for name, _ in self.feedforward_steps
        ]
        return BlockKernels(
            **self.attention_kernels(), feedforward=dense_layers(*feedforward)
        )

    def attention_kernels(self):
        """The fields of `BlockKernels` that are about attention."""
        attention = self.attention
        return {
            "rows": (attention.query_dense, attention.output_dense),
            "context": (attention.key_dense, attention.value_dense),
            "num_heads": attention.num_heads,
            "head_dim": attention.key_dim,
            "absorbs": True,
        }


def _flag(layer, value):
    return getattr(layer, value) if isinstance(value, str) else value


def find_part(layer, path):
    """The part of a layer that a path of names leads to, or a function."""
    if callable(path):
        return path(layer)
    part = layer
    for name in path.split("/"):
        # Parts without a public attribute have a public name: it is in every
        # checkpoint.
        found = {sublayer.name: sublayer for sublayer in sublayers(part)}
        inner = getattr(part, name, None) or found.get(name)
        if inner is None:
            raise ValueError(
                f"`Parts` names {path!r}, and {type(part).__name__} "
                f"{part.name!r} has no {name!r}. It has: {sorted(found)}"
            )
        part = inner
    return part


def dense_layers(*layers):
    """Layers, and those inside them, that multiply with a kernel."""
    inside = [
        sublayer
        for layer in layers
        for sublayer in sublayers(layer, recursive=True)
    ]
    return tuple(
        layer for layer in [*layers, *inside] if hasattr(layer, "kernel")
    )
