"""SGLang arguments that a pool may not set, each with the reason and what to do instead.

Way:   [this table] -> disagg/config/rules.py refuses them by name; docs/sglang-versions.md lists them
Out:   name -> (why, what would do), for the names of every supported release. All other arguments pass to SGLang
"""

from __future__ import annotations

LEAVE_OUT = "leave it out"
# (why, the arguments, what would do unless it is LEAVE_OUT)
_REASONS: tuple[tuple[str, ...], ...] = (
    # the role and the deployment
    ("the pool's role decides it", "disaggregation_mode", "put the pool under prefill, decode or aggregated"),
    ("KV always moves over NIXL", "disaggregation_transfer_backend"),
    ("only Mooncake reads it, and KV moves over NIXL", "disaggregation_ib_device", "say UCX_NET_DEVICES in env"),
    ("only Mooncake reads it, and KV always moves over NIXL", "disaggregation_decode_allocation_policy"),
    ("an engine keeps the role of its pool for life", "enable_pd_role_switch", "say replicas, of either role"),
    ("SGLang moves such a KV cache over Mooncake only, ours goes over NIXL", "enable_dsa_cache_layer_split"),
    ("it is the model's, of all its engines", "model_path", "say model.path"),
    ("it is the model's, of all its engines", "trust_remote_code", "say model.trust_remote_code"),
    ("it is the model's, of all its engines", "revision", "say model.revision"),
    ("the model is a folder on the node before an engine starts", "download_dir", "say model.path"),
    ("the frontend names the model", "served_model_name", "say model.name"),
    ("the pool's role decides it", "is_embedding", "put the pool under embedding"),
    ("one deployment runs on one kind of device", "device", "say device, at the top"),
    ("Ray gives an engine its GPUs", "base_gpu_id gpu_id_step", "say resources.gpus"),
    ("Ray hosts whole engines here, not single ranks", "use_ray"),
    ("the arguments in that file would go unchecked", "config", "say them under engine"),
    # adapters
    ("every engine of a deployment has the same adapters", "enable_lora lora_paths", "say model.lora"),
    ("every engine of a deployment takes the same adapters", "lora_target_modules", "say model.lora.target_modules"),
    *(
        ("every engine of a deployment takes the same adapters", name, f"say model.lora.{name}")
        for name in ("max_lora_rank", "max_loras_per_batch", "max_loaded_loras")
    ),
    # addresses and nodes
    (
        "disagg picks a new one for each life of an engine",
        "host port nccl_port dist_init_addr disaggregation_bootstrap_port engine_info_bootstrap_port",
    ),
    ("disagg numbers an engine's nodes", "nnodes node_rank", "say how many in the pool's nodes"),
    ("the engine would wait for a go-ahead that nobody gives", "gated_launch_port"),
    # who picks ranks and holds the queue
    ("the frontend picks the dp rank of every request", "load_balance_method"),
    ("requests wait at the frontend", "max_queued_requests", "say routing.queue_max"),
    ("the frontend refuses a prompt that does not fit: a shorter one is another", "allow_auto_truncate"),
    # tokens and text
    ("the tokenizer comes with the model", "tokenizer_path", "say model.path"),
    (
        "the frontend tokenises and detokenises",
        "tokenizer_mode tokenizer_backend tokenizer_worker_num detokenizer_worker_num skip_tokenizer_init "
        "incremental_streaming_output enable_dynamic_batch_tokenizer dynamic_batch_tokenizer_batch_size "
        "dynamic_batch_tokenizer_batch_timeout enable_tokenizer_batch_encode disable_tokenizer_batch_decode",
    ),
    (
        "engines take and give token ids, the frontend renders and reads text",
        "completion_template trust_request_chat_template tool_call_parser",
    ),
    ("the frontend renders chats", "chat_template hf_chat_template_name", "say model.chat_template"),
    ("the frontend renders chats", "default_chat_template_kwargs", "say model.chat_template_kwargs"),
    ("the frontend fills in what a request leaves out", "sampling_defaults", "say preferred_sampling_params"),
    (
        "engines run without a tokenizer, so it would do nothing",
        "reasoning_parser strip_thinking_cache enable_strict_thinking",
    ),
    # what requests and answers do not carry
    (
        "requests carry text alone",
        "allowed_media_domains media_url_max_file_size_mb limit_mm_data_per_request trust_mm_content_hashes",
    ),
    ("requests carry no code", "enable_custom_logit_processor"),
    ("disagg serves no scoring requests", "enable_mis"),
    (
        "answers of disagg have no place for what it adds",
        "enable_cache_report return_input_ids return_output_ids stream_response_default_include_usage "
        "enable_return_hidden_states return_hidden_states_mode enable_return_aux_hidden_states "
        "return_aux_hidden_state_layer_ids enable_return_routed_experts enable_return_indexer_topk "
        "sampling_mask_max_tokens",
    ),
    ("disagg opens no sessions", "enable_streaming_session enable_session_radix_cache"),
    # servers that an engine of ours does not start
    (
        "engines serve no HTTP",
        "api_key admin_api_key fastapi_root_path file_storage_path log_level_http "
        "uvicorn_access_log_exclude_prefixes tokenizer_metrics_custom_labels_header "
        "tokenizer_metrics_allowed_custom_labels tool_server enable_response_store asr_max_buffer_seconds "
        "asr_max_concurrent_sessions enable_http2 http2_max_concurrent_streams "
        "http2_initial_connection_window_size enable_http_worker_reuseport",
    ),
    ("the controller warms every rank itself", "warmups skip_server_warmup"),
    (
        "engines serve no HTTP",
        "ssl_keyfile ssl_certfile ssl_ca_certs ssl_keyfile_password enable_ssl_refresh",
        "leave it out, and put a proxy with TLS before the frontend",
    ),
    (
        "engines serve no gRPC",
        "smg_grpc_mode smg_http_sidecar_port grpc_mode grpc_port grpc_worker_threads grpc_response_timeout_secs "
        "sidecar sidecar_args",
    ),
    # endpoints to listen to
    (
        "nobody listens, and replicas on one node would claim the same address",
        "load_publish_endpoint enable_forward_pass_metrics forward_pass_metrics_worker_id "
        "forward_pass_metrics_ipc_name",
    ),
    # engines of other kinds
    (
        "disagg starts no encoder engines",
        "encoder_only encoder_transfer_backend encoder_urls encoder_bootstrap_port encoder_register_urls "
        "enable_adaptive_dispatch_to_encoder",
        "leave it out: an engine holds the whole model",
    ),
    ("disagg starts no encoder engines", "language_only", "say language_model_only to do without images"),
    (
        "disagg starts no drafter engines",
        "decoupled_spec_bind_endpoint decoupled_spec_connect_endpoints decoupled_spec_rank decoupled_spec_role "
        "spec_trace_dir",
        "say speculative_algorithm: the engine then drafts by itself",
    ),
    # ranks that come and go
    (
        "the ranks of an engine start, fail and restart together",
        "elastic_ep_backend enable_elastic_expert_backup elastic_ep_rejoin ep_join_mode ep_join_rank_offset "
        "elastic_ep_initial_size max_ep_size elastic_ep_scale_timeout",
        "leave it out; say replicas for more engines",
    ),
    # where weights come from
    (
        "the seed instance would have to serve HTTP, and engines here do not",
        "remote_instance_weight_loader_seed_instance_ip remote_instance_weight_loader_seed_instance_service_port "
        "remote_instance_weight_loader_send_weights_group_ports "
        "remote_instance_weight_loader_start_seed_via_transfer_engine",
        "say load_format: auto",
    ),
    (
        "weights of a running engine are never replaced",
        "checkpoint_engine_wait_weights_before_ready custom_weight_loader",
    ),
    ("an engine that restarts loads the model again", "delete_ckpt_after_loading"),
    # what no YAML can say
    ("it is a Python object, which YAML cannot say", "custom_sigquit_handler stat_loggers"),
    (
        "SGLang derives it from the model and the other arguments",
        "uses_mamba_radix_cache enable_cp_tp_group_sharing speculative_boundary_reduction aux_hidden_state_capture",
    ),
    (
        "SGLang reads it out of watermark_config",
        "watermark_key watermark_key_b watermark_context_window watermark_mixing_probability "
        "watermark_max_probability watermark_default_enabled watermark_enforce_all",
        "say watermark_config",
    ),
)
OWNED_ARGUMENTS = {
    name: (why, would_do[0] if would_do else LEAVE_OUT) for why, names, *would_do in _REASONS for name in names.split()
}
