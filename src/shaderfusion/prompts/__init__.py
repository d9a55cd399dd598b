"""Prompts as users of web UIs write them: weights, chunks, words that change from step to step, and adapters."""
