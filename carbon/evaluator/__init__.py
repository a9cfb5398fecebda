"""The quality evaluator: when to judge, what to judge, by whom, and when it is enough."""
