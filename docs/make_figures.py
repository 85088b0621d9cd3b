"""Draws the figures of README and of the documentation.

    python docs/make_figures.py

Writes docs/figures. Needs `pip install -e ".[plot]"`.
"""

import pathlib

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.patches import FancyBboxPatch
from matplotlib.patches import Rectangle

import keras_coda
from keras_coda.layers.conditional_transformer_block import ATTENTIONS

FOLDER = pathlib.Path(__file__).parent / "figures"
INK, FAINT = "#33415c", "#c9d1dc"
FROZEN, TRAINED, ROUTED = "#dfe7f1", "#f6c177", "#eb6f92"
NUM_TOKENS, ROUTED_TOKENS = 12, (0, 4, 9)


def draw_block():
    """One block: all tokens take the adapter, a few the frozen block."""
    figure = Figure(figsize=(8, 4.1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 16)
    axes.set_ylim(0, 8.2)
    axes.set_axis_off()

    def box(x, y, width, height, text, color, size=10):
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.15",
                facecolor=color,
                edgecolor=INK,
            )
        )
        axes.text(
            x + width / 2,
            y + height / 2,
            text,
            ha="center",
            va="center",
            color=INK,
            fontsize=size,
        )

    def arrow(start, end, color=INK, curve=0.0):
        axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=11,
                color=color,
                connectionstyle=f"arc3,rad={curve}",
                linewidth=1.3,
            )
        )

    def tokens(x, changed):
        centres = np.linspace(0.75, 7.0, NUM_TOKENS)[::-1]
        for index, y in enumerate(centres):
            is_routed = index in ROUTED_TOKENS
            color = ROUTED if is_routed else FAINT
            if changed and not is_routed:
                color = TRAINED
            axes.add_patch(
                FancyBboxPatch(
                    (x, y - 0.19),
                    0.55,
                    0.38,
                    boxstyle="round,pad=0,rounding_size=0.08",
                    facecolor=color,
                    edgecolor=INK,
                    linewidth=0.8,
                )
            )
        return centres

    rows = tokens(1.0, changed=False)
    tokens(14.2, changed=True)
    axes.text(1.27, 7.6, "n tokens", ha="center", color=INK)
    axes.text(14.47, 7.6, "n tokens", ha="center", color=INK)

    box(3.2, 4.75, 1.9, 1.5, "router\npicks k of n", TRAINED)
    box(6.6, 3.9, 4.4, 3.2, "pretrained block\nfrozen\n\nk tokens", FROZEN, 11)
    box(6.6, 0.8, 4.4, 1.3, "adapter, all n tokens", TRAINED)
    box(12.1, 3.2, 0.9, 0.9, "+", "white", 13)

    for index, y in zip(ROUTED_TOKENS, (6.1, 5.5, 4.9)):
        arrow((5.15, y), (6.55, y), ROUTED)
        arrow((1.6, rows[index]), (3.15, 5.9 - 0.25 * index / 4), ROUTED, 0.1)
    arrow((1.75, 2.3), (6.55, 1.5))
    arrow((11.05, 5.3), (12.2, 4.15), ROUTED)
    arrow((11.05, 1.5), (12.2, 3.15))
    arrow((13.05, 3.65), (14.1, 3.65))
    arrow((1.75, 3.2), (12.05, 3.6), FAINT)
    axes.text(8.8, 3.0, "residual", ha="center", color=INK, fontsize=9)

    axes.text(
        8.8,
        7.45,
        "r = n / k = 4: a quarter of its arithmetic",
        ha="center",
        color=INK,
        fontsize=9,
    )
    axes.text(
        8.8,
        0.3,
        "small, trained: about 1% of the parameters",
        ha="center",
        color=INK,
        fontsize=9,
    )
    return figure


def draw_attention():
    """Which tokens attend to which: a row for each query."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ("dense", *ATTENTIONS)):
        for query in range(NUM_TOKENS):
            for key in range(NUM_TOKENS):
                is_computed = name == "dense" or (
                    query in ROUTED_TOKENS
                    and (name == "k_to_all" or key in ROUTED_TOKENS)
                )
                axes.add_patch(
                    Rectangle(
                        (key, query),
                        0.86,
                        0.86,
                        facecolor=ROUTED if is_computed else FROZEN,
                    )
                )
        axes.set_xlim(0, NUM_TOKENS)
        axes.set_ylim(NUM_TOKENS, 0)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_frame_on(False)
        axes.set_title(name, color=INK, fontsize=11)
        axes.set_xlabel("keys and values", color=INK)
    figure.axes[0].set_ylabel("queries", color=INK)
    return figure


def draw_soft_top_k():
    """The weights that soft top-k gives to scores, at three epsilons."""
    scores = np.linspace(1.5, -1.5, 25)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for epsilon, color in ((0.03, ROUTED), (0.3, TRAINED), (1.0, INK)):
        weights = keras_coda.ops.soft_top_k(scores[None], k=8, epsilon=epsilon)
        axes.plot(
            scores,
            keras.ops.convert_to_numpy(weights)[0],
            marker="o",
            markersize=4,
            color=color,
            label=f"epsilon = {epsilon}",
        )
    axes.set_xlabel("score of a token", color=INK)
    axes.set_ylabel("weight, the sum is k = 8", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main():
    FOLDER.mkdir(exist_ok=True)
    draw_block().savefig(FOLDER / "block.png", dpi=150)
    draw_attention().savefig(FOLDER / "attention.png", dpi=150)
    draw_soft_top_k().savefig(FOLDER / "soft_top_k.png", dpi=150)


if __name__ == "__main__":
    main()
