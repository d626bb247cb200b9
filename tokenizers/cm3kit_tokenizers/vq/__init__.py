"""Image tokenizers: pictures to codes and back."""
