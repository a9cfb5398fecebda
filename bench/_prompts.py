"""Twenty everyday prompts for comparing formats and engines."""

from __future__ import annotations

PROMPTS = (
    "Why is the sky blue?",
    "What is the capital of France?",
    "Explain what a carbon footprint is.",
    "Write a short poem about the wind.",
    "Give me three tips to save energy at home.",
    "What is gravity?",
    "How does a refrigerator work?",
    "Translate 'good morning' into Spanish, French and German.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Summarise the story of Romeo and Juliet in three sentences.",
    "What is 17 times 23? Show the steps.",
    "List five animals that live in the ocean.",
    "Why do leaves change colour in autumn?",
    "Describe a sunrise over the mountains.",
    "What is the difference between weather and climate?",
    "How do I boil an egg?",
    "Tell me a joke about computers.",
    "Who was Marie Curie?",
    "What should I pack for a week of hiking?",
    "Explain electricity to a five-year-old.",
)
