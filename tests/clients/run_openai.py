"""A program for the venv with OpenAI's client: whatever of it a deployment answers, once.

argv: base URL, model, URL of vectors.
"""

import json
import sys

import openai
from pydantic import BaseModel

url, model, vectors_url = sys.argv[1:]
SAID = [{"role": "user", "content": "Hi"}]
ASKED = [{"role": "user", "content": "weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Person(BaseModel):
    name: str
    age: int


client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
said = {"models": [each.id for each in client.models.list()]}

answer = client.chat.completions.create(model=model, messages=SAID)
said["chat"] = answer.choices[0].message.content
with client.chat.completions.stream(model=model, messages=SAID) as stream:
    stream.until_done()
    said["chat, streamed"] = stream.get_final_completion().choices[0].message.content
parsed = client.chat.completions.parse(model=model, messages=SAID, response_format=Person)
said["parse"] = parsed.choices[0].message.parsed.model_dump()
called = client.chat.completions.create(model=model, messages=ASKED, tools=[TOOL])
call = called.choices[0].message.tool_calls[0]
said["tools"] = [call.function.name, json.loads(call.function.arguments), called.choices[0].finish_reason]
result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
after = [*ASKED, called.choices[0].message.model_dump(exclude_none=True), result]
said["after a call"] = (
    client.chat.completions.create(model=model, messages=after, tools=[TOOL]).choices[0].message.content
)
with client.chat.completions.stream(model=model, messages=ASKED, tools=[TOOL]) as stream:
    stream.until_done()
    message = stream.get_final_completion().choices[0].message
    said["tools, streamed"] = [each.function.arguments for each in message.tool_calls]
said["completion"] = client.completions.create(model=model, prompt="Hi").choices[0].text

response = client.responses.create(model=model, input="Hi")
said["response"] = response.output_text
said["response, going on"] = client.responses.create(
    model=model, input="Hi", previous_response_id=response.id
).output_text
said["response, parsed"] = client.responses.parse(
    model=model, input="Hi", text_format=Person
).output_parsed.model_dump()
function = {"type": "function", "strict": False, **TOOL["function"]}
said["response, tools"] = [
    [each.name, json.loads(each.arguments)]
    for each in client.responses.create(model=model, input="weather in Paris?", tools=[function]).output
    if each.type == "function_call"
]
with client.responses.stream(model=model, input="Hi") as stream:
    stream.until_done()
    said["response, streamed"] = stream.get_final_response().output_text
try:
    client.chat.completions.create(model=model, messages=[])
except openai.BadRequestError as error:
    said["error"] = error.param

vectors = openai.OpenAI(base_url=f"{vectors_url}/v1", api_key="none", max_retries=0)
given = vectors.embeddings.create(model=model, input=["Hi", "there"])  # as base64, the client's default
said["embeddings"] = [len({len(each.embedding) for each in given.data}), len(given.data)]
print(json.dumps(said))
