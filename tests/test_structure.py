"""The floors of the library, read from its source."""

import ast
import pathlib

import keras_coda

ROOT = pathlib.Path(keras_coda.__file__).parent
INTERNALS = "_keras_internals.py"
HUB_INTERNALS = "conversion/_keras_hub_internals.py"
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


def own_names(tree):
    """The underscored names that a file defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Name)):
            if isinstance(node.ctx, ast.Store):
                names.add(getattr(node, "attr", getattr(node, "id", None)))
    return names


def test_one_file_each_knows_what_is_private_in_keras_and_keras_hub():
    assert "keras.src.backend.get_keras_mask" in imported_modules(
        SOURCES[INTERNALS]
    )
    for name, tree in SOURCES.items():
        if name in (INTERNALS, HUB_INTERNALS):
            continue
        for module in imported_modules(tree):
            assert not in_packages(module, "keras.src", "keras_hub.src"), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                path = dotted_name(node)
                assert not in_packages(path, "keras.src", "keras_hub.src"), name


def private_attributes(tree):
    """Receivers and names of the underscored attributes in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            if not node.attr.endswith("__"):
                yield dotted_name(node.value), node.attr


# Underscored to leave room for the names of fields, not because private.
NAMED_TUPLE_METHODS = ("_asdict", "_replace")


def test_private_attributes_are_an_objects_own():
    for name, tree in SOURCES.items():
        if name == INTERNALS:
            continue
        own = own_names(tree)
        for receiver, attribute in private_attributes(tree):
            if attribute in NAMED_TUPLE_METHODS:
                continue
            where = f"{name}: {receiver}.{attribute}"
            assert receiver in ("self", "cls"), where
            # What a base class of ours defines is no private name of Keras's.
            assert attribute in own | OF_BASE_CLASSES.get(name, set()), where


# What a file uses of the private names of a class that it subclasses.
OF_BASE_CLASSES = {
    "callbacks/reduction_schedule.py": {"_num_steps", "_targets"},
    "callbacks/elastic_reduction.py": {"_targets"},
}

# Each floor, and those below it that it may stand on. CONTRIBUTING has it too.
FLOORS = {
    "validation.py": [],
    "tables.py": [],
    "_keras_internals.py": [],
    "backend_differences.py": [],
    "models.py": [],
    "ops/": ["ops", "validation", "backend_differences"],
    "layers/": [
        "backend_differences",
        "layers",
        "ops",
        "validation",
        "_keras_internals",
    ],
    "callbacks/": ["callbacks", "layers", "ops", "validation"],
    "conversion/families/": [
        "backend_differences",
        "conversion",
        "layers",
        "ops",
        "_keras_internals",
    ],
    "conversion/": [
        "backend_differences",
        "conversion",
        "layers",
        "models",
        "ops",
        "tables",
        "validation",
        "_keras_internals",
    ],
    "analysis/": [
        "analysis",
        "conversion",
        "layers",
        "ops",
        "tables",
        "training",
        "validation",
        "_keras_internals",
    ],
    "training/": [
        "training",
        "conversion",
        "layers",
        "ops",
        "tables",
        "validation",
        "_keras_internals",
    ],
    "exporting/": [
        "backend_differences",
        "exporting",
        "conversion",
        "layers",
        "ops",
        "validation",
        "_keras_internals",
    ],
    "speech/": ["speech", "conversion", "validation"],
    "commands/": [
        "commands",
        "analysis",
        "conversion",
        "exporting",
        "training",
    ],
    "__main__.py": ["commands"],
    "__init__.py": [
        "analysis",
        "callbacks",
        "conversion",
        "exporting",
        "layers",
        "ops",
        "speech",
        "training",
    ],
}
NO_KERAS_HUB = ("ops/", "layers/", "callbacks/", "validation.py", INTERNALS)


def floor_of(name):
    """The most particular floor that a file belongs to."""
    return max((floor for floor in FLOORS if name.startswith(floor)), key=len)


def test_imports_point_down():
    for name, tree in SOURCES.items():
        floor = floor_of(name)
        below = [f"keras_coda.{folder}" for folder in FLOORS[floor]]
        for module in imported_modules(tree):
            if in_packages(module, "keras_coda") and floor != "__init__.py":
                assert in_packages(module, *below), f"{name}: {module}"
            if floor in NO_KERAS_HUB:
                assert not in_packages(module, "keras_hub"), name


def test_nothing_imports_a_family():
    # They are found, not listed; and they never import each other.
    package = "keras_coda.conversion.families"
    assert imports_into("", package) == []
    assert any(name.startswith("conversion/families/") for name in SOURCES)


def test_two_files_ask_for_the_backend():
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
    assert asking == {"exporting/formats.py", "backend_differences.py"}
