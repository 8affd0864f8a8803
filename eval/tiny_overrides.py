"""What the rules of `tiny_models` cannot know about an architecture's config: dotted paths and values."""

from typing import Any


def _same(kinds: tuple[str, ...], fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same fields for several architectures."""
    return dict.fromkeys(kinds, fields)


def _mrope(*sections: int, **further: Any) -> dict[str, Any]:
    """Rotary parameters with sections for a small head; their default is the class's, not the config's."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **further}


_TEXT_ROPE = "text_config.rope_parameters"
_LOOKS = "vision_config.image_size"  # 2 x 2 visual tokens are left after convolutions that divide by so much
_EYES = {"model_type": "gemma4_vision", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
_EYES |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "patch_size": 8}
_EYES |= {"pooling_kernel_size": 2, "position_embedding_size": 64}

OVERRIDES: dict[str, dict[str, Any]] = {
    # convolutions scale by coefficients
    "align": {
        "vision_config.width_coefficient": 0.25,
        "vision_config.depth_coefficient": 0.25,
        "vision_config.hidden_dim": 80,
        "vision_config.image_size": 64,
        "projection_dim": 80,
    },
    # ids of codebook entries lie behind each other in the vocabulary
    "apertus1p5": {
        "vision_config.codebook_size": 8,
        "vision_config.channel_multiplier": [1, 1, 1, 1, 1],
        "vision_config.resolution": 64,
        "audio_config.codebook_size": 8,
        "audio_config.num_filters": 8,
        "image_token_offset": 600,
        "audio_token_offset": 608,
    },
    # the projector knows how many queries a number of patches gets
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    # no placeholder by default; the dual encoder's questions go through its Q-Former
    **_same(("blip-2", "instructblip"), {"num_query_tokens": 4, "image_token_index": 3}),
    "blip-2/dual": {"qformer_config.use_qformer_text_input": True},
    "instructblipvideo": {"num_query_tokens": 4, "video_token_index": 3},
    # words for the codebook's entries
    "chameleon": {
        "vocabulary_map": {"<image>": 3, **{f"IMGIMG{chr(65 + i)}Z": 500 + i for i in range(8)}},
        "vq_config.num_embeddings": 8,
        "vq_config.resolution": 64,
        "vq_config.channel_multiplier": [1, 1, 1, 1, 1],
    },
    "cohere_compass": {_TEXT_ROPE: dict.fromkeys(("full_attention", "sliding_attention"), _mrope(4, 2, 2))},
    # channels that meet the next tower's width
    "deepseek_ocr2": {
        "text_config.num_experts_per_tok": 2,
        "vision_config.sam_config.downsample_channels": [32, 64],
        "text_config.mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "unlimited_ocr": {
        "vision_config.sam_config.downsample_channels": [32, 64],
        "vision_config.sam_config.image_size": 128,
        "vision_config.encoder_config.image_size": 28,
    },
    "diffusion_gemma": {
        "vision_config": _EYES,
        "canvas_length": 8,
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 64,
    },
    "dots3_note": {
        "text_config.head_dim": 24,
        "text_config.num_key_value_heads": 4,
        "text_config.per_layer_config": None,
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
    },
    # a timm tower by name: a small one of the same kind
    "fast_vlm": {
        "vision_config.model_args": {
            "inference_mode": True,
            "layers": [1, 1, 1, 1, 1],
            "embed_dims": [16, 16, 32, 32, 64],
        },
        "vision_config.hidden_size": 128,
        "vision_config.image_size": 128,
    },
    # one number a stage
    "florence2": {
        "vision_config.embed_dim": [16, 16, 32, 32],
        "vision_config.num_heads": [2, 2, 4, 4],
        "vision_config.num_groups": [2, 2, 4, 4],
        "vision_config.depths": [1, 1, 1, 1],
        "vision_config.image_size": 128,
    },
    **_same(("gemma3", "shieldgemma2"), {"mm_tokens_per_image": 4}),
    # the timm tower's last layer has 2048 channels at any width
    "gemma3n": {
        "vision_config.hidden_size": 2048,
        "vision_config.image_size": 128,
        "vision_config.model_args": {"channel_multiplier": 0.0625, "msfa_output_resolution": 4},
        "vision_soft_tokens_per_image": 16,
        "text_config.num_kv_shared_layers": 0,
        "text_config.layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    # no eyes by default
    "gemma4": {"vision_config": _EYES},
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
    "glm4v_moe": {_TEXT_ROPE: _mrope(2, 1, 1, partial_rotary_factor=0.5)},
    "glm5_next": {"text_config.num_key_value_heads": 4},
    **_same(("got_ocr2", "pp_chart2table", "granite_docling"), {_LOOKS: 128}),
    "granite4_vision": {
        "downsample_rate": "1/2",
        "image_grid_pinpoints": [[128, 128]],
        "deepstack_layer_map": [(-1, 1)],
        "spatial_target_layers": [2],
    },
    "hunyuan_vl": {"text_config.head_dim": 16, _TEXT_ROPE: _mrope(2, 2, 2, 2)},
    "hy_v4_vl": {_TEXT_ROPE: _mrope(2, 1, 1)},
    # gates start closed
    "idefics": {"alpha_initializer": "ones"},
    # its projections grow with the patch
    "inkling_mm_model": {"vision_config.patch_size": 8},
    "janus": {"vq_config.channel_multiplier": [1, 1, 1, 1, 1], "vq_config.num_embeddings": 8},
    "kimi_k25": {"text_config.head_dim": 8, "text_config.num_key_value_heads": 4},
    **_same(("kosmos-2", "kosmos-2.5"), {"latent_query_num": 8}),
    "llama4": {"vision_config.intermediate_size": 256, "vision_config.vision_output_dim": 64},
    **_same(("llava_next", "llava_next_video", "llava_onevision"), {"image_grid_pinpoints": [[56, 56]]}),
    # a processor's placeholder, which the default config lacks
    **_same(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "nemotron_h_omni"), {"image_token_id": 3}),
    "mistral4": {"num_key_value_heads": 4},
    "mistral_large4": {"text_config.num_key_value_heads": 4},
    "mllama": {"vision_config.vision_output_dim": 192, "vision_config.num_global_layers": 2},
    "molmo2": {
        "vision_config.image_size": [56, 56],
        "vision_config.num_position_embeddings": 16,
        "adapter_config.vision_feature_layer": [3, 2],
    },
    # as wide as four merged patches
    **_same(
        ("muse_glimmer", "muse_spark"),
        {"out_hidden_size": 256, "vision_config.out_hidden_size": 256, "projector_hidden_size": 256},
    ),
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
    "pp_formulanet": {
        _LOOKS: 128,
        "vision_config.post_conv_mid_channels": 64,
        "vision_config.post_conv_out_channels": 64,
    },
    "qwen4_exp": {
        "text_config.indexer_n_heads": 4,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 16,
        "text_config.indexer_budget": 64,
        "text_config.indexer_compress_ratio": 4,
    },
    **_same(
        ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
        {"vision_start_token_id": 4, "vision_end_token_id": 5, _TEXT_ROPE: _mrope(4, 2, 2)},
    ),
    "step3p7": {"text_config.sliding_window": 8, _LOOKS: 112},
    "t5gemma2": {"decoder_start_token_id": 2, "encoder.mm_tokens_per_image": 4},
    "tipsv2": {"vision_config.out_features": None, "vision_config.out_indices": None},
    **_same(("udop", "vision-encoder-decoder"), {"decoder_start_token_id": 2, "pad_token_id": 0}),
    "vipllava": {"vision_feature_layers": [-1, -2], "vision_feature_layer": [-1, -2]},
    # rotary sections
    **_same(("glm46v", "glm4v", "glmga", "glm_ocr"), {_TEXT_ROPE: _mrope(2, 3, 3)}),
    **_same(("cosmos3_edge", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl"), {_TEXT_ROPE: _mrope(4, 2, 2)}),
    "ernie4_5_vl_moe": {_TEXT_ROPE: _mrope(3, 3, 2)},
}
