"""What images share: packed tokens, attention over them, and the plug into diffusers."""
