"""A program for the venv with Anthropic's client; argv: base URL, model."""

import json
import sys

import anthropic

url, model = sys.argv[1:]
SAID = [{"role": "user", "content": "Hi"}]
ASKED = [{"role": "user", "content": "weather in Paris?"}]
TOOL = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}

client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
asked = {"model": model, "max_tokens": 100}
answer = client.messages.create(messages=SAID, **asked)
said = {"message": answer.content[0].text, "why": answer.stop_reason}
with client.messages.stream(messages=SAID, **asked) as stream:
    said["streamed"] = "".join(stream.text_stream)
    said["streamed tokens"] = stream.get_final_message().usage.output_tokens
called = client.messages.create(messages=ASKED, tools=[TOOL], **asked)
(call,) = [each for each in called.content if each.type == "tool_use"]
said["tools"] = [call.name, call.input, called.stop_reason]
result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]}
after = [*ASKED, {"role": "assistant", "content": called.content}, result]
said["after a call"] = client.messages.create(messages=after, tools=[TOOL], **asked).content[0].text
with client.messages.stream(messages=ASKED, tools=[TOOL], **asked) as stream:
    said["tools, streamed"] = [each.input for each in stream.get_final_message().content if each.type == "tool_use"]
said["counts"] = client.messages.count_tokens(model=model, messages=SAID).input_tokens > 0
try:
    client.messages.create(messages=[], **asked)
except anthropic.BadRequestError as error:
    said["error"] = error.body["error"]["type"]
print(json.dumps(said))
