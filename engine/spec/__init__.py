"""Speculative decoding: who guesses the next tokens. What comes of a guess, Scheduler decides."""
