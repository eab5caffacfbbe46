"""The webhook request: how it looks, where it may go, and what an attempt observed."""
