"""Caches, chunks and contexts: sizes that must fit one another, and options that exclude one another.

Way:   Subject -> [these rules] -> Problems
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.errors import Problem
from disagg.planning.kv_pages import real_page_size
from disagg.preflight.rule import pool_rule, rule
from disagg.preflight.subject import PoolView, Subject
from transfer.canary import PROBE_NEW_TOKENS, PROBE_TOKENS

RESERVED_DECODE_TOKENS = 512  # SGLang's default of num_reserved_decode_tokens, 0.5.16 to 0.5.23
LEAST_CONTEXT = PROBE_TOKENS + PROBE_NEW_TOKENS + 6  # SGLang takes prompts up to 6 tokens below it (tp_worker.py)
LONGER_CONTEXT = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"


@pool_rule("sglang #20018", "say a multiple of page_size times dp_size")
def _chunk_of_pages(pool: PoolView) -> Iterator[Problem]:
    """SGLang stops on an assertion; with DP attention the chunk is divided by dp_size first"""
    ranks, (page, _) = pool.attention_dp, real_page_size(pool.arguments)
    chunk = pool.count("chunked_prefill_size", 0)
    if pool.role in ("prefill", "aggregated") and chunk and (chunk // ranks % page or chunk < ranks):
        shared = f" over dp_size {ranks} is {chunk // ranks} a rank, which" if ranks > 1 else ""
        what = f"{chunk}{shared} is no multiple of page_size {page}"
        yield Problem(pool.at("chunked_prefill_size"), what, f"say a multiple of {page * ranks}")


@pool_rule("sglang #12073, #19746", "leave disable_radix_cache out, or enable_hierarchical_cache")
def _hierarchical_cache(pool: PoolView) -> Iterator[Problem]:
    """the host tier stands below the radix cache, and without one SGLang stops at start"""
    if not pool.is_on("enable_hierarchical_cache"):
        return
    if pool.is_on("disable_radix_cache"):
        yield Problem(pool.at("enable_hierarchical_cache"), "is on beside disable_radix_cache")
    elif pool.role == "decode" and not pool.is_on("disaggregation_decode_enable_radix_cache"):
        what = "is on, and a decode engine has no radix cache by default"
        would_do = "say disaggregation_decode_enable_radix_cache: true too, or leave it to the prefill pools"
        yield Problem(pool.at("enable_hierarchical_cache"), what, would_do)


@pool_rule("sglang #19746", "leave it out")
def _decode_radix_cache(pool: PoolView) -> Iterator[Problem]:
    """SGLang stops at start"""
    name = "disaggregation_decode_enable_radix_cache"
    yield from _on_elsewhere(pool, name)
    if pool.role == "decode" and pool.is_on(name) and pool.get("speculative_algorithm"):
        what = f"is on beside speculative_algorithm {pool.get('speculative_algorithm')}"
        yield Problem(pool.at(name), what, "take one of the two out")


@pool_rule("sglang arg_groups/kv_cache_hook.py handle_cache_compatibility", "leave it out")
def _decode_offload(pool: PoolView) -> Iterator[Problem]:
    """SGLang stops at start"""
    name = "disaggregation_decode_enable_offload_kvcache"
    yield from _on_elsewhere(pool, name)
    if pool.role == "decode" and pool.is_on(name) and pool.get("hicache_storage_backend") is None:
        yield Problem(pool.at(name), "is on without hicache_storage_backend", "name one, or leave it out")


def _on_elsewhere(pool: PoolView, name: str) -> Iterator[Problem]:
    """An argument of decode engines in a pool of another role."""
    if pool.role != "decode" and pool.is_on(name):
        yield Problem(pool.at(name), f"is on in a pool of {pool.role}", "leave it to the decode pools")


@rule("sglang arg_groups/validation_hook.py check_server_args", "leave it out, or say it in an aggregated pool")
def _multiplexing(subject: Subject) -> Iterator[Problem]:
    """one engine cannot both share its steps between prefill and decode and do only one of them; SGLang stops"""
    for pool in subject.split:
        if pool.is_on("enable_pdmux"):
            yield Problem(pool.at("enable_pdmux"), f"is on in a pool of {pool.role}")


@rule("sglang configs/model_config.py _derive_context_length", "say less, or nothing")
def _context_of_model(subject: Subject) -> Iterator[Problem]:
    """SGLang stops while it reads the model; forced past that, positions beyond the model's give garbage"""
    model = subject.model
    for pool in subject.pools:
        said = pool.count("context_length", 0)
        forced = pool.env.get(LONGER_CONTEXT, "").lower() in ("1", "true", "yes")
        if model is not None and 0 < model.context_length < said and not forced and not _is_overridden(pool):
            what = f"is {said}, and {model.architecture} here was made for {model.context_length}"
            yield Problem(pool.at("context_length"), what, f"say {model.context_length} at most")


@pool_rule("sglang #30233", "say more max_total_tokens, or a shorter context_length")
def _memory_for_context(pool: PoolView) -> Iterator[Problem]:
    """the frontend refuses longer requests; in SGLang they wait for ever for memory, or are answered with garbage"""
    tokens, context = pool.count("max_total_tokens", 0), pool.count("context_length", 0)
    if tokens and context > tokens:
        what = f"holds {tokens} tokens, and one request may have {context}"
        yield Problem(pool.at("max_total_tokens"), what, f"say {context} at least, or context_length: {tokens}")


@pool_rule("sglang disaggregation/decode.py num_reserved_decode_tokens; seen here", "say more")
def _room_for_one_request(pool: PoolView) -> Iterator[Problem]:
    """no pair of engines ever passes its first probe, and the start ends at deadlines.start_s without a cause

    Room for the first request of all, a pair's probe. A decode engine also keeps room for its next tokens free.
    """
    (page, _), reserved = real_page_size(pool.arguments), 0
    if pool.role == "decode":
        reserved = pool.count("num_reserved_decode_tokens", RESERVED_DECODE_TOKENS)
    least = -(-(PROBE_TOKENS + PROBE_NEW_TOKENS) // page) * page + reserved
    tokens, context = pool.count("max_total_tokens", least), pool.count("context_length", LEAST_CONTEXT)
    if tokens < least:
        beside = f", {reserved} of them num_reserved_decode_tokens" if reserved else ""
        what = f"is {tokens}, and a request of {PROBE_TOKENS} tokens takes {least}{beside}"
        yield Problem(pool.at("max_total_tokens"), what, f"say {least} at least, better some thousands")
    if context < LEAST_CONTEXT:
        what = f"is {context}, and a request of {PROBE_TOKENS} tokens takes {LEAST_CONTEXT}"
        yield Problem(pool.at("context_length"), what, f"say {LEAST_CONTEXT} at least")


def context_warnings(subject: Subject) -> Iterator[str]:
    """Warns where an engine cannot hold the model's full context. Not refused: the frontend answers 400 past what
    fits."""
    for pool in subject.pools:
        tokens, context = pool.count("max_total_tokens", 0), _context(pool, subject)
        if tokens and context > tokens and not pool.count("context_length", 0):
            yield f"{pool.at('max_total_tokens')}: requests are limited to {tokens} of the model's {context} tokens"


@rule("sglang #30233", "say one context_length on all pools")
def _contexts(subject: Subject) -> Iterator[Problem]:
    """decode refuses what prefill has begun; prefill keeps the KV until its timeout"""
    for prefill, decode in subject.pairs():
        ours, theirs = _context(decode, subject), _context(prefill, subject)
        if ours and theirs and ours < theirs:
            what = f"is {ours}, and {prefill.path} takes prompts of up to {theirs}"
            yield Problem(decode.at("context_length"), what, f"say {theirs} on both, or {ours} on both")


def _context(pool: PoolView, subject: Subject) -> int:
    """The context length in tokens; 0: not known."""
    of_model = subject.model.context_length if subject.model and not _is_overridden(pool) else 0
    return pool.count("context_length", of_model)


def _is_overridden(pool: PoolView) -> bool:
    """The engine will not take the model's config.json as it is."""
    return pool.get("json_model_override_args") not in (None, "", "{}", {})


@rule("sglang #3360, #39128", "raise deadlines.start_s")
def _start_timeout(subject: Subject) -> Iterator[Problem]:
    """ranks that wait for a slow loader are stopped before SGLang would say which of them it was"""
    limit_s = subject.setting("deadlines.start_s", 600.0)
    for pool in subject.pools:
        seconds = pool.count("dist_timeout", 0)
        if isinstance(limit_s, int | float) and seconds > limit_s:
            what = f"is {seconds} s, and an engine that takes over deadlines.start_s ({limit_s:g} s) is stopped"
            yield Problem(
                pool.at("dist_timeout"), what, f"say deadlines.start_s: {seconds + 60}, or a lower dist_timeout"
            )


@rule("vllm #595; verl #875", "say model.trust_remote_code: true if you trust its author")
def _remote_code(subject: Subject) -> Iterator[Problem]:
    """every rank of every node asks whether to run it, and stops"""
    if subject.setting("model.trust_remote_code") is True:
        return
    said = [pool for pool in subject.pools if pool.is_on("trust_remote_code")]
    needs = next((node.files for node in subject.nodes if node.files and node.files.needs_remote_code), None)
    if needs and len(said) < len(subject.pools):
        what = f"is off, and {needs.folder} brings its own code for {needs.model_type}, which transformers has not"
        yield Problem("model.trust_remote_code", what)
