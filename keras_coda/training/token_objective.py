import keras

from keras_coda.conversion.token_positions import max_positions
from keras_coda.conversion.token_positions import validate_sequence_length
from keras_coda.conversion.trained_weights import backbone_of


class TokenObjective:
    """What the objectives on texts have in common.

    Attributes:
        model: the model to fit, from tokens to logits.
        loss: its loss.
        metrics: its metrics.
        tokenizer: the tokenizer.
    """

    def __init__(self, coda, task_cls, tokenizer, sequence_length):
        validate_sequence_length(coda, sequence_length)
        is_task = isinstance(coda, task_cls)
        if tokenizer is None and getattr(coda, "preprocessor", None):
            tokenizer = coda.preprocessor.tokenizer
        if tokenizer is None:
            raise ValueError(
                "`pretrain` needs the `tokenizer` of the backbone, to make "
                "tokens from texts. Received: tokenizer=None"
            )
        self.tokenizer = tokenizer
        task = coda if is_task else task_cls(backbone_of(coda))
        # Not the task itself: its `fit` would preprocess the inputs.
        self.model = keras.Model(task.input, task.output)
        self.loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )
        self.metrics = [
            keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        ]

    @staticmethod
    def default_sequence_length(backbone, x):
        return min(512, max_positions(backbone))

    def make_batch(self, texts):
        """Makes `(x, y, sample_weight)` from a list of texts."""
        raise NotImplementedError
