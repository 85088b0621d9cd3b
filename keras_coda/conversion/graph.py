"""Cloning a backbone's graph, with its blocks replaced."""

import collections
import dataclasses
import functools
import inspect
from typing import Any
from typing import NamedTuple

import keras
import keras_hub

from keras_coda.conversion import registry
from keras_coda.conversion.adapted_layer import first_tensor
from keras_coda.conversion.layer_names import is_made_up
from keras_coda.conversion.norms import copy_norm
from keras_coda.conversion.norms import is_norm
from keras_coda.layers.set_reduction_factor import per_block_reduction_factors


class ConvertedGraph(NamedTuple):
    """What `convert_graph` makes of a backbone.

    Attributes:
        inputs: the symbolic inputs.
        outputs: the symbolic outputs.
        layers: dict of the backbone's attributes that are or hold layers,
            converted.
        values: dict of its other attributes; symbolic tensors are those of the
            new graph.
        reduction_factors: list of those of the blocks, which have none yet: in
            a graph of several stacks their order is known when it is done.
    """

    inputs: Any
    outputs: Any
    layers: dict
    values: dict
    reduction_factors: list


def convert_graph(backbone, family, settings):
    """Replaces the blocks of a backbone, one for each call.

    Args:
        backbone: a dense KerasHub backbone.
        family: its `Family`.
        settings: the `Settings` of the conversion.

    Returns:
        A `ConvertedGraph`. It shares all layers but encoder blocks, decoder
        blocks, nested backbones of known families and layer normalisations.
    """
    num_blocks = count_blocks(backbone, family)
    reduction_factor = settings.reduction_factor
    # An array, which is refused, is compared with nothing.
    if isinstance(reduction_factor, str) and reduction_factor == "auto":
        reduction_factor = family.default_reduction_factor(num_blocks)
    reduction_factors = per_block_reduction_factors(
        reduction_factor, num_blocks
    )
    attributes = _own_attributes(backbone)
    dense_tensors = {
        name: value
        for name, value in attributes.items()
        if _consists_of(value, keras.KerasTensor)
    }
    replacer = _Replacer(backbone, family, settings)
    inputs = keras.tree.map_structure(
        lambda tensor: keras.Input(
            batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name
        ),
        backbone.input,
    )
    if settings.num_prefix_tokens == "auto" and family.pinned is not None:
        replacer.pinned = family.pinned(inputs)
    clone = keras.models.clone_model(
        keras.Model(backbone.input, [backbone.output, dense_tensors]),
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=replacer.call,
    )
    outputs, tensors = clone.output
    # Keras sorts the keys.
    for name, value in dense_tensors.items():
        if isinstance(value, dict):
            tensors[name] = {key: tensors[name][key] for key in value}
    layers, values = {}, {}
    for name, value in attributes.items():
        if type(value).__name__ in family.run:
            values[name] = replacer.runner(value)
        elif _consists_of(value, keras.layers.Layer):
            layers[name] = replacer.replaced(value)
        else:
            values[name] = tensors.get(name, value)
    return ConvertedGraph(inputs, outputs, layers, values, reduction_factors)


def count_blocks(backbone, family):
    """The number of blocks to route, those of nested backbones included."""
    return len(family.list_blocks(backbone)) + sum(
        count_blocks(layer, _family_of(layer))
        for layer in _nested_backbones(backbone)
    )


class _Replacer:
    """Calls the layers of a graph, or what replaces them."""

    def __init__(self, backbone, family, settings):
        self.family = family
        self.settings = settings
        self.pinned = None
        # Where several layers run a stack of blocks each, their parts may be
        # named alike, and are named after them too.
        running = [x for x in backbone.layers if type(x).__name__ in family.run]
        self.has_stacks = len(running) > 1
        self.stack_name = None
        self.attributes = {id(x): name for name, x in vars(backbone).items()}
        # From the id of a layer to what replaced it, call by call.
        self.replacements = collections.defaultdict(list)
        self.block_ids = {id(layer) for layer in family.list_blocks(backbone)}
        self.nested_ids = {id(layer) for layer in _nested_backbones(backbone)}
        self.decoder_ids = {
            id(layer) for layer in family.list_decoder_blocks(backbone)
        }

    def call(self, layer, *args, **kwargs):
        run = self.family.run.get(type(layer).__name__)
        if run is not None:
            self.stack_name = layer.name if self.has_stacks else None
            outputs = run(layer, self.call, *args, **kwargs)
            self.stack_name = None
            return outputs
        if id(layer) in self.block_ids:
            if self.pinned is not None:
                kwargs["pinned"] = self.pinned
            return self._make_block(layer)(*args, **kwargs)
        return self._replace(layer, *args, **kwargs)(*args, **kwargs)

    def runner(self, layer):
        """A function for an attribute whose layer was taken apart.

        It is called as the layer was, and runs what replaced its parts.
        """

        def call(part, *args, **kwargs):
            return self.replaced(part)(*args, **kwargs)

        run = self.family.run[type(layer).__name__]
        return functools.partial(run, layer, call)

    def replaced(self, value):
        """An attribute's layers, or lists of them, as they were replaced."""
        if isinstance(value, dict):
            return {key: self.replaced(item) for key, item in value.items()}
        if not isinstance(value, (list, tuple)):
            return (self.replacements[id(value)] or [value])[0]
        items = []
        for item in value:
            if isinstance(item, (list, tuple, dict)):
                items.append(self.replaced(item))
            else:
                # A layer that is called at several depths became several.
                items += self.replacements[id(item)] or [item]
        return items

    def _make_block(self, layer):
        made = self.replacements[id(layer)]
        name = self._in_stack(layer.name)
        name = f"{name}_{len(made)}" if made else name
        dtype = layer.dtype_policy
        family = self.family
        # The scope gives the weights that are made now the paths that those
        # made in `build` have.
        with keras.name_scope(name):
            block = family.block_cls(
                layer, family.parts, dtype=dtype, name="block"
            )
            made.append(
                family.layer_cls(
                    block,
                    dtype=dtype,
                    name=name,
                    **self.settings.for_block(),
                )
            )
        made[-1].stack_name = self.stack_name
        return made[-1]

    def _in_stack(self, name):
        return f"{self.stack_name}_{name}" if self.stack_name else name

    def _replace(self, layer, *args, **kwargs):
        made = self.replacements[id(layer)]
        if not made:
            made.append(self._replacement(layer, args, kwargs))
        return made[0]

    def _replacement(self, layer, args, kwargs):
        """What takes the place of a layer that is no encoder block."""
        settings = self.settings
        if id(layer) in self.decoder_ids:
            first = first_tensor(inspect.signature(layer.call), *args, **kwargs)
            with keras.name_scope(layer.name):
                return self.family.decoder_cls(
                    layer,
                    hidden_dim=first.shape[-1],
                    settings=settings,
                    dtype=layer.dtype_policy,
                    name=layer.name,
                )
        if id(layer) in self.nested_ids:
            nested = dataclasses.asdict(settings)
            nested["reduction_factor"] = 1
            # The copy that it is nested in has LoRA already.
            nested["lora_rank"] = None
            return registry.backbone_classes[type(layer)](
                layer, name=layer.name, **nested
            )
        if is_norm(layer):
            name = layer.name
            if is_made_up(layer):
                name = self.attributes.get(id(layer), name)
            return copy_norm(layer, self._in_stack(name))
        return layer


def _nested_backbones(backbone):
    """The backbones of known families that a backbone calls."""
    return [
        layer
        for layer in backbone.layers
        if isinstance(layer, keras_hub.models.Backbone)
        and type(layer) in registry.backbone_classes
    ]


def _family_of(backbone):
    return registry.backbone_classes[type(backbone)].family


def _own_attributes(backbone):
    """What the backbone's class adds to a plain `Backbone`."""
    plain = keras_hub.models.Backbone(backbone.input, backbone.output)
    known = {*vars(plain), "_is_compiled"}
    return {
        name: value
        for name, value in vars(backbone).items()
        if name not in known
    }


def _consists_of(value, cls):
    """Whether a value is a `cls`, or a nest of them that is not empty."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(_consists_of(item, cls) for item in value)
    return isinstance(value, cls)
