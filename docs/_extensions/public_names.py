"""Warns of public names that the API reference leaves out."""

import inspect

from sphinx.util import logging

import keras_coda

logger = logging.getLogger(__name__)


def public_names(module):
    """The public functions and classes of a module, with its submodules'."""
    for name in module.__all__:
        value = getattr(module, name)
        path = f"{module.__name__}.{name}"
        if inspect.ismodule(value):
            yield from public_names(value)
        else:
            yield path, value


def check(app, env):
    documented = env.domains["py"].objects
    # One that is public in two modules is documented in one.
    values = {
        id(value)
        for path, value in public_names(keras_coda)
        if path in documented
    }
    for path, value in public_names(keras_coda):
        if id(value) not in values:
            logger.warning("%s is public, and on no page of docs/api", path)


def setup(app):
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
