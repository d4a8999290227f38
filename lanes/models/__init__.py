"""Plain single-device models; they import torch and einops, and nothing of ours."""
