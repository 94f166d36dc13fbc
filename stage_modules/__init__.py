"A course on attention that runs. Subpackages load when they are first used, so this import stays light."
__version__ = "0.1.0"

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["toolkit", "attention", "seq2seq", "unet1d", "labeler", "autoencoder"])
