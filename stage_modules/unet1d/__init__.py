"Stage 3: a UNet that generates human poses, with convolution or attention in the middle."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "blocks": ["time_features", "TimeEmbedding", "ResBlock1D", "SelfAttention1D"],
        "model": ["UNet1D"],
    },
)
