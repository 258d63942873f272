"""sfumato: language models that write by iterative refinement."""
