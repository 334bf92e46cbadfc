"""What runs inside SGLang's processes: each file is a plugin, or a part of one."""
