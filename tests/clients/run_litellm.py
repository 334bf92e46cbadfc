"""A program for the venv with litellm, which asks in OpenAI's words and in Anthropic's.

argv: base URL, model, URL of vectors.
"""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks GitHub for prices

import litellm

url, model, vectors_url = sys.argv[1:]
SAID = [{"role": "user", "content": "Hi"}]
ASKED = [{"role": "user", "content": "weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

OPENAI = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}
WAYS = {
    "openai": OPENAI,
    "hosted_vllm": OPENAI | {"model": f"hosted_vllm/{model}"},
    "anthropic": OPENAI | {"model": f"anthropic/{model}", "api_base": url, "max_tokens": 100},
}
said = {}
for name, way in WAYS.items():
    pieces = [each.choices[0].delta.content or "" for each in litellm.completion(messages=SAID, stream=True, **way)]
    called = litellm.completion(messages=ASKED, tools=[TOOL], **way).choices[0].message.tool_calls
    said[name] = [
        litellm.completion(messages=SAID, **way).choices[0].message.content,
        "".join(pieces),
        [[each.function.name, json.loads(each.function.arguments)] for each in called],
    ]
said["text"] = (
    litellm.text_completion(model=f"text-completion-openai/{model}", api_base=f"{url}/v1", api_key="none", prompt="Hi")
    .choices[0]
    .text
)
said["embeddings"] = len(
    litellm.embedding(model=f"openai/{model}", api_base=f"{vectors_url}/v1", api_key="none", input=["Hi", "there"]).data
)
print(json.dumps(said))
