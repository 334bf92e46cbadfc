"""disagg: models served by separate SGLang prefill and decode engines on Ray."""

__version__ = "0.1.0"
