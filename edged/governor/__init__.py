"""What the machine feels: sensors, and later the policy that acts on them."""
