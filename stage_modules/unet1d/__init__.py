"Stage 3: a UNet that generates human poses, with convolution or attention in the middle."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "skeleton": ["JOINTS", "POSE_DIM", "Bone", "Skeleton", "Motion", "default_skeleton", "read_asf", "read_amc", "forward_kinematics", "continuous_rotations"],
        "poses": ["Clip", "PoseSplit", "Normaliser", "PoseBatches", "make_poses", "load_cmu", "cmu_skeleton", "read_poses", "split_clips"],
        "blocks": ["time_features", "TimeEmbedding", "ResBlock1D", "SelfAttention1D"],
        "model": ["UNet1D"],
        "diffusion": ["DDPM"],
        "flow": ["FlowMatching", "make_process"],
        "quality": ["QualityReport", "measure_quality", "quality_table", "frechet_distance", "precision_recall", "nearest_distances", "seed_interval"],
        "train": ["TrainConfig", "AveragedPair"],
        "sample": ["PoseGenerator", "Samples", "save_generator"],
        "explore": ["draw_pose", "draw_poses", "compare_poses", "animate", "Animation", "demo_generator", "denoise", "pose_explorer", "attention_parts", "draw_mid_attention"],
        "joints": ["JointUNet1D"],
        "exercises": ["grade", "grade_notebook"],
    },
)
