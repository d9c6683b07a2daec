"""Grammars that outputs must follow, over llguidance: what is asked, compiled; masks of tokens."""
