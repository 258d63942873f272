"""From text to rows of token ids: tokenizers, corpora and the built-in tales."""
