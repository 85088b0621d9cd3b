"""The converted backbone and task classes, one for each of KerasHub's.

`keras_coda.conversion.register_family` makes them; `coda_wrap` returns their
instances.
"""
