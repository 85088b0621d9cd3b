import io

import keras
import numpy as np
from rich.color import Color
from rich.console import Console
from rich.console import Group
from rich.style import Style
from rich.text import Text

from keras_coda.analysis.routing import routing_of_tensors
from keras_coda.training.inputs import preprocess


class RoutedText:
    """Texts whose tokens are coloured by how many blocks routed them.

    A notebook shows it, `rich.print` prints it in a terminal, and `html()` is
    for a file.

    Args:
        tokens: list with the tokens, str, of each text.
        counts: list with the number of blocks that routed each of them.
        num_blocks: int. The number of blocks.
    """

    def __init__(self, tokens, counts, num_blocks):
        self.tokens = tokens
        self.counts = counts
        self.num_blocks = num_blocks

    def html(self):
        """An HTML fragment."""
        console = Console(
            file=io.StringIO(), record=True, width=100, force_jupyter=False
        )
        console.print(self)
        return console.export_html(
            inline_styles=True,
            code_format=(
                '<pre style="font-family:monospace;line-height:1.5">{code}'
                "</pre>"
            ),
        )

    def _repr_html_(self):
        return self.html()

    def __repr__(self):
        return f"<RoutedText: {len(self.tokens)} texts>"

    def __rich__(self):
        legend = Text("blocks that routed a token: ")
        for count in range(self.num_blocks + 1):
            legend.append(f" {count} ", self._style(count))
        texts = [legend]
        for tokens, counts in zip(self.tokens, self.counts):
            text = Text()
            for token, count in zip(_spaced(tokens), counts):
                # The space between two words has no colour.
                word = token.lstrip(" ")
                text.append(token[: len(token) - len(word)])
                text.append(word, self._style(count))
            texts += [Text(), text]
        return Group(*texts)

    def _style(self, count):
        """From white for no block to dark blue for all of them."""
        share = count / self.num_blocks
        white, blue = np.array([255, 255, 255]), np.array([8, 48, 107])
        background = white + share * (blue - white)
        return Style(
            # By value: the "white" of a terminal is grey.
            color="#ffffff" if share > 0.5 else "#000000",
            bgcolor=Color.from_rgb(*background),
        )


def highlight_routing(model, inputs, tokenizer=None):
    """Colours the tokens of texts by how many blocks routed them.

    Args:
        model: a converted text model, a `keras_coda.CodaBackbone` or a task.
        inputs: one batch of texts, for a task with a preprocessor, or of the
            model's inputs.
        tokenizer: the KerasHub tokenizer that made the inputs. Defaults to that
            of the task's preprocessor.

    Returns:
        A `RoutedText`, without the padding. Notebooks display it, `rich.print`
        prints it, and its `html()` is an HTML fragment.

    Raises:
        TypeError: if the model does not take token ids.
        ValueError: if there is no tokenizer.

    Example:

    >>> dense = keras_hub.models.BertBackbone(
    ...     vocabulary_size=7,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     hidden_dim=16,
    ...     intermediate_dim=32,
    ... )
    >>> tokenizer = keras_hub.models.BertTokenizer(
    ...     ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rout", "##ing"]
    ... )
    >>> preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
    ...     tokenizer, sequence_length=8
    ... )
    >>> coda = keras_coda.coda_wrap(dense, reduction_factor=2)
    >>> text = keras_coda.analysis.highlight_routing(
    ...     coda, preprocessor(["routing"]), tokenizer
    ... )
    >>> text.tokens
    [['[CLS]', 'rout', '##ing', '[SEP]']]
    """
    inputs = preprocess(model, inputs)
    prefix = "encoder_" if "encoder_token_ids" in inputs else ""
    if f"{prefix}token_ids" not in inputs:
        raise TypeError(
            "`model` must be a text model and `inputs` a dict with token ids. "
            "For images see `keras_coda.analysis.plot_routing`. "
            f"Received: inputs={inputs}"
        )
    preprocessor = getattr(model, "preprocessor", None)
    tokenizer = tokenizer or getattr(preprocessor, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "`highlight_routing` needs the `tokenizer` that made the inputs. "
            "Received: tokenizer=None, and a model without a preprocessor"
        )
    routed = routing_of_tensors(model, inputs)
    token_ids = keras.ops.convert_to_numpy(inputs[f"{prefix}token_ids"])
    counts = routed.num_blocks_routed()
    return RoutedText(
        tokens=[
            [tokenizer.id_to_token(int(token_id)) for token_id in row[real]]
            for row, real in zip(token_ids, routed.is_real)
        ],
        counts=[
            row[real].tolist() for row, real in zip(counts, routed.is_real)
        ],
        num_blocks=len(routed.names),
    )


def _spaced(tokens):
    """The tokens as written: WordPiece's or SentencePiece's."""
    if any("▁" in token for token in tokens):
        return [token.replace("▁", " ") for token in tokens]
    return [
        token[2:] if token.startswith("##") else f" {token}" for token in tokens
    ]
