"""Everything of SGLang that our code inside its processes patches or calls, grouped by the part of ours that needs it.

Way:   [PARTS] -> fit.py at an engine's start, against the installed release; tests/config, against all supported ones
Owns:  the list. A part that touches something new of SGLang adds it here; otherwise a release could break it unnoticed
"""

from __future__ import annotations

from typing import NamedTuple

_SRT = "sglang.srt."


class Touch(NamedTuple):
    """One thing of SGLang. `paths`: where it may be (signatures.py); one of them is enough."""

    paths: tuple[str, ...]
    begins: str = ""  # with these parameters its own must begin: "self, batch"
    keywords: str = ""  # these it must take by name
    is_called: bool = False  # by us: no further parameter may be required
    is_whole: bool = False  # by what `begins` says: ours would not heed a further parameter

    def misfit(self, signature: str) -> str:
        """How SGLang's signature differs from what we need; "" where it does not. `signature`: as signatures.py gives
        it."""
        if not signature:
            return "is not there"
        told = [part for part in signature.split(", ") if part]
        names = [part.rstrip("=") for part in told]
        begins = [part for part in self.begins.split(", ") if part]
        if begins and names[: len(begins)] != begins:
            return f"takes ({signature}), and we give ({self.begins})"
        given = begins + [part for part in self.keywords.split(", ") if part]
        if not any(part.startswith("**") for part in told) and (lacks := [each for each in given if each not in names]):
            return f"takes ({signature}), and we give {', '.join(lacks)}"
        required = [part for part in told if not part.endswith("=") and not part.startswith("*")]
        if self.is_called and (more := [part for part in required if part not in given and part != "self"]):
            return f"wants {', '.join(more)}, too"
        if self.is_whole and (more := [part for part in told if part.rstrip("=") not in given]):
            return f"takes {', '.join(more)}, too"
        return ""


class Part(NamedTuple):
    name: str
    without: str  # what is missing where it is switched off; "" where an engine cannot do without it
    touches: tuple[Touch, ...]
    only: str = ""  # "cpu": of engines without a GPU
    since: str = ""  # the first supported release that it fits; "": all do


def _at(*paths: str, begins: str = "", keywords: str = "", is_called: bool = False, is_whole: bool = False) -> Touch:
    return Touch(tuple(_SRT + path for path in paths), begins, keywords, is_called, is_whole)


def _all(owner: str, names: str, begins: str = "", *, is_called: bool = False) -> tuple[Touch, ...]:
    return tuple(_at(f"{owner}{name}", begins=begins, is_called=is_called) for name in names.split())


_SCHEDULER, _REQ = "managers.scheduler:Scheduler.", "managers.schedule_batch:Req."
_STATS = "observability.req_time_stats:SchedulerReqTimeStats."
_STATS_BASE = "observability.req_time_stats:ReqTimeStatsBase."
_NIXL, _COMMON = "disaggregation.nixl.conn:NixlKVManager.", "disaggregation.common.conn:CommonKVManager."
_MANAGER = "managers.tokenizer_manager:TokenizerManager."
_ALLOCATORS = (
    "mem_cache.allocator.base:BaseTokenToKVPoolAllocator.",
    "mem_cache.allocator.paged:PagedTokenToKVPoolAllocator.",
)

ENGINE = Part(
    "engine",
    "",
    (
        _at(
            "entrypoints.engine:Engine.async_generate",
            keywords="input_ids, sampling_params, rid, stream, routed_dp_rank, bootstrap_host, bootstrap_port, "
            "bootstrap_room, disagg_prefill_dp_rank, lora_path, external_trace_header",
            is_called=True,
        ),
        *_all("entrypoints.engine:Engine.", "shutdown get_all_child_pids", is_called=True),
        _at(
            "entrypoints.engine:Engine.async_load_lora_adapter",
            keywords="lora_name, lora_path, pinned",
            is_called=True,
        ),
        _at("entrypoints.engine:Engine.async_unload_lora_adapter", keywords="lora_name", is_called=True),
        *_all("managers.io_struct:LoRAUpdateOutput.", "success error_message"),
        *_all("entrypoints.engine:Engine.", "_scheduler_init_result tokenizer_manager server_args loop"),
        _at(f"{_MANAGER}abort_request", keywords="rid", is_called=True),
        *_all(_MANAGER, "rid_to_state model_config load_snapshot_reader"),
        _at(f"{_MANAGER}_handle_batch_output", begins="self"),
        _at("managers.io_struct:unwrap_from_pickle"),
        _at("managers.detokenizer_manager:run_detokenizer_process"),
        _at("managers.data_parallel_controller:run_data_parallel_controller_process"),
    ),
)
TRANSFER = Part(
    "transfer",
    "",
    (
        _at(f"{_SCHEDULER}get_init_info", begins="self", is_called=True),
        _at(f"{_SCHEDULER}process_input_requests", begins="self"),
        _at(f"{_SCHEDULER}run_batch", begins="self, batch"),
        *_all(
            _SCHEDULER,
            "max_running_requests req_to_token_pool max_total_num_tokens page_size chunked_prefill_size enable_overlap",
        ),
        _at(f"{_SCHEDULER}ps", f"{_SCHEDULER}pp_rank", "runtime_context:get_parallel"),
        *_all("managers.schedule_batch:ScheduleBatch.", "reqs extend_num_tokens"),
        _at(f"{_STATS}__getstate__", begins="self"),
        _at(f"{_STATS_BASE}__setstate__", f"{_STATS}__setstate__", begins="self, state"),
        *_all(
            _STATS,
            "prefill_bootstrap_queue_entry_time bootstrap_done_time forward_entry_time prefill_finished_time "
            "prefill_transfer_queue_entry_time prefill_kv_transfer_finish_time decode_prealloc_queue_entry_time "
            "decode_transfer_queue_entry_time wait_queue_entry_time transfer_total_mb transfer_speed_gb_s",
        ),
        _at(f"{_NIXL}_add_remote_peer", begins="self"),
        _at(f"{_NIXL}record_failure", f"{_COMMON}record_failure", begins="self, bootstrap_room"),
        _at(f"{_NIXL}decode_kv_args_table", f"{_COMMON}decode_kv_args_table"),
        _at(f"{_SCHEDULER}disagg_prefill_bootstrap_queue"),
    ),
)
STAGES = Part(
    "stages",
    "a leg's stages (bootstrapping, prefilling, transferring) are not told as they come",
    (
        _at(f"{_REQ}__init__", begins="self"),
        *_all(_REQ, "rid time_stats cached_tokens"),
        *_all(
            _STATS,
            "set_prefill_bootstrap_queue_entry_time set_decode_prealloc_queue_entry_time set_forward_entry_time "
            "set_prefill_transfer_queue_entry_time set_decode_transfer_queue_entry_time",
            "self",
        ),
        _at(f"{_STATS}forward_entry_time"),
    ),
)
_EVENTS, _EVENTS_UNTIL_18 = "mem_cache.events:KVCacheEventRecorder.", "mem_cache.events:KVCacheEventMixin."
_NODES = (
    "mem_cache.unified_cache.unified_tree_core:UnifiedTreeNode.",
    "mem_cache.unified_radix_cache:UnifiedTreeNode.",
)
KV_EVENTS = Part(
    "kv_events",
    "what its ranks have cached is guessed",
    (
        *(
            _at(f"{_EVENTS}record_{name}", f"{_EVENTS_UNTIL_18}_record_{name}_event", begins=begins, is_called=True)
            for name, begins in (
                ("store", "self, node, medium"),
                ("remove", "self, node, medium"),
                ("all_cleared", "self"),
            )
        ),
        *(
            _at(*(f"{owner}{name}" for owner in _NODES))
            for name in ("children", "parent", "key", "evicted", "backuped")
        ),
        *_all("mem_cache.radix_cache:RadixKey.", "token_ids extra_key __len__"),
        *_all("disaggregation.kv_events:StorageMedium.", "GPU CPU"),
        *_all(_SCHEDULER, "tree_cache process_input_requests"),
        _at(f"{_MANAGER}lora_registry"),
        *_all("lora.lora_registry:LoRARegistry.", "_registry"),
        *_all("lora.lora_registry:LoRARef.", "lora_id lora_name"),
    ),
)
RUNS = Part(
    "runs",
    "a KV transfer takes more, smaller pieces of memory",
    (
        _at("mem_cache.allocator.paged:PagedTokenToKVPoolAllocator.alloc", begins="self, need_size"),
        _at(
            "mem_cache.allocator.paged:PagedTokenToKVPoolAllocator.alloc_extend",
            begins="self, prefix_lens, prefix_lens_cpu, seq_lens, seq_lens_cpu",
        ),
        *(
            _at(*(f"{owner}{name}" for owner in _ALLOCATORS))
            for name in ("need_sort", "free_pages", "merge_and_sort_free")
        ),
    ),
)
PACE = Part(
    "pace",
    "a decode engine's pace_ms has no effect",
    (
        _at("disaggregation.decode:SchedulerDisaggregationDecodeMixin.process_decode_queue", begins="self"),
        *_all(_SCHEDULER, "disagg_decode_transfer_queue disagg_decode_prealloc_queue running_batch"),
        _at("disaggregation.decode:DecodePreallocQueue.retracted_queue"),
        _at("disaggregation.decode:DecodeTransferQueue.queue"),
        _at("managers.schedule_batch:ScheduleBatch.is_empty", begins="self"),
    ),
)
SEEDS = Part(
    "seeds",
    "a request with a seed is refused",
    (
        _at(
            "layers.sampler:top_k_top_p_min_p_sampling_from_probs_torch",
            begins="probs, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions",
        ),
        _at("layers.sampler:sampling_from_probs_torch", begins="probs, sampling_seed, positions", is_called=True),
        _at("sampling.sampling_batch_info:SamplingBatchInfo.from_schedule_batch", begins="cls, batch"),
        _at("sampling.sampling_batch_info:SamplingBatchInfo.merge_batch", begins="self, other"),
        *_all("sampling.sampling_batch_info:SamplingBatchInfo.", "sampling_seed device __len__"),
        _at("sampling.sampling_params:SamplingParams.sampling_seed"),
        _at("runtime_context:get_exec", "server_args:get_global_server_args"),
        _at("managers.schedule_batch:ScheduleBatch.spec_algorithm"),
    ),
)
GRAMMAR = Part(
    "grammar",
    "grammars (response_format and the like), min_tokens and stop_regex are refused",
    (
        _at(f"{_SCHEDULER}init_tokenizer", begins="self"),
        *_all(_SCHEDULER, "tokenizer model_config"),
        _at("managers.scheduler:get_tokenizer"),
        _at(
            "utils.hf_transformers.tokenizer:get_tokenizer",
            "utils.hf_transformers_utils:get_tokenizer",
            begins="tokenizer_name",
            keywords="trust_remote_code",
            is_called=True,
        ),
        _at("constrained.grammar_manager:GrammarManager.__init__", begins="self, scheduler"),
        _at("constrained.grammar_manager:GrammarManager.process_req_with_grammar", begins="self, req"),
        *_all("constrained.grammar_manager:GrammarManager.", "grammar_backend scheduler"),
        _at(
            "constrained.base_grammar_backend:create_grammar_backend",
            begins="server_args, tokenizer, vocab_size, eos_token_ids",
            is_called=True,
        ),
        _at("constrained.grammar_manager:GrammarManager.get_ready_grammar_requests", begins="self"),
        _at("constrained.base_grammar_backend:BaseGrammarObject"),
        _at("constrained.reasoner_grammar_backend:ReasonerGrammarObject.__init__", begins="self, grammar"),
        _at(
            "constrained.reasoner_grammar_backend:ReasonerGrammarObject.maybe_init_reasoning",
            begins="self, reasoning",
            is_called=True,
        ),
        _at(f"{_REQ}grammar"),
        _at("sampling.sampling_params:SamplingParams.custom_params"),
        _at("constrained.base_grammar_backend:BaseGrammarBackend.cache"),
        _at("constrained.base_grammar_backend:BaseGrammarBackend.reset", begins="self", is_called=True),
        *_all("configs.model_config:ModelConfig.", "vocab_size hf_eos_token_id"),
        _at("sampling.sampling_params:raise_if_tokenizer_required"),
        _at("sampling.sampling_params:SamplingParams.normalize", begins="self, tokenizer"),
        *_all("sampling.sampling_params:SamplingParams.", "stop_regex_max_len stop_regex_strs"),
        _at(f"{_REQ}set_finish_with_abort", begins="self, error_msg", is_called=True),
    ),
)
NOT_A_NUMBER = Part(
    "not_a_number",
    "a NaN among one request's logits ends the whole engine",
    (
        _at("layers.sampler:Sampler.forward", begins="self, logits_output, sampling_info"),
        _at("layers.logits_processor:LogitsProcessorOutput.next_token_logits"),
        _at("sampling.sampling_batch_info:SamplingBatchInfo.temperatures"),
        _at("managers.utils:GenerationBatchResult.copy_to_cpu", begins="self"),
        *_all("managers.utils:GenerationBatchResult.", "next_token_ids copy_done"),
        _at(f"{_SCHEDULER}process_batch_result", begins="self, batch, result"),
        *_all(_SCHEDULER, "server_args disaggregation_mode"),
        _at("disaggregation.prefill:SchedulerDisaggregationPrefillMixin.send_kv_chunk", begins="self, req, last_chunk"),
        _at("managers.schedule_batch:FINISH_ABORT.__init__", begins="self, message, status_code", is_called=True),
        *_all(_REQ, "to_finish finished_reason disagg_kv_sender skip_radix_cache_insert inflight_middle_chunks rid"),
        _at("disaggregation.common.conn:CommonKVSender.abort", begins="self", is_called=True),
    ),
)
FLUSH = Part(
    "flush",
    "/flush_cache cannot empty an engine's prefix cache",
    (
        _at(
            "managers.tokenizer_control_mixin:TokenizerControlMixin.flush_cache",
            begins="self",
            keywords="timeout_s",
            is_called=True,
        ),
        *_all("managers.io_struct:FlushCacheReqOutput.", "success message"),
    ),
)
FIRST_LOGPROBS = Part(
    "first_logprobs",
    "token_ids_logprob is refused",
    (
        _at("disaggregation.decode:DecodeTransferQueue._commit_transfer_to_req", begins="self, decode_req"),
        *_all(_REQ, "logprob return_logprob"),
        *_all(
            "managers.schedule_batch:ReqLogprob.",
            "token_ids_logprob output_token_logprobs_val output_token_ids_logprobs_val output_token_ids_logprobs_idx",
        ),
    ),
)
SALTS = Part(
    "salts",
    "a request with a cache_salt or an extra_key is refused",
    (
        _at("entrypoints.engine:Engine.async_generate", keywords="cache_salt"),
        _at("mem_cache.radix_cache:RadixKey.cache_salt"),
    ),
    since="0.5.18",
)
EMBEDDING = Part(
    "pairs",
    "an embedding engine refuses pairs of texts whose tokenizer tells the two apart",
    (
        _at(f"{_MANAGER}generate_request", begins="self, obj", is_called=True),
        _at(f"{_MANAGER}_create_tokenized_object", begins="self, obj"),
        *_all("managers.io_struct:EmbeddingReqInput.", "rid input_ids lora_path external_trace_header"),
        *_all("managers.io_struct:TokenizedEmbeddingReqInput.", "input_ids token_type_ids"),
    ),
)
FAULTS = Part(
    "faults",
    "tests cannot make a scheduler hang, nor a transfer slow",
    (
        _at(f"{_SCHEDULER}process_input_requests", begins="self"),
        _at("disaggregation.nixl.conn:FastQueue"),
        _at("disaggregation.common.utils:FastQueue.get", begins="self"),
        _at("sampling.sampling_batch_info:SamplingBatchInfo.apply_logits_bias", begins="self, logits"),
    ),
)
CPU = Part(
    "cpu",
    "",
    (
        _at("managers.data_parallel_controller:sock_recv"),
        _at("models.deepseek_common.attention_backend_handler:AttentionBackendRegistry.register"),
        _at("models.deepseek_common.attention_backend_handler:_dispatch_mla_subtype"),
        *_all("mem_cache.allocator.paged:", "alloc_extend_kernel alloc_decode_kernel"),
        _at("layers.moe.fused_moe_native:moe_forward_native", begins="layer, x"),
        _at("layers.attention.torch_native_backend:TorchNativeAttnBackend"),
        _at("distributed.parallel_state:GroupCoordinator._all_to_all_single", begins="self"),
        *_all(_SCHEDULER, "on_idle is_fully_idle", "self", is_called=True),
        _at(f"{_SCHEDULER}idle_sleeper"),
        _at("managers.scheduler_components.idle_sleeper:IdleSleeper.maybe_sleep", begins="self", is_called=True),
        _at("managers.scheduler_components.idle_sleeper:IdleSleeper.poller"),
        _at("layers.dp_attention:is_dp_attention_enabled"),
    ),
    only="cpu",
)
EXTEND_ATTENTION = Part(
    "extend_attention",
    "long prompts are read slowly",
    (
        _at(
            "layers.attention.torch_native_backend:TorchNativeAttnBackend._run_sdpa_forward_extend",
            begins="self, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, "
            "extend_prefix_lens, extend_seq_lens, encoder_lens, scaling, enable_gqa, causal, is_cross_attn, "
            "sliding_window_size",
            is_whole=True,
        ),
    ),
    only="cpu",
)

PARTS = (
    ENGINE,
    TRANSFER,
    STAGES,
    KV_EVENTS,
    RUNS,
    PACE,
    SEEDS,
    GRAMMAR,
    NOT_A_NUMBER,
    FLUSH,
    FIRST_LOGPROBS,
    SALTS,
    EMBEDDING,
    FAULTS,
    CPU,
    EXTEND_ATTENTION,
)
