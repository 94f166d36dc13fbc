"Stage 4: nets that name motion-capture markers: an LSTM, a transformer, and both."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "markers": ["Recording", "MarkerSet", "C3DReport", "Correction", "BIOMECHZOO", "SEGMENTS", "read_c3d", "read_c3d_with_report", "write_c3d", "check_c3d", "is_unlabelled", "read_marker_set",
                    "load_biomechzoo", "load_pronto", "load_kneel", "opensim_markers", "corrections"],
        "simulate": ["Subject", "Body", "ACTIVITIES", "default_markers", "simulate_many", "Spoiled", "spoil", "fit_offsets"],
        "features": ["fill_gaps", "smooth", "facing_angle", "align", "estimate_facing", "window_spans", "marker_features", "FeatureScale"],
        "model": ["LabelerSettings", "build_labeler", "load_published", "LSTMNet", "TransformerNet", "HybridNet"],
        "train": ["TrainConfig", "WindowSettings", "WindowBatches"],
        "label": ["Labeler", "Labelling", "SegmentDistances", "assign_frames", "assign_trajectories", "name_trajectories", "export"],
        "recordings": ["example_poses", "label_by_poses"],
        "review": ["Review", "start_review", "draw_review", "review_tool"],
        "explore": ["Look", "look_at", "draw_look", "confusion_table", "worst_pairs", "draw_confusion"],
        "exercises": ["grade", "grade_notebook"],
    },
)
