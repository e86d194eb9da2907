"""The OpenAI-compatible ASGI app in front of the cluster: text to tokens and block keys, and back."""
