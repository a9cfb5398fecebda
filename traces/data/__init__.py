"""Synthetic traces and intensity series that ship, the specs they were drawn from, and words for prompts."""
