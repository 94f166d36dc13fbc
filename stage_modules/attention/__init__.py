"Stage 1: attention, from the arithmetic to multi-head attention with positions."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "scores": ["dot_score", "scaled_dot_score", "general_score", "additive_score", "masked_softmax", "check_mask"],
        "scaled_dot_product": ["scaled_dot_product_attention", "causal_mask", "padding_mask"],
        "multihead": ["MultiHeadAttention", "HeadProjections", "split_heads", "join_heads", "join_masks"],
    },
)
