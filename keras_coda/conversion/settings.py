import dataclasses

from keras_coda.layers.block_settings import BlockSettings


@dataclasses.dataclass(frozen=True)
class Settings(BlockSettings):
    """How a model is converted: what its blocks take, and what is its own.

    Args:
        reduction_factor: a number >= 1, or a list with one number for each
            routed block. Ratio of tokens to routed tokens; can be changed
            later through the property of the same name. `"auto"` is `4`, in
            language models behind a first third of the blocks at `1`. Defaults
            to `"auto"`.
        num_prefix_tokens: int >= 0. Leading tokens that are always routed;
            `"auto"` takes what the family's heads pool (see
            `keras_coda.supported_models`), which need not be a leading token.
            Defaults to `"auto"`.
        lora_rank: optional int >= 1. Rank of LoRA on the frozen query and
            value projections, trained too. LoRA changes those projections, so
            the backbone is then copied and not shared with `model`. Defaults
            to `None`, no LoRA.
    """

    reduction_factor: float | list | str = "auto"
    num_prefix_tokens: int | str = "auto"
    lora_rank: int | None = None

    def for_block(self):
        """The settings of one block, by name, before its reduction factor."""
        settings = dataclasses.asdict(self)
        settings["reduction_factor"] = 1
        if self.num_prefix_tokens == "auto":
            settings["num_prefix_tokens"] = 0
        del settings["lora_rank"]
        return settings
