"""The floors of the library, read from its source."""

import ast
import pathlib

import keras_coda

ROOT = pathlib.Path(keras_coda.__file__).parent
INTERNALS = "_keras_internals.py"
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for path in sorted(ROOT.rglob("*.py"))
}


def imported_modules(tree):
    """Modules that a file imports, anywhere in it, with what it takes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted_name(node):
    """`"a.b.c"` of an expression like it, else the end of it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def in_packages(module, *packages):
    return any(
        module == package or module.startswith(f"{package}.")
        for package in packages
    )


def imports_into(folder, *packages):
    """The imports of `packages` by the files in a folder, which has some."""
    files = [name for name in SOURCES if name.startswith(folder)]
    assert files
    return [
        (name, module)
        for name in files
        for module in imported_modules(SOURCES[name])
        if in_packages(module, *packages)
    ]


def own_names():
    """The underscored attributes that the library itself defines."""
    names = set()
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Attribute, ast.Name)):
                if isinstance(node.ctx, ast.Store):
                    names.add(getattr(node, "attr", getattr(node, "id", None)))
    return names


def test_one_file_knows_what_is_private_in_keras():
    assert "keras.src.backend.get_keras_mask" in imported_modules(
        SOURCES[INTERNALS]
    )
    for name, tree in SOURCES.items():
        if name == INTERNALS:
            continue
        for module in imported_modules(tree):
            assert not in_packages(module, "keras.src", "keras_hub.src"), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                path = dotted_name(node)
                assert not in_packages(path, "keras.src", "keras_hub.src"), name


def test_no_file_touches_private_attributes_of_others():
    own = own_names()
    for name, tree in SOURCES.items():
        if name == INTERNALS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                private = node.attr.startswith("_")
                private = private and not node.attr.endswith("__")
                assert not private or node.attr in own, f"{name}: {node.attr}"


def test_ops_stand_on_keras_alone():
    for _, module in imports_into("ops/", "keras_coda"):
        assert in_packages(module, "keras_coda.ops"), module


def test_layers_stand_on_ops():
    for name, module in imports_into("layers/", "keras_coda", "keras_hub"):
        assert in_packages(
            module,
            "keras_coda.ops",
            "keras_coda.layers",
            "keras_coda._keras_internals",
        ), f"{name}: {module}"


def test_nothing_imports_a_family():
    # They are found, not listed; and they never import each other.
    package = "keras_coda.conversion.families"
    assert imports_into("", package) == []
    assert any(name.startswith("conversion/families/") for name in SOURCES)


def test_at_most_one_file_asks_for_the_backend():
    asking = set()
    for name, tree in SOURCES.items():
        for module in imported_modules(tree):
            if in_packages(
                module,
                "jax",
                "tensorflow",
                "torch",
                "keras.backend.backend",
                "keras.config.backend",
            ):
                asking.add(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and dotted_name(node) in (
                "keras.backend.backend",
                "keras.config.backend",
            ):
                asking.add(name)
    assert len(asking) <= 1, asking
