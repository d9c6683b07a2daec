"""Answers taken apart as they come: thoughts, content and calls of tools. Pure, text only."""
