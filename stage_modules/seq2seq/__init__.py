"Stage 2: a translator built around attention."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "data": ["read_pairs", "load_tatoeba", "split_pairs", "normalise", "Vocab", "WordTokenizer", "BPETokenizer", "build_tokenizers",
                 "save_tokenizer", "load_tokenizer", "tokenizer_from_json", "encode_pairs", "Batch", "make_batch", "BucketedBatches"],
        "grammar": ["AlignedPair", "BilingualGrammar", "make_pairs", "make_sample"],
        "attention": ["Attention", "PlainAttention", "BahdanauAttention", "register_attention", "build_attention"],
        "model": ["ModelConfig", "Encoded", "LSTMEncoder", "Decoder", "DecoderState", "LSTMDecoder", "RecurrentDecoder", "Seq2Seq", "build_model",
                  "sequence_loss", "greedy_decode", "select_rows", "register_encoder", "register_decoder"],
        "luong": ["LuongAttention", "LuongDecoder"],
        "coverage": ["CoverageAttention", "coverage_loss"],
        "encoders": ["ConvEncoder", "TransformerSourceEncoder", "PositionedEmbedding", "influence"],
        "transformer": ["TransformerDecoder", "TransformerDecoderLayer", "DecoderStack"],
        "translate": ["Translator", "Translation"],
        "search": ["Hypothesis", "beam_search", "length_divisor", "coverage_score"],
        "metrics": ["measure_attention", "attention_spread", "monotonic_score", "coverage_errors", "row_entropy", "bootstrap_bleu", "paired_bootstrap",
                    "bleu_by_length"],
        "evaluate": ["corpus_bleu", "corpus_chrf", "group_references", "Score", "Evaluation"],
        "train": ["TrainConfig", "forcing_ratio", "entropy_penalty", "grid_search"],
        "explore": ["draw_attention", "draw_against_gold", "forced_attention", "alignment_error_rate", "explore_attention"],
        "visualize": ["attention_html", "attention_page", "draw_map", "draw_coverage", "head_maps", "draw_head_maps", "demo_translator",
                      "explore_translations"],
        "trouble": ["kept_tensors", "recompute", "loss_in_pieces", "quantised"],
        "exercises": ["grade", "grade_notebook"],
    },
)
