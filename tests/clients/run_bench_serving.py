"""sglang.bench_serving against a deployment, once for each of its backends.

A program of ours only so that SGLang is imported once: what runs is what `python -m sglang.bench_serving` runs.
argv: base URL, model, tokenizer's folder, output, packages that only its data sets need (it imports them all).
"""

import sys

url, model, tokenizer, output, packages = sys.argv[1:]
sys.path.append(packages)

from sglang.bench_serving import cli_main  # noqa: E402

for backend in ("sglang-oai", "sglang-oai-chat", "sglang"):
    sys.argv = ["bench_serving", "--backend", backend, "--base-url", url, "--model", model, "--tokenizer", tokenizer]
    sys.argv += ["--dataset-name", "random-ids", "--num-prompts", "4", "--random-input-len", "16"]
    sys.argv += ["--random-output-len", "8", "--random-range-ratio", "1", "--max-concurrency", "2"]
    sys.argv += ["--disable-tqdm", "--output-file", output]
    cli_main()
