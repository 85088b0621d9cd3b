"""Checks of arguments that several layers share."""

import math
import numbers


def validate_reduction_factor(reduction_factor):
    """Returns it as a Python number, or raises if it is no number >= 1."""
    if not _is_number(reduction_factor):
        raise TypeError(
            "`reduction_factor` must be a number of at least 1: the ratio of "
            "tokens to routed tokens, for example 4. "
            f"Received: reduction_factor={reduction_factor!r}"
        )
    if not reduction_factor >= 1:
        raise ValueError(
            "`reduction_factor` must be at least 1 (1 routes every token, 4 "
            "routes a quarter of them). "
            f"Received: reduction_factor={reduction_factor}"
        )
    return plain_number(reduction_factor)


def validate_finite_number(name, value):
    """Returns `value` as a Python number, or raises if it is no finite one."""
    if not _is_number(value):
        raise TypeError(
            f"`{name}` must be a number. Received: {name}={value!r}"
        )
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite. Received: {name}={value}")
    return plain_number(value)


def validate_positive_integer(name, value):
    """Returns it as an `int`, or raises if it is no integer >= 1."""
    return _validate_integer(name, value, minimum=1)


def validate_non_negative_integer(name, value):
    """Returns it as an `int`, or raises if it is no integer >= 0."""
    return _validate_integer(name, value, minimum=0)


def _validate_integer(name, value, minimum):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(
            f"`{name}` must be an integer of at least {minimum}. "
            f"Received: {name}={value!r}"
        )
    if value < minimum:
        raise ValueError(
            f"`{name}` must be at least {minimum}. Received: {name}={value}"
        )
    return int(value)


def validate_choice(name, value, choices):
    """Returns `value`, or raises a `ValueError` if it is not in `choices`."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {tuple(choices)}. "
            f"Received: {name}={value!r}"
        )
    return value


def validate_mask_shape(name, mask, expected):
    """Raises a `ValueError` if `mask` is of another shape than `expected`.

    `None` in either shape fits every size.
    """
    shape = tuple(mask.shape)
    fits = len(shape) == len(expected) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape, expected)
    )
    if not fits:
        axes = "(batch_size, n)" if len(expected) == 2 else "(batch_size, n, n)"
        raise ValueError(
            f"`{name}` must have shape {axes} for inputs of n tokens. "
            f"Expected: {expected}. Received: {name}.shape={shape}"
        )


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def plain_number(value):
    """A number of NumPy's or a fraction as a Python number, which files keep.

    Anything else, a list of such numbers aside, is returned as it is.
    """
    if isinstance(value, list):
        return list(map(plain_number, value))
    if not _is_number(value):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)
