"""Rows and prompts."""
