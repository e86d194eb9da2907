"""The reference engines: prefill and decode for any decoder-only Hugging Face model."""
