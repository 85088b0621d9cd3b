"""Tables as text, the same in a terminal, a notebook and a file."""

from rich.console import Console


def as_text(*parts, width):
    """What `rich` prints of tables and lines, without colours.

    Args:
        *parts: what `rich.console.Console.print` takes.
        width: int. Columns at most.
    """
    console = Console(width=width, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get().rstrip("\n")
