"""Shows docstrings that are Markdown, with the signatures that they describe.

Code in backticks, fences and links are translated before napoleon reads the
sections.
"""

import inspect
import re

# Code in single backticks, on one line or two; not what is double already.
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)(\w*)")
LINK = re.compile(r"\[([^\[\]]+)\]\((https?://[^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def to_rst(text):
    """The docstring `text` in reStructuredText.

    A name of this library becomes a link to its reference.
    """
    # Its code is not indented, so napoleon takes it for a paragraph.
    text = re.sub("^Example:$", ".. rubric:: Example", text, flags=re.M)
    text = FENCE.sub(_code_block, text)
    text = LINK.sub(r"`\1 <\2>`__", text)
    # Links have become code in backticks, but for their underscores.
    return CODE.sub(_literal, text)


def _code_block(match):
    indent, language, code = match.groups()
    code = re.sub("^(?=.)", "    ", code, flags=re.MULTILINE)
    return f"{indent}.. code-block:: {language or 'python'}\n\n{code}"


def _literal(match):
    code, suffix = match.groups()
    if suffix.startswith("__"):
        return match[0]
    code = re.sub(r"\s*\n\s*", " ", code)
    if re.fullmatch(r"keras_coda\.[\w.]+", code):
        # Whether there is such a name in the reference, Sphinx finds out.
        return f":py:obj:`{code}`"
    # A letter that follows would keep reStructuredText from ending the code.
    return f"``{code}``" + (rf"\ {suffix}" if suffix else "")


def process_docstring(app, what, name, obj, options, lines):
    lines[:] = to_rst("\n".join(lines)).split("\n")


def skip_member(app, what, name, obj, skip, options):
    """Fields are in the docstring of their class; of Keras nothing is shown."""
    if what != "class":
        return None
    function = obj.fget if isinstance(obj, property) else inspect.unwrap(obj)
    is_ours = (getattr(function, "__module__", None) or "").startswith(
        "keras_coda"
    )
    return None if is_ours and not inspect.isclass(obj) else True


def process_signature(app, what, name, obj, options, signature, returns):
    """The arguments of a class; of a layer Keras says `*args, **kwargs`."""
    if what != "class":
        return None
    has_init = obj.__init__ is not object.__init__
    parameters = inspect.signature(obj.__init__ if has_init else obj).parameters
    parameters = [
        parameter.replace(
            annotation=parameter.empty, default=_plain(parameter.default)
        )
        for name, parameter in parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(parameters)), None


class _Omitted:
    def __repr__(self):
        return "..."


def _plain(default):
    """A default that is an object, and that no one would write, is `...`."""
    is_plain = default in (None, inspect.Parameter.empty) or isinstance(
        default, bool | float | int | str | tuple
    )
    return default if is_plain else _Omitted()


def setup(app):
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    return {"parallel_read_safe": True}
