"""Models as PyTorch has them: walking through them, taking wrappings off, calling them."""
