"""The converted backbone and task classes, one for each of KerasHub's.

`keras_coda.conversion.register_family` makes them; `coda_wrap` returns their
instances.
"""

# Why a class is not here, by its name: the installed KerasHub lacks it.
missing_classes = {}


def __getattr__(name):
    if name in missing_classes:
        raise ImportError(missing_classes[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
