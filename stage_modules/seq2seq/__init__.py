"Stage 2: a translator built around attention."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "data": ["read_pairs", "load_tatoeba", "split_pairs", "normalise", "Vocab", "WordTokenizer", "BPETokenizer", "build_tokenizers",
                 "save_tokenizer", "load_tokenizer", "tokenizer_from_json", "encode_pairs", "Batch", "make_batch", "BucketedBatches"],
        "grammar": ["AlignedPair", "BilingualGrammar", "make_pairs", "make_sample"],
    },
)
