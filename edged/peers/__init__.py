"""Other nodes that take over answers, over TCP with CURVE; off until the configuration says otherwise."""
