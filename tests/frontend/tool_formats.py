"""How each tool format is written by its model: words, then a call of get_weather and one of get_time.

Each format is as its SGLang detector's docstring publishes it, with words of ours. A name of the installed release that
is not here fails a test, which asks for its format.
"""

from __future__ import annotations

from typing import Any

WORDS = "Let me look: 3 < 4, [1] and {2}. "
CITY, DAYS, ZONE = 'Tromsø "am" Sund, 2 < 3', 3, "Europe/Oslo"
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_weather", {"city": CITY, "days": DAYS}),
    ("get_time", {"zone": ZONE}),
]
WEATHER_JSON = '{"city": "Tromsø \\"am\\" Sund, 2 < 3", "days": 3}'
TIME_JSON = '{"zone": "Europe/Oslo"}'


def tool(name: str, strict: bool = False, **types: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": {each: {"type": types[each]} for each in types}}
    function = {"name": name, "parameters": parameters, **({"strict": True} if strict else {})}
    return {"type": "function", "function": function}


TOOLS = [tool("get_weather", city="string", days="integer"), tool("get_time", zone="string")]


def _each(before: str, call: str, between: str, after: str, arguments: str = "arguments") -> str:
    """JSON objects of name and arguments."""
    one = f'{{"name": "get_weather", "{arguments}": {WEATHER_JSON}}}'
    other = f'{{"name": "get_time", "{arguments}": {TIME_JSON}}}'
    return before + call.replace("CALL", one) + between + call.replace("CALL", other) + after


def _marked(head: str, argument: str, tail: str, before: str = "", between: str = "", after: str = "") -> str:
    """Markup: NAME in the head; KEY, VALUE (and TYPE) in each argument."""

    def call(name: str, arguments: dict[str, Any]) -> str:
        written = head.replace("NAME", name)
        for key, value in arguments.items():
            kind = "string" if isinstance(value, str) else "number"
            text = argument.replace("KEY", key).replace("TYPE", kind).replace("STRING", str(kind == "string").lower())
            written += text.replace("VALUE", str(value))
        return written + tail

    return before + between.join(call(name, arguments) for name, arguments in CALLS) + after


HERMES = _each("", "<tool_call>\nCALL\n</tool_call>", "\n", "")
GLM = _marked("<tool_call>NAME\n", "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n", "</tool_call>", "", "\n")
GLM_TIGHT = _marked("<tool_call>NAME", "<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>", "</tool_call>")
CODER = _marked(
    "<tool_call>\n<function=NAME>\n",
    "<parameter=KEY>\nVALUE\n</parameter>\n",
    "</function>\n</tool_call>",
    between="\n",
)
CODER_TIGHT = _marked(
    "<tool_call>\n<function=NAME>\n", "<parameter=KEY>VALUE</parameter>\n", "</function>\n</tool_call>", between="\n"
)
DSML = _marked(
    '<｜DSML｜invoke name="NAME">\n',
    '<｜DSML｜parameter name="KEY" string="STRING">VALUE</｜DSML｜parameter>\n',
    "</｜DSML｜invoke>\n",
    "<｜DSML｜BLOCK>\n",
    after="</｜DSML｜BLOCK>",
)
XML_CALL = ('<invoke name="NAME">\n', '<parameter name="KEY">VALUE</parameter>\n', "</invoke>\n")
M3 = "]<]minimax[>["
PYTHONIC = f"get_weather(city={CITY!r}, days=3), get_time(zone={ZONE!r})"
DEEPSEEK_31 = (
    f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{WEATHER_JSON}<｜tool▁call▁end｜>"
    f"<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{TIME_JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
DEEPSEEK_3 = (
    f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{WEATHER_JSON}\n```"
    f"<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{TIME_JSON}\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
HARMONY = "<|start|>assistant<|channel|>commentary to=functions.NAME<|constrain|>json<|message|>ARGUMENTS<|call|>"

FORMATS: dict[str, str] = {
    "apertus2509": f'<|tools_prefix|>[{{"get_weather": {WEATHER_JSON}}}, {{"get_time": {TIME_JSON}}}]<|tools_suffix|>',
    "cohere_command4": "<|START_ACTION|>"
    + _each("[\n    ", "CALL", ",\n    ", "\n]", "parameters").replace('"name"', '"tool_call_id": "0", "tool_name"')
    + "<|END_ACTION|>",
    "deepseekv3": DEEPSEEK_3,
    "deepseekv31": DEEPSEEK_31,
    "deepseekv32": DSML.replace("BLOCK", "function_calls"),
    "deepseekv4": DSML.replace("BLOCK", "tool_calls"),
    "dots": _marked(*XML_CALL, "<dots_function_call>\n", "", "</dots_function_call>"),
    "glm": GLM,
    "glm45": GLM,
    "glm47": GLM_TIGHT,
    "gpt-oss": HARMONY.replace("NAME", "get_weather").replace("ARGUMENTS", WEATHER_JSON)
    + HARMONY.replace("NAME", "get_time").replace("ARGUMENTS", TIME_JSON),
    "k2_horizon": _marked(
        "<ifm|tool_call>NAME\n",
        "<ifm|arg_key>KEY</ifm|arg_key>\n<ifm|arg_value>VALUE</ifm|arg_value>\n",
        "</ifm|tool_call>\n",
        "<ifm|tool_calls>\n",
        after="</ifm|tool_calls>",
    ),
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    f"{WEATHER_JSON}<|tool_call_end|><|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{TIME_JSON}"
    "<|tool_call_end|><|tool_calls_section_end|>",
    "kimi_k3": _marked(
        '<|open|>call tool="NAME" index="1"<|sep|>',
        '<|open|>argument key="KEY" type="TYPE"<|sep|>VALUE<|close|>argument<|sep|>',
        "<|close|>call<|sep|>",
        "<|open|>tools<|sep|>",
        after="<|close|>tools<|sep|>",
    ),
    "lfm2": f"<|tool_call_start|>[{PYTHONIC}]<|tool_call_end|>",
    "ling3": GLM,
    "llama3": _each("<|python_tag|>", "CALL", ";", ""),
    "mimo": CODER_TIGHT,
    "minicpm5": _marked(
        '<function name="NAME">', '<param name="KEY"><![CDATA[VALUE]]></param>', "</function>", between="\n"
    ),
    "mistral": _each("[TOOL_CALLS] [", "CALL", ", ", "]"),
    "muse": _marked(
        '<atem:invoke name="NAME">\n',
        '<atem:parameter name="KEY">VALUE</atem:parameter>\n',
        "</atem:invoke>\n",
        "<|eom|><|start|>assistant to=functions<|message|><atem:function_calls>\n",
        after="</atem:function_calls><|eot|>",
    ),
    "poolside_v1": GLM,
    "pythonic": f"[{PYTHONIC}]",
    "qwen": HERMES,
    "qwen25": HERMES,
    "qwen3_coder": CODER,
    "spark25": _marked(
        "<tool_call>NAME\n", "<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>\n", "</tool_call>", "", "\n"
    ),
    "step3": _marked(
        '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="NAME">\n',
        '<steptml:parameter name="KEY">VALUE</steptml:parameter>\n',
        "</steptml:invoke><｜tool_call_end｜>\n",
        "<｜tool_calls_begin｜>\n",
        after="<｜tool_calls_end｜>",
    ),
    "step3p5": CODER,
    "minimax-m2": _marked(*XML_CALL, "<minimax:tool_call>\n", "", "</minimax:tool_call>"),
    "minimax-m3": _marked(
        f'{M3}<invoke name="NAME">',
        f"{M3}<KEY>VALUE{M3}</KEY>",
        f"{M3}</invoke>\n",
        f"{M3}<tool_call>\n",
        "",
        f"{M3}</tool_call>",
    ),
    "nanbeige": CODER,
    "trinity": HERMES,
    "interns1": _each("", "<|action_start|> <|plugin|>\nCALL<|action_end|>", "", "", "parameters"),
    "hermes": HERMES,
    "hunyuan": _marked(
        "<tool_call>NAME<tool_sep>\n",
        "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n",
        "</tool_call>\n",
        "<tool_calls>\n",
        after="</tool_calls>",
    ),
    "gigachat3": f'<|function_call|>{{"name": "get_weather", "arguments": {WEATHER_JSON}}}',
    "gemma4": f'<|tool_call>call:get_weather{{city:<|"|>{CITY}<|"|>,days:3}}<tool_call|>'
    f'<|tool_call>call:get_time{{zone:<|"|>{ZONE}<|"|>}}<tool_call|>',
    "inkling": _each("", "<|message_model|>X<|content_invoke_tool_json|>CALL<|end_message|>", "", "", "args"),
}

# Where words stand in a frame of their own.
FRAMES = {
    "gpt-oss": "<|channel|>final<|message|>X<|end|>",
    "kimi_k3": "<|open|>response<|sep|>X<|close|>response<|sep|>",
    "muse": " to=user<|message|>X",
}
ONE_CALL = {"gigachat3"}  # its format has one
NO_ANGLES = {"step3"}  # a value ends at its first <: SGLang reads on no further


def answer(name: str) -> str:
    """What a model of this format says, whole."""
    frame = FRAMES.get(name, "X")
    text = frame.replace("X", WORDS) + FORMATS[name]
    return text.replace(" < 3", " and 3") if name in NO_ANGLES else text


def calls(name: str) -> list[tuple[str, dict[str, Any]]]:
    """What it calls."""
    weather = CALLS[0][1] | ({"city": CITY.replace(" < 3", " and 3")} if name in NO_ANGLES else {})
    return [("get_weather", weather), *([] if name in ONE_CALL else CALLS[1:])]
