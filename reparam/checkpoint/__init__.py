"""Checkpoints: a folder in timm's Hugging Face layout whose config.json also says how the model was converted."""
