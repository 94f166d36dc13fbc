"Stage 5: a transformer that keeps an image in one vector, and how to make it fast."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "images": ["as_images", "draw_drops", "Drops", "DropImages", "ImageFolder", "read_image", "fit_image", "collate_images", "ImageBatch", "ImageBatches", "real_images", "RealImages"],
        "blocks": ["PositionalEncoding", "sinusoidal_2d", "EfficientMultiHeadAttention", "TransformerEncoderBlock", "Encoder_Transformer", "Decoder_Transformer"],
        "model": ["PRESETS", "AutoencoderSettings", "Autoencoder_Transformer", "create_autoencoder", "reconstruction_loss"],
        "cnn": ["Autoencoder_CNN", "cnn_for_budget"],
        "explore": ["visualize_attention_map", "attention_rollout", "attention_distance", "patch_explorer", "draw_architecture"],
        "sequence": ["LSTMModel", "embed_sequence", "collate_sequences"],
    },
)
