"""Everything this library uses of KerasHub that is not public API.

No other file may import `keras_hub.src`; `tests/test_structure.py` enforces it.
"""

try:
    from keras_hub.src.vllm.context import get_vllm_context
except ImportError:
    # Of a KerasHub that vLLM cannot serve.
    get_vllm_context = None


def is_served_by_vllm():
    """Whether vLLM runs a KerasHub model in this thread, with its own cache."""
    context = get_vllm_context and get_vllm_context()
    return getattr(context, "paged_attention_func", None) is not None
