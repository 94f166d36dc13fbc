"What every stage uses: data, training, checkpoints, plots, explorers, checks and errors."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["DataError", "CheckpointError", "ShapeError", "check_shape"],
        "datasets": ["Entry", "FetchError", "fetch", "fetch_folder", "available", "is_available", "data_folder", "registry", "read_registry"],
        "plots": ["PALETTE", "use_style", "attention_heatmap", "attention_heads", "training_curves", "comparison_bars"],
        "explore": ["Explorer", "explorer", "control", "slider", "choice", "tick_box", "text_field"],
        "checking": ["Verdict", "Case", "check", "close", "has_shape", "same", "prove_check"],
        "checkpoints": ["Checkpoint", "save_checkpoint", "load_checkpoint", "load_weights", "find_checkpoint", "check_config"],
        "training": ["Trainer", "TrainingConfig", "Callback"],
    },
)
