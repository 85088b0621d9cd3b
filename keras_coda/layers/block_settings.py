"""The settings of conditional computation: each is listed once, here.

`takes_settings` gives a function the settings as arguments, in its signature
and in its docstring, so that a new setting is a new field and its use.
"""

import dataclasses
import functools
import inspect
import re
import textwrap

from keras_coda.layers.parallel_adapter import ParallelAdapter
from keras_coda.layers.sequential_adapter import SequentialAdapter
from keras_coda.validation import plain_number
from keras_coda.validation import validate_choice
from keras_coda.validation import validate_finite_number

ADAPTERS = ("parallel", "sequential", "prefix")
# What the settings of a block that routes nothing have to be.
_DENSE = {"reduction_factor": 1, "router": "exact", "shortcut_dim": None}


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """How a conditional block routes, adapts and replaces.

    Args:
        reduction_factor: float >= 1. Ratio of tokens to routed tokens; at
            `float("inf")` the block is left out with its adapter. Defaults to
            `4`. It may be changed later; models compiled before then have to be
            compiled again (`keras_coda.set_reduction_factor` does both).
        adapter_dim: int >= 1. Width of the adapter. Defaults to `64`.
        attention: `"k_to_all"`, the routed tokens attend to all tokens
            (better), or `"k_to_k"`, to each other (faster). Defaults to
            `"k_to_all"`.
        router: `"exact"` or `"coordinate_descent"`, the solver of soft top-k,
            or one of the paper's ablations, `"sigmoid"` and `"first_k"`, see
            `keras_coda.layers.TokenRouter`. Defaults to `"exact"`.
        num_prefix_tokens: int >= 0. Leading tokens that are always routed.
            Defaults to `0`.
        epsilon: float > 0. Softness of the routing, in units of the router's
            scores. Defaults to `0.03`.
        adapter_activation: a Keras activation. Defaults to `"relu"`.
        adapter_scale: float. Factor on the adapter's output. Defaults to
            `1.0`.
        shortcut_dim: optional int >= 1. Rank of a linear estimate of the
            update that the tokens which are not routed miss; fit it with
            `keras_coda.training.calibrate`. Defaults to `None`, no estimate,
            as in the paper.
        adapter: `"parallel"`, beside the block, or one of two baselines inside
            blocks that `keras_coda.coda_wrap` converts. They route nothing and
            need `reduction_factor=1`: `"sequential"`, behind attention and
            behind the feedforward network, see
            `keras_coda.layers.SequentialAdapter`, and `"prefix"`, keys and
            values that all tokens attend to, see `keras_coda.layers.Prefix`.
            Defaults to `"parallel"`.
        prefix_length: int >= 1. How many keys and values `adapter="prefix"`
            has, in each block. Defaults to `16`.
    """

    reduction_factor: float = 4
    adapter_dim: int = 64
    attention: str = "k_to_all"
    router: str = "exact"
    num_prefix_tokens: int = 0
    epsilon: float = 0.03
    adapter_activation: str = "relu"
    adapter_scale: float = 1.0
    shortcut_dim: int | None = None
    adapter: str = "parallel"
    prefix_length: int = 16

    def __post_init__(self):
        for name, value in [*vars(self).items()]:
            object.__setattr__(self, name, plain_number(value))
        validate_finite_number("adapter_scale", self.adapter_scale)
        validate_choice("adapter", self.adapter, ADAPTERS)
        self.validate_routing(**{name: getattr(self, name) for name in _DENSE})

    def validate_routing(self, **values):
        """Raises a `ValueError` if these settings route and may not."""
        if self.adapter == "parallel":
            return
        for name, value in values.items():
            given = value if isinstance(value, (list, tuple)) else [value]
            if any(one != _DENSE[name] for one in given):
                raise ValueError(
                    f"`{name}` must be {_DENSE[name]!r} with "
                    f"`adapter={self.adapter!r}`, which is a dense baseline: "
                    "every block computes all tokens. Routing needs "
                    f"`adapter='parallel'`. Received: {name}={value!r}"
                )

    def make_adapter(self, **kwargs):
        """A new adapter, to be beside a layer or behind one."""
        is_parallel = self.adapter == "parallel"
        adapter_cls = ParallelAdapter if is_parallel else SequentialAdapter
        return adapter_cls(
            adapter_dim=self.adapter_dim,
            activation=self.adapter_activation,
            scale=self.adapter_scale,
            **kwargs,
        )


def field_names(settings_cls):
    """The names of the settings, in order."""
    return [field.name for field in dataclasses.fields(settings_cls)]


def takes_settings(settings_cls):
    """Decorates a function so that it takes settings one by one.

    The function's parameter `settings` is replaced by the fields of
    `settings_cls`, and `{settings}` in its docstring by their descriptions.
    """

    def decorate(function):
        parameters = inspect.signature(function).parameters.values()
        names = field_names(settings_cls)
        merged = []
        for parameter in parameters:
            if parameter.name != "settings":
                merged.append(parameter)
                continue
            merged += [
                parameter.replace(name=field.name, default=field.default)
                for field in dataclasses.fields(settings_cls)
            ]
        signature = inspect.Signature(merged)
        variadic = [p.name for p in merged if p.kind is p.VAR_KEYWORD]

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            try:
                arguments = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            given = {
                name: arguments.pop(name) for name in names if name in arguments
            }
            for name in variadic:
                arguments.update(arguments.pop(name, {}))
            return function(settings=settings_cls(**given), **arguments)

        wrapper.__signature__ = signature
        return documents_settings(settings_cls)(wrapper)

    return decorate


def documents_settings(settings_cls):
    """Decorates a function or class: `{settings}` in its docstring."""

    def decorate(documented):
        docstring = documented.__doc__ or ""
        match = re.search(r"^( *)\{settings\}\n", docstring, re.MULTILINE)
        if match is not None:
            docs = textwrap.indent(
                "".join(_descriptions(settings_cls)), match[1]
            )
            documented.__doc__ = docstring.replace(match[0], docs)
        return documented

    return decorate


def _descriptions(settings_cls):
    """The description of each field, its own class's or its base's."""
    found = {}
    for cls in reversed(settings_cls.__mro__[:-1]):
        arguments = inspect.getdoc(cls).split("Args:\n")[1]
        for entry in re.split(r"\n(?=\w)", textwrap.dedent(arguments)):
            found[entry.split(":")[0]] = entry.rstrip() + "\n"
    return [found[name] for name in field_names(settings_cls)]
