"Stage 5: a transformer that keeps an image in one vector, and how to make it fast."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "images": ["as_images", "draw_drops", "Drops", "DropImages", "ImageFolder", "read_image", "fit_image", "collate_images", "ImageBatch", "ImageBatches", "real_images", "RealImages"],
        "blocks": ["PositionalEncoding", "sinusoidal_2d", "EfficientMultiHeadAttention", "TransformerEncoderBlock", "Encoder_Transformer", "Decoder_Transformer", "make_blocks", "run_blocks"],
        "patches": ["patch_grid", "cut_patches", "join_patches", "token_mask"],
        "model": ["PRESETS", "AutoencoderSettings", "Autoencoder_Transformer", "create_autoencoder", "reconstruction_loss"],
        "cnn": ["Autoencoder_CNN", "cnn_for_budget"],
        "train": ["TrainConfig", "ssim", "image_figures", "draw_reconstructions"],
        "embed": ["Embedder", "load_autoencoder"],
        "reconstruct": ["Reconstructor"],
        "explore": ["attention_of", "AttentionMaps", "visualize_attention_map", "attention_rollout", "attention_distance", "patch_explorer", "draw_architecture"],
        "sequence": ["LSTMModel", "embed_sequence", "collate_sequences", "fit_readout"],
        "speed": ["Rung", "Change", "ladder", "own_ladder", "climb", "Step", "Loading", "attention_kernel", "compile_blocks"],
        "memory": ["training_memory", "MemoryParts", "step_moments", "measure_training", "largest_batch", "saved_tensors"],
    },
)
