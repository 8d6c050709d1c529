"""Requests to speech."""
