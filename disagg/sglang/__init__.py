"""All that knows SGLang: its engine, its arguments by release, what we add inside its processes."""
