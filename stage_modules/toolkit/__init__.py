"What every stage uses: data, training, checkpoints, plots, explorers, checks and errors."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["DataError", "CheckpointError", "ShapeError", "check_shape"],
        "datasets": ["fetch"],
        "checkpoints": ["Checkpoint", "save_checkpoint", "load_checkpoint", "load_weights", "find_checkpoint", "check_config"],
        "training": ["Trainer", "TrainingConfig", "Callback"],
    },
)
