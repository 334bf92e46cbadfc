"""A deployment that outlives the command that started it: its controller may die, and another one takes over."""
