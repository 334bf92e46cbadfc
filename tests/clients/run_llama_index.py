"""A program for the venv with LlamaIndex; argv: base URL, model."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

url, model = sys.argv[1:]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def weather(city: str) -> str:
    """How it is outside."""
    return f"rain in {city}"


llm = OpenAILike(
    model=model,
    api_base=f"{url}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=4096,
    max_retries=0,
)
tool = FunctionTool.from_defaults(fn=weather)
said = {
    "chat": llm.chat([ChatMessage(role="user", content="Hi")]).message.content,
    "chat, streamed": "".join(each.delta or "" for each in llm.stream_chat([ChatMessage(role="user", content="Hi")])),
    "complete": llm.complete("Hi").text,
}
answer = llm.chat_with_tools([tool], user_msg="weather in Paris?")
said["tools"] = [[each.tool_name, each.tool_kwargs] for each in llm.get_tool_calls_from_response(answer)]
said["predict_and_call"] = llm.predict_and_call([tool], user_msg="weather in Paris?").response
said["structured"] = llm.as_structured_llm(Person).complete("person as json").raw.model_dump()
plain = OpenAILike(model=model, api_base=f"{url}/v1", api_key="none", is_chat_model=False, context_window=4096)
said["text completion"] = plain.complete("Hi").text
program = LLMTextCompletionProgram.from_defaults(output_cls=Person, prompt_template_str="person as json", llm=llm)
said["program"] = program().model_dump()
print(json.dumps(said))
