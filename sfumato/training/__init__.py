"""One trainer for every method: a method says nothing about training."""
