"""Low-rank training: methods as chains of parts, and a pipeline that checks what five documents say of them."""

__version__ = "0.1.0"
