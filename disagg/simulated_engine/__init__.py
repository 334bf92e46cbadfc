"""An engine that pretends to compute, and speaks SGLang's protocol."""
