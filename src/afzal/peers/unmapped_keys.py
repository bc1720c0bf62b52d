"""Other trainers' keys without a counterpart, grouped by reason; the keys of a reason are separated by spaces."""

from __future__ import annotations

WATCHED = "a run writes metrics.jsonl, samples and report.html into its folder, without an account"
LAID_OUT = "how the work is organised, which changes no number; Afzal chooses it for the machine (afzal plan)"
RANKS = "torchrun with the same command distributes a run over GPUs (docs/devices.md)"
SAVED = "checkpoints are complete, verified, and resumed with afzal train RUN --resume"
CODE = "code from a model's folder is never run; a model that transformers knows needs none"

SHARED_IDLE = {
    WATCHED: "logging_dir logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter log_level "
    "log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id "
    "trackio_static_space_id include_num_input_tokens_seen include_tokens_per_second include_for_metrics "
    "include_inputs_for_metrics prediction_loss_only plot_loss log_completions log_multimodal "
    "num_completions_to_print log_unique_prompts log_completions_hub_repo wandb_project wandb_entity",
    LAID_OUT: "per_device_eval_batch_size eval_accumulation_steps eval_do_concat_batches eval_use_gather_object "
    "batch_eval_metrics dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor "
    "dataloader_persistent_workers dataloader_multiprocessing_context dataloader_in_order remove_unused_columns "
    "label_names length_column_name group_by_length torch_empty_cache_steps auto_find_batch_size tf32 "
    "attn_implementation flash_attn use_flash_attention_2 use_liger_kernel liger_kernel_config enable_liger_kernel "
    "use_cache activation_offloading activation_checkpointing_kwargs gradient_checkpointing_kwargs torch_compile "
    "torch_compile_backend torch_compile_mode padding_free pad_to_multiple_of dataset_num_proc "
    "preprocessing_num_workers preprocessing_batch_size skip_memory_metrics full_determinism ignore_data_skip "
    "bf16_full_eval fp16_full_eval average_tokens_across_devices low_cpu_mem_usage use_fast_tokenizer cache_dir "
    "precompute_ref_batch_size ignore_bias_buffers use_unsloth use_unsloth_gc use_reentrant_gc debug",
    RANKS: "deepspeed fsdp fsdp_config fsdp_transformer_layer_cls_to_wrap accelerator_config parallelism_config "
    "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
    "local_rank use_ray ray_num_workers ray_init_kwargs master_addr master_port ds3_gather_for_generation",
    SAVED: "save_only_model save_safetensors save_on_each_node overwrite_output_dir resume_from_checkpoint "
    "enable_jit_checkpoint restore_callback_states_from_checkpoint save_strategy",
    "afzal train is the command": "do_train do_eval do_predict",
    CODE: "trust_remote_code",
}
SHARED_LOST = {
    "no noise is added to embeddings": "neftune_noise_alpha",
    "not for preference objectives; see cdpo and robust in afzal objectives": "label_smoothing_factor",
    "the optimizer has no further arguments": "optim_args optim_target_modules",
    "the learning-rate schedule has no further arguments": "lr_scheduler_kwargs",
    "a run keeps its last weights; early_stop_patience ends it when the held-out loss stops falling": (
        "load_best_model_at_end metric_for_best_model greater_is_better"
    ),
    "a single seed determines the rows": "data_seed",
    "evaluations run before the first update and then at even intervals": "eval_delay",
}
TRL_IDLE = {
    LAID_OUT: "dataset_streaming streaming cast_lm_head_to_fp32 use_vllm vllm_mode vllm_model_impl "
    "vllm_enable_sleep_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port "
    "vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size vllm_importance_sampling_correction "
    "vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min "
    "vllm_importance_sampling_cap use_transformers_continuous_batching transformers_continuous_batching_config "
    "use_transformers_paged cache_implementation packing_strategy eval_packing bnb_4bit_quant_storage "
    "use_bnb_nested_quant bnb_4bit_quant_type use_logits_to_keep num_generations_eval",
    "rows are shuffled by the seed": "shuffle_dataset train_sampling_strategy",
    "the tokenizer's padding token is never read: no row is padded": "pad_token padding_value label_pad_token_id",
    "answers are sampled at every evaluation": "generate_during_eval",
    "belongs to an unused option": "lora_target_parameters sapo_temperature_neg sapo_temperature_pos vespo_k_neg "
    "vespo_k_pos vespo_lambda_neg vespo_lambda_pos vllm_structured_outputs_regex",
    "always: the first evaluation is at the start": "eval_on_start",
}
TRL_LOST = {
    "no counterpart yet": "router_aux_loss_coef dataset_kwargs model_init_kwargs is_encoder_decoder "
    "max_tool_calling_iterations chat_template_kwargs",
    "prompt and answer share one limit, max_tokens": "max_prompt_length",
}
AXOLOTL_IDLE = {
    "belongs to an unused option": "lisa_step_interval lisa_layers_attribute relora_prune_ratio relora_prune_method "
    "relora_cpu_offload torchdistx_path adam_epsilon2 adam_beta3 dion_lr dion_momentum dion_rank_fraction "
    "dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant "
    "qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size "
    "jagged_restart_warmup_steps jagged_restart_anneal_steps pose_split_on_token_ids pose_max_context_len "
    "pose_num_chunks pretrain_multipack_buffer_size pretrain_multipack_attn eaft_alpha eaft_k bench_dataset "
    "bench_split lora_rank_pattern lora_alpha_pattern lora_target_parameters loraplus_lr_ratio loraplus_lr_embedding "
    "peft_init_lora_weights",
    "belongs to its own commands and caches": "gradio_title gradio_share gradio_server_name gradio_server_port "
    "gradio_max_new_tokens gradio_temperature is_preprocess preprocess_iterable total_num_tokens "
    "total_supervised_tokens sample_packing_eff_est axolotl_config_path is_falcon_derived_model "
    "tokenizer_save_jinja_files",
    WATCHED: "use_wandb wandb_name wandb_run_id wandb_mode wandb_watch wandb_log_model use_mlflow "
    "use_tensorboard mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_comet "
    "comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online "
    "comet_experiment_config use_trackio trackio_project_name trackio_run_name use_otel_metrics otel_metrics_host "
    "otel_metrics_port profiler_steps profiler_steps_start include_tkps generate_samples num_generation_samples "
    "generation_max_new_tokens generation_temperature generation_top_p generation_top_k generation_prompt_ratio "
    "generation_do_sample do_bench_eval eval_table_size eval_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics",
    LAID_OUT: "sample_packing sample_packing_group_size sample_packing_bin_size sample_packing_sequentially "
    "eval_sample_packing pad_to_sequence_len multipack_real_batches batch_flattening eval_batch_size flash_attention "
    "xformers_attention sdp_attention flex_attention eager_attention sage_attention flash_attn_cross_entropy "
    "flash_attn_fuse_mlp flash_attn_rms_norm flash_optimum device_map dataset_prepared_path dataset_processes "
    "dataset_keep_in_memory skip_prepare_dataset num_dataset_shards_to_save lora_mlp_kernel lora_qkv_kernel "
    "lora_o_kernel lora_embedding_kernel gc_steps gc_collect_steps tiled_mlp max_memory gpu_memory_limit lora_on_cpu "
    "dpo_use_liger_kernel dpo_padding_free dpo_use_logits_to_keep liger_rope liger_rms_norm liger_glu_activation "
    "liger_swiglu liger_layer_norm liger_cross_entropy liger_fused_linear_cross_entropy cut_cross_entropy plugins "
    "layer_offloading selective_checkpointing qlora_sharded_model_loading tokenizer_type model_type type_of_model "
    "processor_type is_llama_derived_model is_mistral_derived_model is_qwen_derived_model tokenizer_use_fast "
    "tokenizer_legacy strict save_first_step bfloat16 float16 float32 vllm bnb_config_kwargs merge_method merge_lora "
    "dpo_generate_during_eval eval_sequence_len chunked_cross_entropy fp32_norms embeddings_skip_upcast use_kernels "
    "device sample_packing_mp_start_method streaming streaming_multipack_buffer_size flex_attn_compile_kwargs "
    "experts_implementation gemma4_hybrid_attn_impl large_head_attention flash_attn_d512 sdpa_varlen fused_attn_kernel "
    "ple_cpu_offload chunked_cross_entropy_num_chunks tiled_mlp_num_shards tiled_mlp_use_original_mlp "
    "fp32_norm_classes torch_compile_options peft_ensure_weight_tying peft_autocast_adapter_dtype "
    "experimental_skip_move_to_device fp8_enable_fsdp_float8_all_gather",
    RANKS: "fsdp_version fsdp_final_state_dict_type dp_shard_size dp_replicate_size sequence_parallel_degree "
    "context_parallel_size heads_k_stride ring_attn_func ddp world_size deepcompile "
    "resources_per_worker ray_run_name",
    SAVED: "saves_per_epoch auto_resume_from_checkpoints dynamic_checkpoint",
    "rows are shuffled by the seed": "shuffle_merged_datasets shuffle_before_merging_datasets curriculum_sampling",
    "exact duplicates are dropped unless clean is off": "dataset_exact_deduplication",
    "hub downloads use the token of hf auth login": "hf_use_auth_token push_dataset_to_hub",
}
AXOLOTL_LOST = {
    "no counterpart": "mean_resizing_embeddings model_quantization_config model_quantization_config_kwargs "
    "use_onebitllms scaling_softmax scaling_softmax_factor scaling_softmax_bias quantize_moe_experts "
    "max_packed_sequence_len noisy_embedding_alpha s2_attention image_size image_resize_algorithm role_boundaries "
    "fix_untrained_tokens pretraining_sample_concatenation processor_kwargs tokenizer_use_mistral_common",
    "the model is used as its files define it": "overrides_of_model_config overrides_of_model_kwargs base_model_config "
    "model_config cls_model_config rope_scaling resize_token_embeddings_to_32x shrink_embeddings reinit_weights "
    "tokenizer_config revision_of_model added_tokens_overrides llama4_linearized_experts",
    "all weights or one adapter train": "unfrozen_parameters freeze_mm_modules lisa_n_layers relora "
    "peft_layers_to_transform peft_layers_pattern peft_layer_replication peft_trainable_token_indices "
    "lora_fan_in_fan_out",
    "one learning rate for all weights": "lr_groups embedding_lr embedding_lr_scale",
    "the learning-rate schedule has no such part": "cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor "
    "lr_quadratic_warmup jagged_restart_steps",
    "the loss is the negative log-likelihood": "use_eaft",
    "a diverging run is stopped by its own checks (docs/run-folder.md)": "loss_watchdog_threshold "
    "loss_watchdog_patience",
    "the chat template decides": "default_system_message chat_template_kwargs eot_tokens",
    "the vocabulary is the tokenizer's": "tokens",
    "weights train in float32": "fp8 fp8_config qat quantization",
    "every row is used": "dataset_shard_num dataset_shard_idx min_sample_len max_prompt_len",
    "no such kind of training": "process_reward_model ebft trainer_cls num_labels pretraining_dataset use_pose gptq",
}
LLAMA_FACTORY_IDLE = {
    "belongs to an unused option": "init_special_tokens module_dropout hyper_parallel_args export_quantization_bit "
    "export_quantization_dataset export_quantization_nsamples export_quantization_maxlen sglang_maxlen sglang_tp_size "
    "sglang_mem_fraction sglang_config sglang_lora_backend kt_weight_path kt_expert_checkpoint_path "
    "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size compute_dtype interleave_probs",
    WATCHED: "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key "
    "swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret compute_accuracy include_effective_tokens_per_second "
    "print_param_status enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps "
    "profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack "
    "profile_modules",
    LAID_OUT: "overwrite_cache tokenized_path data_shared_file_system streaming buffer_size infer_backend "
    "offload_folder use_kv_cache use_v1_kernels infer_dtype device_map upcast_layernorm upcast_lmhead_output "
    "quantization_device_map quantization_method quantization_type double_quantization ignore_pad_token_for_loss "
    "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config packing neat_packing block_diag_attn "
    "pure_bf16 fp8_backend fp8_enable_fsdp_float8_all_gather adapter_folder eval_num_beams export_dir export_size "
    "export_device export_legacy_format export_hub_model_id",
    "a token is never in a file: hf auth login": "hf_hub_token ms_hub_token om_hub_token",
    "the model's processor decides the size of images and sounds": "image_max_pixels image_min_pixels "
    "image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels video_fps video_maxlen "
    "use_audio_in_video audio_sampling_rate",
    "media are looked up next to the data file": "media_dir",
    "answers are sampled from the model's full distribution": "do_sample num_beams length_penalty skip_special_tokens "
    "max_length repetition_penalty",
}
LLAMA_FACTORY_LOST = {
    "experts are trained as usual": "use_kt",
    "no counterpart: weights are trained by AdamW, RMSprop or SGD": "use_galore use_apollo use_badam use_muon "
    "use_adam_mini use_mca use_hyper_parallel",
    "the loss is the negative log-likelihood": "use_dft_loss use_asft_loss use_eaft_loss",
    "the vocabulary is the tokenizer's": "resize_vocab add_tokens add_special_tokens new_special_tokens_config",
    "the model is used as its files define it": "rope_scaling shift_attn mixture_of_depths train_from_scratch "
    "use_llama_pro moe_aux_loss_coef split_special_tokens model_max_length",
    "only answers are learned": "train_on_prompt",
    "the chat template decides": "default_system enable_thinking preserve_thinking tool_format",
    "the seed determines the order of the rows": "disable_shuffling",
    "evaluation covers all held-out rows; Afzal reports per task": "eval_on_each_dataset",
    "weights train in float32": "fp8",
    "every assistant turn of an answer is learned": "mask_history",
}
