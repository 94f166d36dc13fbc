"Stage 1: attention, from the arithmetic to multi-head attention with positions."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "scores": ["dot_score", "scaled_dot_score", "general_score", "additive_score", "masked_softmax", "check_mask"],
        "scaled_dot_product": ["scaled_dot_product_attention", "causal_mask", "padding_mask"],
        "multihead": ["MultiHeadAttention", "HeadProjections", "split_heads", "join_heads", "join_masks"],
        "positions": ["sinusoidal_positions", "position_angles", "SinusoidalPositions", "LearnedPositions", "RotaryPositions", "RotaryMultiHeadAttention"],
        "cost": ["attention_flops", "convolution_flops", "recurrence_flops", "sequence_layers", "peak_memory", "time_side_by_side", "PowerLaw",
                 "fit_power_law", "measure_cost", "fitted", "plot_cost", "describe_machine"],
        "norms": ["layer_norm", "LayerHalves", "TransformerEncoderLayer", "TransformerEncoder", "gradient_norm"],
        "explore": ["AttentionState", "attention_state", "effective_keys", "draw_attention", "attention_explorer"],
        "exercises": ["grade", "grade_notebook"],
    },
)
