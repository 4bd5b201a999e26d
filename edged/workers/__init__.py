"""Stage processes: how they are started, fed and outlived."""
