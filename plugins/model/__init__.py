"""Folders of weights, the model, its loss."""
