def make_figure(function_name, **kwargs):
    """A new `matplotlib.figure.Figure` with a constrained layout.

    Args:
        function_name: str. Which public function needs it.
        **kwargs: see `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"`{function_name}` needs matplotlib. Run "
            "`pip install keras-coda[plot]`."
        ) from error
    return Figure(layout="constrained", **kwargs)
