"Stage 4: nets that name motion-capture markers: an LSTM, a transformer, and both."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "markers": ["Recording", "MarkerSet", "C3DReport", "Correction", "BIOMECHZOO", "SEGMENTS", "read_c3d", "read_c3d_with_report", "write_c3d", "check_c3d", "is_unlabelled", "read_marker_set",
                    "load_biomechzoo", "load_pronto", "load_kneel", "opensim_markers", "corrections"],
    },
)
