"""SGLang arguments that a pool may not set, each with the reason and what to do instead.

Way:   [this table] -> disagg/config/rules.py refuses them by name; docs/sglang-versions.md lists them
Out:   name -> (why, what would do), for the names of every supported release. All other arguments pass to SGLang
"""

from __future__ import annotations

Reason = tuple[str, str]

LEAVE_OUT = "leave it out"
_NODES = ("disagg numbers an engine's nodes", "say how many in the pool's nodes")
_ADDRESS = ("disagg picks a new one for each life of an engine", LEAVE_OUT)
_GPUS = ("Ray gives an engine its GPUs", "say resources.gpus")
_TOKENS = ("the frontend tokenises and detokenises", LEAVE_OUT)
_HTTP = ("engines serve no HTTP", LEAVE_OUT)
_GRPC = ("engines serve no gRPC", LEAVE_OUT)
_TLS = ("engines serve no HTTP", "leave it out, and put a proxy with TLS before the frontend")
_TEXT = ("engines take and give token ids, the frontend renders and reads text", LEAVE_OUT)
_TOKENIZER = ("engines run without a tokenizer, so it would do nothing", LEAVE_OUT)
_MEDIA = ("requests carry text alone", LEAVE_OUT)
_ANSWER = ("answers of disagg have no place for what it adds", LEAVE_OUT)
_ENCODERS = ("disagg starts no encoder engines", "leave it out: an engine holds the whole model")
_SESSIONS = ("disagg opens no sessions", LEAVE_OUT)
_EVENTS = ("nobody listens, and replicas on one node would claim the same address", LEAVE_OUT)
_WHOLE = ("the ranks of an engine start, fail and restart together", "leave it out; say replicas for more engines")
_SEED = ("the seed instance would have to serve HTTP, and engines here do not", "say load_format: auto")
_DRAFTER = ("disagg starts no drafter engines", "say speculative_algorithm: the engine then drafts by itself")
_MOONCAKE = ("only Mooncake reads it, and KV always moves over NIXL", LEAVE_OUT)
_UPDATES = ("weights of a running engine are never replaced", LEAVE_OUT)
_PYTHON = ("it is a Python object, which YAML cannot say", LEAVE_OUT)
_DERIVED = ("SGLang derives it from the model and the other arguments", LEAVE_OUT)
_WATERMARK = ("SGLang reads it out of watermark_config", "say watermark_config")

OWNED_ARGUMENTS: dict[str, Reason] = {
    # the role and the deployment
    "disaggregation_mode": ("the pool's role decides it", "put the pool under prefill, decode or aggregated"),
    "disaggregation_transfer_backend": ("KV always moves over NIXL", LEAVE_OUT),
    "disaggregation_ib_device": ("only Mooncake reads it, and KV moves over NIXL", "say UCX_NET_DEVICES in env"),
    "disaggregation_decode_allocation_policy": _MOONCAKE,
    "enable_pd_role_switch": ("an engine keeps the role of its pool for life", "say replicas, of either role"),
    "enable_dsa_cache_layer_split": ("SGLang moves such a KV cache over Mooncake only, ours goes over NIXL", LEAVE_OUT),
    "model_path": ("one deployment serves one model", "say model.path"),
    "trust_remote_code": ("one deployment serves one model", "say model.trust_remote_code"),
    "revision": ("one deployment serves one model", "say model.revision"),
    "download_dir": ("the model is a folder on the node before an engine starts", "say model.path"),
    "served_model_name": ("the frontend names the model", "say model.name"),
    "is_embedding": ("disagg serves generation only", LEAVE_OUT),
    "device": ("one deployment runs on one kind of device", "say device, at the top"),
    "base_gpu_id": _GPUS,
    "gpu_id_step": _GPUS,
    "use_ray": ("Ray hosts whole engines here, not single ranks", LEAVE_OUT),
    "config": ("the arguments in that file would go unchecked", "say them under engine"),
    # addresses and nodes
    "host": _ADDRESS,
    "port": _ADDRESS,
    "nccl_port": _ADDRESS,
    "dist_init_addr": _ADDRESS,
    "disaggregation_bootstrap_port": _ADDRESS,
    "engine_info_bootstrap_port": _ADDRESS,
    "nnodes": _NODES,
    "node_rank": _NODES,
    "gated_launch_port": ("the engine would wait for a go-ahead that nobody gives", LEAVE_OUT),
    # who picks ranks and holds the queue
    "load_balance_method": ("the frontend picks the dp rank of every request", LEAVE_OUT),
    "max_queued_requests": ("requests wait at the frontend", "say routing.queue_max"),
    "allow_auto_truncate": ("the frontend refuses a prompt that does not fit: a shorter one is another", LEAVE_OUT),
    # tokens and text
    "tokenizer_path": ("the tokenizer comes with the model", "say model.path"),
    "tokenizer_mode": _TOKENS,
    "tokenizer_backend": _TOKENS,
    "tokenizer_worker_num": _TOKENS,
    "detokenizer_worker_num": _TOKENS,
    "skip_tokenizer_init": _TOKENS,
    "incremental_streaming_output": _TOKENS,
    "enable_dynamic_batch_tokenizer": _TOKENS,
    "dynamic_batch_tokenizer_batch_size": _TOKENS,
    "dynamic_batch_tokenizer_batch_timeout": _TOKENS,
    "enable_tokenizer_batch_encode": _TOKENS,
    "disable_tokenizer_batch_decode": _TOKENS,
    "chat_template": _TEXT,
    "hf_chat_template_name": _TEXT,
    "completion_template": _TEXT,
    "default_chat_template_kwargs": _TEXT,
    "trust_request_chat_template": _TEXT,
    "tool_call_parser": _TEXT,
    "sampling_defaults": ("the frontend fills in what a request leaves out", "say preferred_sampling_params"),
    "reasoning_parser": _TOKENIZER,
    "strip_thinking_cache": _TOKENIZER,
    "enable_strict_thinking": _TOKENIZER,
    "grammar_backend": _TOKENIZER,
    "constrained_json_whitespace_pattern": _TOKENIZER,
    "constrained_json_disable_any_whitespace": _TOKENIZER,
    "constrained_json_max_whitespace_cnt": _TOKENIZER,
    "disable_outlines_disk_cache": _TOKENIZER,
    # what requests and answers do not carry
    "allowed_media_domains": _MEDIA,
    "media_url_max_file_size_mb": _MEDIA,
    "limit_mm_data_per_request": _MEDIA,
    "trust_mm_content_hashes": _MEDIA,
    "enable_custom_logit_processor": ("requests carry no code", LEAVE_OUT),
    "enable_mis": ("disagg serves no scoring requests", LEAVE_OUT),
    "enable_cache_report": _ANSWER,
    "return_input_ids": _ANSWER,
    "return_output_ids": _ANSWER,
    "stream_response_default_include_usage": _ANSWER,
    "enable_return_hidden_states": _ANSWER,
    "return_hidden_states_mode": _ANSWER,
    "enable_return_aux_hidden_states": _ANSWER,
    "return_aux_hidden_state_layer_ids": _ANSWER,
    "enable_return_routed_experts": _ANSWER,
    "enable_return_indexer_topk": _ANSWER,
    "sampling_mask_max_tokens": _ANSWER,
    "enable_streaming_session": _SESSIONS,
    "enable_session_radix_cache": _SESSIONS,
    # servers that an engine of ours does not start
    "api_key": _HTTP,
    "admin_api_key": _HTTP,
    "fastapi_root_path": _HTTP,
    "file_storage_path": _HTTP,
    "log_level_http": _HTTP,
    "uvicorn_access_log_exclude_prefixes": _HTTP,
    "tokenizer_metrics_custom_labels_header": _HTTP,
    "tokenizer_metrics_allowed_custom_labels": _HTTP,
    "tool_server": _HTTP,
    "enable_response_store": _HTTP,
    "asr_max_buffer_seconds": _HTTP,
    "asr_max_concurrent_sessions": _HTTP,
    "enable_http2": _HTTP,
    "http2_max_concurrent_streams": _HTTP,
    "http2_initial_connection_window_size": _HTTP,
    "enable_http_worker_reuseport": _HTTP,
    "warmups": ("the controller warms every rank itself", LEAVE_OUT),
    "skip_server_warmup": ("the controller warms every rank itself", LEAVE_OUT),
    "ssl_keyfile": _TLS,
    "ssl_certfile": _TLS,
    "ssl_ca_certs": _TLS,
    "ssl_keyfile_password": _TLS,
    "enable_ssl_refresh": _TLS,
    "smg_grpc_mode": _GRPC,
    "smg_http_sidecar_port": _GRPC,
    "grpc_mode": _GRPC,
    "grpc_port": _GRPC,
    "grpc_worker_threads": _GRPC,
    "grpc_response_timeout_secs": _GRPC,
    "sidecar": _GRPC,
    "sidecar_args": _GRPC,
    # endpoints to listen to
    "kv_events_config": _EVENTS,
    "load_publish_endpoint": _EVENTS,
    "enable_forward_pass_metrics": _EVENTS,
    "forward_pass_metrics_worker_id": _EVENTS,
    "forward_pass_metrics_ipc_name": _EVENTS,
    # engines of other kinds
    "encoder_only": _ENCODERS,
    "language_only": ("disagg starts no encoder engines", "say language_model_only to do without images"),
    "encoder_transfer_backend": _ENCODERS,
    "encoder_urls": _ENCODERS,
    "encoder_bootstrap_port": _ENCODERS,
    "encoder_register_urls": _ENCODERS,
    "enable_adaptive_dispatch_to_encoder": _ENCODERS,
    "decoupled_spec_bind_endpoint": _DRAFTER,
    "decoupled_spec_connect_endpoints": _DRAFTER,
    "decoupled_spec_rank": _DRAFTER,
    "decoupled_spec_role": _DRAFTER,
    "spec_trace_dir": _DRAFTER,
    # ranks that come and go
    "elastic_ep_backend": _WHOLE,
    "enable_elastic_expert_backup": _WHOLE,
    "elastic_ep_rejoin": _WHOLE,
    "ep_join_mode": _WHOLE,
    "ep_join_rank_offset": _WHOLE,
    "elastic_ep_initial_size": _WHOLE,
    "max_ep_size": _WHOLE,
    "elastic_ep_scale_timeout": _WHOLE,
    # where weights come from
    "remote_instance_weight_loader_seed_instance_ip": _SEED,
    "remote_instance_weight_loader_seed_instance_service_port": _SEED,
    "remote_instance_weight_loader_send_weights_group_ports": _SEED,
    "remote_instance_weight_loader_start_seed_via_transfer_engine": _SEED,
    "checkpoint_engine_wait_weights_before_ready": _UPDATES,
    "custom_weight_loader": _UPDATES,
    "delete_ckpt_after_loading": ("an engine that restarts loads the model again", LEAVE_OUT),
    # what no YAML can say
    "custom_sigquit_handler": _PYTHON,
    "stat_loggers": _PYTHON,
    "uses_mamba_radix_cache": _DERIVED,
    "enable_cp_tp_group_sharing": _DERIVED,
    "speculative_boundary_reduction": _DERIVED,
    "aux_hidden_state_capture": _DERIVED,
    "watermark_key": _WATERMARK,
    "watermark_key_b": _WATERMARK,
    "watermark_context_window": _WATERMARK,
    "watermark_mixing_probability": _WATERMARK,
    "watermark_max_probability": _WATERMARK,
    "watermark_default_enabled": _WATERMARK,
    "watermark_enforce_all": _WATERMARK,
}
