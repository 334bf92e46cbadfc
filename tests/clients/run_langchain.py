"""A program for the venv with LangChain; argv: base URL, model, URL of vectors."""

import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

url, model, vectors_url = sys.argv[1:]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@tool
def weather(city: str) -> str:
    """How it is outside."""
    return f"rain in {city}"


chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none", max_retries=0)
said = {
    "invoke": chat.invoke("Hi").content,
    "stream": "".join(piece.content for piece in chat.stream("Hi")),
    "batch": [each.content for each in chat.batch(["Hi", "Hi"])],
}
with_tools = chat.bind_tools([weather])
asked = HumanMessage("weather in Paris?")
call = with_tools.invoke([asked])
said["bind_tools"] = [[each["name"], each["args"]] for each in call.tool_calls]
results = [ToolMessage(weather.invoke(each["args"]), tool_call_id=each["id"]) for each in call.tool_calls]
said["after a call"] = with_tools.invoke([asked, call, *results]).content
whole = None
for piece in with_tools.stream([asked]):
    whole = piece if whole is None else whole + piece
said["bind_tools, streamed"] = [[each["name"], each["args"]] for each in whole.tool_calls]
for method in ("json_schema", "json_mode", "function_calling"):
    words = "person as json" if method != "json_mode" else "json"
    said[method] = chat.with_structured_output(Person, method=method).invoke(words).model_dump()
said["responses"] = (
    ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none", use_responses_api=True).invoke("Hi").text
)
vectors = OpenAIEmbeddings(
    model=model, base_url=f"{vectors_url}/v1", api_key="none", check_embedding_ctx_length=False
).embed_documents(["Hi", "there"])
said["embeddings"] = len(vectors)
print(json.dumps(said))
