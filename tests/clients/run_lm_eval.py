"""A program for lm-eval's venv: evaluates one task in three ways, and says what came back.

In:    argv: base URL, model, tokenizer's folder, folder of the task; out: a JSON line as the last
"""

import json
import sys

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

url, model, tokenizer, tasks = sys.argv[1:]
shared = {"model": model, "tokenizer_backend": "huggingface", "tokenizer": tokenizer, "max_retries": 1}
ways = [
    ("local-completions", {"base_url": f"{url}/v1/completions", "tokenized_requests": False}, False),
    ("local-completions", {"base_url": f"{url}/v1/completions", "tokenized_requests": True}, False),
    ("local-chat-completions", {"base_url": f"{url}/v1/chat/completions"}, True),
]
said = []
for name, more, is_chat in ways:
    results = simple_evaluate(
        model=name,
        model_args=shared | more,
        tasks=["two_questions"],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        apply_chat_template=is_chat,
        bootstrap_iters=0,
    )
    samples = results["samples"]["two_questions"]
    said.append([sample["resps"][0][0] for sample in samples])
print(json.dumps(said))
