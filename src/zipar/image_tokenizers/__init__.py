"""Image tokenizers (VQ autoencoders) that no library ships."""
