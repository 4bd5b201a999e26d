"""The one authority over requests: who is where, who may run next, what happens when someone dies."""
