"""SGLang's own parsers of tool calls and of reasoning, behind classes of ours, in a process that imports no torch."""
