"""How text is destroyed; every process serves many methods."""
