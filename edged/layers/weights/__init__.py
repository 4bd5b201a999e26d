"""The tensors of a share, from GGUF, safetensors or a seed."""
