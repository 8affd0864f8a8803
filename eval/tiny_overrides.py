"""What the rules of `tiny_models` cannot know about an architecture's config: dotted paths and values."""

from typing import Any

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MROPE = {**_ROPE, "mrope_section": [4, 2, 2]}  # a default that the class, not the config, holds

OVERRIDES: dict[str, dict[str, Any]] = {
    # convolutions scale by coefficients
    "align": {
        "vision_config.width_coefficient": 0.25,
        "vision_config.depth_coefficient": 0.25,
        "vision_config.hidden_dim": 80,
        "vision_config.image_size": 64,
        "projection_dim": 80,
    },
    "tipsv2": {"vision_config.out_features": None, "vision_config.out_indices": None},
    # an audio codec whose codebook must be as wide as its states
    # the projector knows how many queries a number of patches gets
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    # words for the codebook's entries
    "chameleon": {
        "vocabulary_map": {"<image>": 3, **{f"IMGIMG{chr(65 + i)}Z": 500 + i for i in range(8)}},
        "vq_config.num_embeddings": 8,
        "vq_config.resolution": 64,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1, 1, 1, 1],
        "vq_config.latent_channels": 64,
    },
    "cohere_compass": {
        "text_config.rope_parameters": {"full_attention": _MROPE, "sliding_attention": _MROPE},
    },
    "cosmos3_edge": {"text_config.rope_parameters": _MROPE},
    "deepseek_ocr2": {
        "text_config.num_experts_per_tok": 2,
        "vision_config.sam_config.downsample_channels": [32, 64],
        "text_config.mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 64,
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 3,
            "<|extra_200|>": 4,
            **{f"<|visual token {i:06d}|>": 500 + i for i in range(8)},
        },
        "vq_config.codebook_size": 8,
        "vq_config.base_channels": 64,
        "vq_config.channel_multiplier": [1, 1, 1, 1],
        "vq_config.latent_channels": 4,
    },
    "ernie4_5_vl_moe": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}},
    # a timm tower by name: a small one of the same kind
    "florence2": {
        "vision_config.embed_dim": [16, 16, 32, 32],
        "vision_config.num_heads": [2, 2, 4, 4],
        "vision_config.num_groups": [2, 2, 4, 4],
        "vision_config.depths": [1, 1, 1, 1],
        "vision_config.image_size": 128,
    },
    "gemma3n": {
        "vision_config.hidden_size": 2048,
        "vision_config.image_size": 256,
        "text_config.num_kv_shared_layers": 0,
        "text_config.layer_types": ["sliding_attention", "full_attention"] * 2,
        "text_config.intermediate_size": 128,
    },
    "glm5_next": {"text_config.num_key_value_heads": 4},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "image_grid_pinpoints": [[128, 128]],
        "deepstack_layer_map": [(-1, 1)],
        "spatial_target_layers": [2],
    },
    "hunyuan_vl": {
        "text_config.head_dim": 16,
        "text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 2, 2, 2]},
    },
    "hy_v4_vl": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}},
    "molmo2": {
        "vision_config.image_size": [56, 56],
        "vision_config.num_position_embeddings": 16,
        "adapter_config.vision_feature_layer": [3, 2],
    },
    "qwen2_5_vl": {"text_config.rope_parameters": _MROPE},
    "qwen4_exp": {
        "text_config.indexer_n_heads": 4,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 16,
        "text_config.indexer_budget": 64,
        "text_config.indexer_compress_ratio": 4,
    },
    "blip-2/dual": {
        "qformer_config.use_qformer_text_input": True,
        "image_token_index": 3,
        "num_query_tokens": 4,
    },
    "blip-2/generative": {"image_token_index": 3, "num_query_tokens": 4},
    "instructblip": {"num_query_tokens": 4, "image_token_index": 3},
    "instructblipvideo": {"num_query_tokens": 4, "video_token_index": 3},
    "gemma3": {"mm_tokens_per_image": 4},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "t5gemma2": {"decoder_start_token_id": 2, "encoder.mm_tokens_per_image": 4},
    "glm46v": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
    "glm4v": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
    "glmga": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
    "glm_ocr": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
    "glm4v_moe": {
        "text_config.rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    },
    "qwen2_vl": {"text_config.rope_parameters": _MROPE},
    "mistral4": {"num_key_value_heads": 4},
    "mistral_large4": {"text_config.num_key_value_heads": 4},
    "nemotron_h_omni": {"image_token_id": 3},
    "minicpm_ocr": {"image_token_id": 3},
    "minicpmv4_6": {"image_token_id": 3},
    "minicpmv4_7": {"image_token_id": 3},
    "vipllava": {"vision_feature_layers": [-1, -2], "vision_feature_layer": [-1, -2]},
    "step3p7": {"text_config.sliding_window": 8},
    "llava_next": {"image_grid_pinpoints": [[56, 56]]},
    "llava_next_video": {"image_grid_pinpoints": [[56, 56]]},
    "llava_onevision": {"image_grid_pinpoints": [[56, 56]]},
    "fast_vlm": {"vision_config.hidden_size": 3072},
    "gemma4": {
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
            "patch_size": 8,
        }
    },
    "gemma4_unified": {
        "vision_config": {
            "model_type": "gemma4_unified_vision",
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 64,
            "mm_posemb_size": 64,
            "output_proj_dims": 64,
        }
    },
    "udop": {"decoder_start_token_id": 2, "pad_token_id": 0},
    "vision-encoder-decoder": {"decoder_start_token_id": 2, "pad_token_id": 0},
    "qwen2_5_omni_thinker": {
        "vision_start_token_id": 4,
        "vision_end_token_id": 5,
        "text_config.rope_parameters": _MROPE,
    },
    "qwen3_omni_moe_thinker": {
        "vision_start_token_id": 4,
        "vision_end_token_id": 5,
        "text_config.rope_parameters": _MROPE,
    },
    "apertus1p5": {
        "vision_config.base_channels": 32,
        "vision_config.channel_multiplier": [1, 1, 1, 1, 1],
        "vision_config.num_res_blocks": 1,
        "vision_config.codebook_size": 8,
        "audio_config.codebook_size": 8,
        "audio_config.codebook_dim": 64,
        "audio_config.hidden_size": 64,
        "image_token_offset": 600,
        "audio_token_offset": 608,
    },
    "dots3_note": {
        "text_config.head_dim": 24,
        "text_config.num_key_value_heads": 4,
        "text_config.per_layer_config": None,
    },
    "idefics": {"alpha_initializer": "ones"},
    "kimi_k25": {"text_config.head_dim": 8, "text_config.num_key_value_heads": 4},
    "kosmos-2.5": {"latent_query_num": 8},
    "llama4": {"vision_config.intermediate_size": 256, "vision_config.vision_output_dim": 64},
    "mllama": {"vision_config.vision_output_dim": 192, "vision_config.num_global_layers": 2},
    "muse_glimmer": {
        "out_hidden_size": 256,
        "vision_config.out_hidden_size": 256,
        "projector_hidden_size": 256,
    },
    "muse_spark": {
        "out_hidden_size": 256,
        "vision_config.out_hidden_size": 256,
        "projector_hidden_size": 256,
    },
    "perception_lm": {
        "vision_config.architecture": "vit_pe_lang_large_patch14_448",
        "vision_config.model_args": {
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 4,
            "img_size": (56, 56),
            "patch_size": 14,
            "global_pool": "",
            "use_post_transformer_norm": False,
            "ref_feat_shape": (4, 4),
        },
    },
    "unlimited_ocr": {"vision_config.sam_config.downsample_channels": [32, 64]},
    "paddleocr_vl": {"text_config.rope_parameters": _MROPE},
}
