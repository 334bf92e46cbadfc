"""How each reasoning parser's models write: what they think, then what they say."""

from __future__ import annotations

THOUGHT = "First 2 < 3, [so] {it} is.\nThen <b> it is not."
ANSWER = "\n\nIt is 7: [1] < {2}."
USUAL = "<think>THOUGHT</think>ANSWER"
FORMATS = {
    "apertus2509": "<|inner_prefix|>THOUGHT<|inner_suffix|>ANSWER",
    "cohere_command4": "THOUGHT<|END_THINKING|><|START_TEXT|>ANSWER<|END_TEXT|>",
    "gemma4": "<|channel>thought\nTHOUGHT<channel|>ANSWER",
    "gpt-oss": "<|channel|>analysis<|message|>THOUGHT<|end|>"
    "<|start|>assistant<|channel|>final<|message|>ANSWER<|return|>",
    "inkling": "<|message_model|><|content_thinking|>THOUGHT<|end_message|>"
    "<|message_model|><|content_text|>ANSWER<|end_message|>",
    "k2_horizon": "<ifm|think>THOUGHT</ifm|think>ANSWER",
    "kimi": "◁think▷THOUGHT◁/think▷ANSWER",
    "kimi_k3": "<|open|>think<|sep|>THOUGHT<|close|>think<|sep|><|open|>response<|sep|>ANSWER<|close|>response<|sep|>",
    "minimax-m3": "<mm:think>THOUGHT</mm:think>ANSWER",
    "mistral": "[THINK]THOUGHT[/THINK]ANSWER",
    "muse": " to=self<|message|>THOUGHT<|eom|><|start|>assistant to=user<|message|>ANSWER<|eot|>",
}
LIKE_THE_USUAL = """
deepseek-r1 deepseek-v3 deepseek-v4 dots glm45 granite_thinking_parser hunyuan interns1 kimi_k2 ling3 mimo minimax
nanbeige nemotron_3 poolside_v1 qwen3 qwen3-thinking step3 step3p5
"""
FORMATS |= dict.fromkeys(LIKE_THE_USUAL.split(), USUAL)
PROMOTED = {"ling3"}  # a thought that breaks off is its answer, too: it is never without one
# It puts <think> in front of the text and tells nothing apart.
NOT_TOLD_APART = {"minimax-append-think"}


def answer(name: str) -> str:
    return FORMATS[name].replace("THOUGHT", THOUGHT).replace("ANSWER", ANSWER)
